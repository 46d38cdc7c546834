"""The train level: the first step before the curves; gradient norms by tensor and router loads are tested."""

import copy

import pytest
from models import nano, random_ids, vivid_model
from test_cli import anychip

from anychip.chips import open_chip
from anychip.gap.bundle import Bundle
from anychip.gap.compare import compare
from anychip.gap.record import record
from anychip.gap.report.training import training_verdicts
from anychip.gap.subject import Settings, Subject
from anychip.gap.train_level import judge_training
from anychip.ops import Ops
from anychip.record import Kind
from anychip.text.tokenizer import open_tokenizer
from anychip.train import Diverged

SETTINGS = Settings(train_steps=2, train_seeds=3, train_length=32)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    weights = {name: value.detach() for name, value in vivid_model(nano(), Ops()).state_dict().items()}
    subject = Subject("nano", nano(), weights, open_tokenizer("anychip-4096"), random_ids(600), ("It",), SETTINGS)
    return record(subject, open_chip("cpu"), levels=("train",))


def changed(bundle: Bundle, change) -> Bundle:
    """The bundle with every seed's run passed through `change(run, seed)`."""
    other = Bundle(bundle.about, copy.deepcopy(bundle.tables))
    for seed, run in enumerate(other.tables["training"]):
        change(run, seed)
    return other


def marks(a: Bundle, b: Bundle) -> dict[str, str]:
    return {line.about: line.mark.value for line in training_verdicts(compare(a, b))}


def test_equal_runs_are_the_same_in_every_line(bundle):
    assert set(marks(bundle, bundle).values()) == {"same"}


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.1])
def test_one_tensor_whose_gradient_is_wrong_is_named_among_all(bundle, factor):
    def change(run, seed):
        run["grad_norms"]["layers.1.attn.attn_sink"] *= factor * (1 + 1e-6 * seed)

    found = judge_training(bundle, changed(bundle, change), Kind.MEASURED).norms
    assert [member.name for member in found.gaps] == ["layers.1.attn.attn_sink"] and found.tested > 100


def test_a_difference_that_other_seeds_turn_round_is_noise(bundle):
    def change(run, seed):
        run["grad_norms"]["layers.1.attn.attn_sink"] *= (1.2, 0.8, 1.05)[seed]

    assert marks(bundle, changed(bundle, change))["gradient norms"] == "within noise"


def test_an_expert_that_gets_more_on_every_seed_is_named(bundle):
    def change(run, seed):
        shares = run["router_load"]["layers.2.ffn"]
        shares[3], shares[4] = shares[3] + 0.05 + 1e-5 * seed, shares[4] - 0.05

    found = judge_training(bundle, changed(bundle, change), Kind.MEASURED).load
    assert {member.name for member in found.gaps} == {"layers.2.ffn expert 3", "layers.2.ffn expert 4"}


@pytest.mark.parametrize(("factor", "mark"), [(1 + 1e-7, "within noise"), (1.001, "real gap")])
def test_the_first_step_is_judged_before_the_curves(bundle, factor, mark):
    def change(run, seed):
        run["loss"][0] *= factor

    assert marks(bundle, changed(bundle, change))["first step"] == mark


def test_a_gradient_that_is_no_number_is_a_gap(bundle):
    def change(run, seed):
        run["grad_norms"]["head.weight"] = float("nan")

    assert marks(bundle, changed(bundle, change))["gradient norms"] == "real gap"


def test_a_run_that_diverges_exits_with_1_and_bad_input_with_2(monkeypatch):
    def diverge(*given):
        raise Diverged("training stopped at step 3")

    monkeypatch.setattr("anychip.gap.load.load_subject", diverge)
    assert anychip("gap", "--chips", "cpu,cpu").exit_code == 1
    assert anychip("gap", "--chips", "cpu").exit_code == 2
