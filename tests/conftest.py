"""How the suite runs: one worker a core (pytest-xdist), each with one thread, as more stall each other."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # before torch is imported, and for the processes that tests start
    os.environ["OMP_NUM_THREADS"] = "1"
