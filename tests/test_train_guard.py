"""What counts as a fault and what is done about it, decided without any process: flips, hangs, spikes, injections."""

import pytest
import torch
from train_cases import run, trainer

from anychip.chips import open_chip
from anychip.errors import InputError
from anychip.train import Care, FaultKind, Stopped, read_losses, train
from anychip.train.anticipate import Window
from anychip.train.fault import Fault
from anychip.train.folder import Events
from anychip.train.goodput import Median, goodput
from anychip.train.guard import SpikeGuard, decide
from anychip.train.inject import KINDS, flip_bit, parse_injections
from anychip.train.integrity import fingerprint, outvoted
from anychip.train.position import Chosen
from anychip.train.pulse import Beat, Hang, find_hang
from anychip.train.watch import slow_ranks
from anychip.train.watchdog import acting

CHIP = open_chip("cpu:reference")


def kinds(out):
    return [event["kind"] for event in Events(out).all() if event["event"] == "fault"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    out = tmp_path_factory.mktemp("sound")
    train(run(), CHIP, out, care=Care(save_every=2, check_every=1))
    return out


def inject(out, what, **care):
    return train(run(), CHIP, out, care=Care(**({"save_every": 2, "check_every": 2} | care),
                                             inject=parse_injections(what, 1)))


def test_a_sound_run_has_no_fault(sound):
    assert kinds(sound) == []


@pytest.mark.parametrize(("what", "kind"), [("nan@step3", "not_finite"), ("bitflip:weight@step3", "weights"),
                                            ("bitflip:optimizer@step3", "weights"),
                                            ("bitflip:gradient@step4", "gradient"), ("disk_full@step3", "disk")])
def test_an_injected_fault_is_named_and_the_weights_are_those_of_a_sound_run(sound, tmp_path, what, kind):
    inject(tmp_path, what)
    assert kinds(tmp_path) == [kind]
    one, other = ((out / "step-00000006/model/model.safetensors").read_bytes() for out in (sound, tmp_path))
    assert one == other and [x["loss"] for x in read_losses(sound)] == [x["loss"] for x in read_losses(tmp_path)]
    account = goodput(tmp_path)
    assert 0 < account.share < 1 and account.faults[kind].count == 1 and account.faults[kind].detect.value >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_flipped_bit_changes_the_fingerprint(dtype):
    tensors = {"odd": torch.randn(7).to(dtype), "even": torch.randn(4, 16).to(dtype)}
    before = fingerprint(tensors), fingerprint(tensors, quick=True)
    for seed in range(300):
        name = flip_bit(tensors, seed)
        after = fingerprint(tensors), fingerprint(tensors, quick=True)
        assert after[0][name] != before[0][name] and after[1][name] != before[1][name]
        flip_bit(tensors, seed)
    assert (fingerprint(tensors), fingerprint(tensors, quick=True)) == before


def test_the_minority_of_copies_is_wrong_and_of_two_neither_is_known():
    assert outvoted([{"w": 1, "v": 5}, {"w": 1, "v": 5}, {"w": 2, "v": 5}]) == {"w": [2]}
    assert outvoted([{"w": 1}, {"w": 2}]) == {"w": [0, 1]}
    assert outvoted([{"w[0:2]": 1}, {"w[2:4]": 2}]) == {}


def test_a_spike_is_far_above_the_median_of_the_last_losses():
    guard = SpikeGuard(1.0, [4 + 0.01 * (i % 5) for i in range(20)])
    guard.check(20, 4.9)
    with pytest.raises(Fault, match=r"the loss of step 21 is 5.200, the median of the 21 before 4.020"):
        guard.check(21, 5.2)
    SpikeGuard(0.0, [4.0] * 20).check(20, 99.0)


def test_a_batch_that_fails_twice_is_routed_ahead_then_skipped_and_a_rank_stops_a_run_at_its_third_corruption():
    fault = Fault(FaultKind.SPIKE, "spike", step=7)
    first = {"event": "fault", "kind": "spike", "step": 7, "batch": 9, "ranks": []}
    skip = {"event": "skip", "batch": 9, "step": 7}
    assert decide(fault, 9, []) is None and decide(fault, 9, [first]) == skip
    window = Window(5, 15, 2)
    assert decide(fault, 9, [first], window) == window.event() | {"batch": 9, "step": 7}
    assert decide(fault, 9, [first, window.event()], window) == skip
    corrupt = Fault(FaultKind.WEIGHTS, "flip", step=7, ranks=(1,))
    before = [{"event": "fault", "kind": "gradient", "ranks": [1]}] * 2
    assert decide(corrupt, 9, before[:1]) is None
    with pytest.raises(Stopped, match=r"rank 1 was found corrupt 3 times: take its chip out of service"):
        decide(corrupt, 9, before)


def test_a_step_takes_the_next_batch_that_is_not_skipped():
    chosen = Chosen(None, (2, 3, 6))
    assert [chosen.number(step) for step in range(6)] == [0, 1, 4, 5, 7, 8]


def beat(progress, waiting=False, alive=100.0, step=3):
    return Beat(1, step, alive, progress, 0.0, 0.0, waiting)


def test_a_hang_is_blamed_on_the_rank_that_does_not_wait():
    assert find_hang([beat(99), beat(98)], 100.0, 5.0) is None
    assert find_hang([beat(90, waiting=True), beat(90)], 100.0, 5.0).rank == 1
    assert find_hang([beat(90, alive=90.0), beat(90, waiting=True)], 100.0, 5.0).reason == "its process does not run"
    assert find_hang([beat(92, waiting=True), beat(92, waiting=True)], 100.0, 5.0) is None
    assert find_hang([beat(88, waiting=True), beat(87, waiting=True)], 100.0, 5.0).rank == 1
    assert find_hang([beat(80, step=-1), beat(80, waiting=True)], 100.0, 5.0) is None  # still starting


def test_a_hanging_rank_is_ended_by_the_first_other_one_that_runs():
    frozen, sound = beat(90, alive=90.0), beat(90, waiting=True)
    hang = find_hang([frozen, sound, sound], 100.0, 5.0)
    assert (hang.rank, acting([frozen, sound, sound], hang, 100.0)) == (0, 1)
    assert acting([sound, frozen], Hang(1, 1, 3, 10.0, ""), 100.0) == 0
    assert acting([beat(90)], Hang(0, 1, 3, 10.0, ""), 100.0) == 0


def test_a_slow_rank_works_longer_than_the_usual_one():
    assert slow_ranks([1.0, 1.1, 3.0]) == [(2, pytest.approx(3.0 / 1.1))] and slow_ranks([1.0, 1.2]) == []


def test_injections_that_cannot_be_are_refused_with_all_reasons():
    assert [str(item) for item in parse_injections("kill:rank1@step30, bitflip:weight@step4", 2)] == [
        "kill:rank1@step30", "bitflip:weight:rank0@step4"]
    with pytest.raises(InputError, match=r"'kil:rank1@step3' is not.*mean 'kill'\?; 'hang:rank2@step1': there"):
        parse_injections("kil:rank1@step3,hang:rank2@step1", 2)
    assert all(parse_injections(f"{kind}@step1", 1) for kind in KINDS)


def test_the_median_has_an_interval_from_six_values():
    assert Median.of([]) is None and Median.of([1.0] * 5).low is None
    assert (Median.of(range(1, 7)).low, Median.of(range(1, 7)).high) == (1, 6)  # covers with 1 - 2/64


def test_a_copy_of_the_state_goes_into_a_save_not_the_state_itself(tmp_path):
    from anychip.train.saves import Position, Saver, restore

    work, other = trainer(), trainer()
    work.step()
    saver = Saver(tmp_path, keep=1)
    saver.begin(work, Position(1, (4,)))
    expected = {name: p.detach().clone() for name, p in work.model.named_parameters()}
    work.step()
    saver.close()
    assert restore(other, tmp_path) == Position(1, (4,))
    assert all(torch.equal(p, expected[name]) for name, p in other.model.named_parameters())
