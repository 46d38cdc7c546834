"""How the suite runs: one worker a core (pytest-xdist), each with one thread, as more stall each other."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # before torch is imported, and for the processes that tests start
    os.environ["OMP_NUM_THREADS"] = "1"

# Files go to workers whole and in this order: the longest first, so that no worker is left alone with one at the end.
LONGEST = ("test_parallel", "test_cli_train_ranks", "test_train_run", "test_faults", "test_npu_standin", "test_conform",
           "test_against_transformers", "test_gap", "test_train_guard", "test_cli", "test_checkpoint_families",
           "test_train_supervised", "test_families", "test_gap_matrix")


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))
