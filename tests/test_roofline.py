"""The roofline: its formula, its refusals, and how far it is from what others measured."""

from __future__ import annotations

import subprocess
import sys

import pytest

from anychip.chips.facts import ChipFacts, load_facts
from anychip.errors import InputError, NotSupported
from anychip.record import Event, Kind
from anychip.sim.roofline import Work, roofline_time, sensitivity, simulate, total_time_s


@pytest.fixture
def chip() -> ChipFacts:
    """100 TFLOPS at 0.5, 1 TB/s at 0.8, vector 10 TFLOPS at 0.25, launch 5 us / 2 us."""
    facts = load_facts("ascend910b2")
    matmul = {"peak.bf16": 100, "efficiency.matmul": 0.5, "launch.matmul": 5}
    vector = {"vector_peak.bf16": 10, "efficiency.vector": 0.25, "launch.vector": 2}
    memory = {"memory.bandwidth": 1, "efficiency.memory": 0.8}
    for path, value in {**matmul, **vector, **memory}.items():
        facts = facts.with_value(path, value)
    return facts


def test_time_is_launch_plus_the_larger_of_compute_and_memory(chip: ChipFacts) -> None:
    time = roofline_time(50e9, 8e6, "bf16", chip, is_matmul=True)
    assert time.parts.compute_s == pytest.approx(1e-3) and time.parts.memory_s == pytest.approx(1e-5)
    assert time.time_s == pytest.approx(5e-6 + 1e-3)


@pytest.mark.parametrize(
    ("flops", "moved", "bound"),
    [(1e12, 1e3, "compute"), (1e3, 1e9, "memory"), (1e3, 1e3, "launch"), (0, 0, "launch")],
)
def test_the_bound_is_the_largest_part(chip: ChipFacts, flops: float, moved: float, bound: str) -> None:
    assert roofline_time(flops, moved, "bf16", chip, is_matmul=True).bound == bound


def test_vector_ops_use_the_vector_rate_and_launch(chip: ChipFacts) -> None:
    time = roofline_time(2.5e9, 0, "bf16", chip, is_matmul=False)
    assert time.parts.compute_s == pytest.approx(1e-3) and time.parts.launch_s == pytest.approx(2e-6)


def test_vector_ops_on_fp8_run_at_the_fp32_rate_of_a_chip_that_has_fp8() -> None:
    h100 = load_facts("h100")
    times = [roofline_time(1e12, 0, fmt, h100, is_matmul=False).time_s for fmt in ("fp8", "fp32")]
    assert times[0] == times[1]


def test_an_unknown_vector_rate_is_none_not_free_arithmetic(chip: ChipFacts) -> None:
    known = {path: fact for path, fact in chip.facts.items() if not path.startswith("vector_peak")}
    bare = ChipFacts("x", "V", "A", "D", known)
    time = roofline_time(1e12, 8e6, "bf16", bare, is_matmul=False)
    assert time.parts.compute_s is None and time.time_s == pytest.approx(2e-6 + 1e-5)


@pytest.mark.parametrize("is_matmul", [True, False])
def test_a_format_the_chip_lacks_is_refused_with_what_it_has(is_matmul: bool) -> None:
    with pytest.raises(NotSupported, match="ascend910c has no fp8; it has fp32, hf32, fp16, bf16, int8"):
        roofline_time(1.0, 1.0, "fp8", load_facts("ascend910c"), is_matmul=is_matmul)


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
def test_impossible_amounts_are_refused(chip: ChipFacts, amount: float) -> None:
    with pytest.raises(InputError, match="must be finite and not negative"):
        roofline_time(amount, 1.0, "bf16", chip, is_matmul=True)
    with pytest.raises(InputError, match="must be finite and not negative"):
        roofline_time(1.0, amount, "bf16", chip, is_matmul=True)


@pytest.mark.parametrize(
    ("name", "size", "tflops"),
    [
        ("ascend910c", 6144, 308.0),  # hw-native-sys/pto-isa gemm_performance, A3, fp16
        ("ascend910c", 3072, 280.5),  # the same
        ("ascend910b2", 8192, 301.23),  # zzc0721/torch-performance-test-data issue 109
        ("ascend910b2", 6144, 309.0),  # pto-isa matmul-l2-schedule
    ],
)
def test_large_ascend_gemm_is_within_10_percent_of_published(name: str, size: int, tflops: float) -> None:
    flops = 2.0 * size**3
    time_s = roofline_time(flops, 3 * 2.0 * size**2, "bf16", load_facts(name), is_matmul=True).time_s
    assert flops / time_s / 1e12 == pytest.approx(tflops, rel=0.10)


def test_sensitivity_of_a_memory_bound_op_to_its_guessed_efficiency() -> None:
    chip = load_facts("h100")
    work = [Work(0.0, 1e12, "bf16", False)]
    found = {s.path: s for s in sensitivity(work, chip)}
    assert found["efficiency.memory"].when_lower == pytest.approx(1 / 0.75 - 1, rel=1e-4)
    assert found["efficiency.memory"].when_higher == pytest.approx(0.9 - 1, rel=1e-4), (
        "an efficiency stops at 1"
    )
    assert "efficiency.vector" not in found, "a guess that moves nothing is left out"


def test_sensitivity_is_sorted_and_leaves_out_published_facts() -> None:
    chip = load_facts("ascend910c")
    found = sensitivity([Work(1e9, 1e6, "bf16", True), Work(1e6, 1e6, "bf16", False)], chip)
    sizes = [max(abs(s.when_lower), abs(s.when_higher)) for s in found]
    assert found and sizes == sorted(sizes, reverse=True)
    assert {s.path for s in found} <= set(chip.guesses)


def test_sensitivity_needs_work_and_a_change() -> None:
    with pytest.raises(InputError, match="0 op calls"):
        sensitivity([], load_facts("h100"))
    with pytest.raises(InputError, match="0 < change < 1"):
        sensitivity([Work(1, 1, "bf16", True)], load_facts("h100"), change=1.0)


def _event(op: str, dtype: str) -> Event:
    return Event(op, "layers.0", ((2, 2),), dtype, 1e9, 1e6, None, Kind.MEASURED)


def test_simulate_times_events_and_says_that_it_did() -> None:
    chip = load_facts("ascend910b")
    events = [_event("matmul", "bf16"), _event("rms_norm", "bf16")]
    timed = simulate(events, chip, fmt_of=lambda e: e.dtype, is_matmul=lambda e: e.op == "matmul")
    assert [e.kind for e in timed] == [Kind.SIMULATED, Kind.SIMULATED]
    total_s = total_time_s([Work(1e9, 1e6, "bf16", True), Work(1e9, 1e6, "bf16", False)], chip)
    assert sum(e.time_s or 0 for e in timed) == pytest.approx(total_s)


def test_simulate_names_every_lacking_format_at_once() -> None:
    events = [_event("experts", "fp4"), _event("matmul", "fp8"), _event("quantise", "fp8")]
    with pytest.raises(
        NotSupported, match="ascend910b2 lacks fp4 for experts; fp8 for matmul, quantise. It has fp32"
    ):
        simulate(events, load_facts("ascend910b"), fmt_of=lambda e: e.dtype, is_matmul=lambda e: True)


@pytest.mark.parametrize("first", ["anychip.sim.roofline", "anychip.chips"])
def test_chips_and_roofline_import_in_any_order(first: str) -> None:
    command = [sys.executable, "-c", f"import {first}, anychip.chips, anychip.sim.roofline"]
    subprocess.run(command, check=True)
