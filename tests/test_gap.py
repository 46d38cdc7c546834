"""A gap: what is recorded, what is compared, what is refused, and that a faulty op is named."""

from dataclasses import replace

import pytest
import torch
from models import random_ids, vivid_model
from train_cases import small

from anychip.chips import Chip, open_chip
from anychip.chips.cpu import CpuChip
from anychip.errors import BundleError, InputError
from anychip.gap.bundle import Bundle
from anychip.gap.compare import compare
from anychip.gap.proof import Reference
from anychip.gap.record import record
from anychip.gap.subject import Settings, Subject
from anychip.ops import Ops
from anychip.record import Kind
from anychip.text.tokenizer import open_tokenizer

SMALL = Settings(probe_tokens=264, text_tokens=64, text_length=32, logit_positions=20, new_tokens=3, train_steps=2,
                 train_seeds=2, train_length=16, questions=4)


def subject(settings: Settings = SMALL, seed: int = 0) -> Subject:
    weights = {name: value.detach() for name, value in vivid_model(small(), Ops(), seed).state_dict().items()}
    return Subject("small", small(), weights, open_tokenizer("anychip-4096"), random_ids(600), ("It was",), settings)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(subject())


@pytest.fixture(scope="module")
def bundles(reference) -> dict[str, Bundle]:
    return {name: record(reference, open_chip(name)) for name in ("cpu:reference", "cpu", "virtual:ascend910b")}


def test_a_chip_against_itself_is_equal_in_everything(bundles, reference):
    again = record(reference, open_chip("cpu:reference"), levels=("op", "layer", "model", "train"))
    found = compare(bundles["cpu:reference"], again)
    assert found.departs_op is None and found.departs_layer is None
    assert all(row.gap.value == 0 for row in found.ops + found.layers)
    assert found.train.losses[0] == found.train.losses[1] and all(row["identical"] for row in found.generation)


def test_the_cpu_is_within_fp32_of_the_definition(bundles):
    found = compare(bundles["cpu:reference"], bundles["cpu"])
    assert found.departs_op is None and max(row.gap.value for row in found.ops if row.name != "index_topk") < 1e-5


def test_a_virtual_chip_differs_by_what_its_format_explains(bundles):
    found = compare(bundles["cpu"], bundles["virtual:ascend910b"])
    assert found.departs_op is None and 1e-4 < max(row.gap.value for row in found.ops) <= found.explained
    assert {row.gap.kind for row in found.ops} == {Kind.EMULATED}
    assert found.model[0].name == "KL divergence" and found.model[0].gap.value > 0


class FaultyOps(Ops):
    """A port that forgot one clamp of SwiGLU."""

    @staticmethod
    def mlp(x, w1, w3, w2, limit):
        return Ops.mlp(x, w1, w3, w2, 1e9) + 0.05


def test_a_faulty_op_is_named(bundles, reference):
    faulty = replace(open_chip("cpu:reference"), name="faulty", implementation=FaultyOps())
    assert isinstance(faulty, CpuChip)
    found = compare(bundles["cpu:reference"], record(reference, faulty, levels=("op", "layer")))
    assert found.departs_op == "mlp in layers.0.ffn" and found.departs_layer == "layers.0"


def test_bundles_survive_the_file(bundles, tmp_path):
    bundles["cpu"].save(tmp_path / "a.gap")
    loaded = Bundle.load(tmp_path / "a.gap")
    assert loaded.about == bundles["cpu"].about and loaded.tables == bundles["cpu"].tables
    assert all(torch.equal(loaded.tensors[name], value) for name, value in bundles["cpu"].tensors.items())


def test_runs_of_other_weights_tokens_or_settings_are_refused_with_all_reasons(bundles):
    about = bundles["cpu"].about
    other = Bundle({**about, "digests": {**about["digests"], "weights": "ab", "tokens": "cd"}})
    with pytest.raises(BundleError, match="different weights .*different tokens"):
        compare(bundles["cpu"], other)
    assert subject(seed=1).digests()["weights"] != subject().digests()["weights"]
    assert subject(replace(SMALL, train_steps=4)).digests()["settings"] != subject().digests()["settings"]


def test_a_broken_foreign_or_future_file_is_refused(bundles, tmp_path):
    path = tmp_path / "a.gap"
    bundles["cpu"].save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match="not a whole bundle"):
        Bundle.load(path)
    path.write_bytes(whole.replace(b'"version":"3"', b'"version":"9"', 1))
    with pytest.raises(BundleError, match="version 9"):
        Bundle.load(path)
    path.write_bytes(whole.replace(b"anychip-gap", b"nothing-gap", 1))
    with pytest.raises(BundleError, match="not a gap bundle"):
        Bundle.load(path)
    with pytest.raises(BundleError, match="there is no bundle"):
        Bundle.load(tmp_path / "none.gap")


def test_an_unwritable_place_is_refused_and_nothing_is_left(bundles, tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        bundles["cpu"].save(tmp_path / "no" / "folder.gap")
    assert not list(tmp_path.iterdir())


def test_every_time_says_whether_it_was_measured_or_simulated(bundles):
    found = compare(bundles["cpu"], bundles["virtual:ascend910b"])
    kinds = {row.name: (row.a and row.a.kind, row.b and row.b.kind) for row in found.speed}
    assert kinds["v4-flash: training"] == (Kind.SIMULATED, Kind.SIMULATED)
    assert kinds["small: training step"] == (Kind.MEASURED, None)


def test_a_chip_is_what_it_is_named(bundles):
    assert isinstance(open_chip("virtual:ascend910b"), Chip)
    assert bundles["virtual:ascend910b"].about["numerics"] == "emulated"
