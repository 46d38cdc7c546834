"""The speed level: op calls joined by op and shapes, achieved against possible, and the causes of a shortfall."""

import pytest

from anychip.chips.facts import load_facts
from anychip.gap.planned_rows import planned_rows
from anychip.gap.shortfall import causes, grouped, joined, reached
from anychip.record import Event, Kind


def event(op: str, flops: float, moved: float, time_s: float, rows: int = 4096) -> Event:
    return Event(op, "", ((rows, 64), (64, 64)), "bfloat16", flops, moved, time_s, Kind.MEASURED)


@pytest.fixture(scope="module")
def facts():
    return load_facts("h100")


def test_what_is_possible_is_the_roofline_at_full_peaks(facts):
    peak, bandwidth = facts.facts["peak.bf16"].si, facts.memory_bytes_per_s
    rows = grouped([event("linear", peak, 0.0, 2.0), event("rms_norm", 0.0, bandwidth, 4.0)], facts, "bf16")
    assert [(row["op"], row["possible_s"]) for row in rows] == [("rms_norm", pytest.approx(1)), (
        "linear", pytest.approx(1))]
    assert reached(rows, Kind.MEASURED).value == pytest.approx(100 * 2 / 6)


@pytest.mark.parametrize(("op", "work", "time_s", "rows", "kind", "words"), [
    ("rms_norm", (0.0, 1e10), 1.0, 4096, "memory", "bound by memory"),
    ("linear", (1e13, 1e3), 1.0, 4096, "compute", "bound by arithmetic"),
    ("linear", (1e13, 1e3), 1.0, 1, "tiles", "fills 6 % of its tiles")])
def test_a_slow_kernel_is_named_by_what_bounds_it(facts, op, work, time_s, rows, kind, words):
    found = causes(grouped([event(op, *work, time_s, rows)], facts, "bf16"))
    assert found[0].kind == kind and words in found[0].text and found[0].lost_s > 0.9 * time_s


def test_many_small_ops_are_launch_overhead(facts):
    launch = facts.facts["launch.vector"].si
    found = causes(grouped([event("rms_norm", 0.0, 1e3, launch)] * 500, facts, "bf16"))
    assert found[0].kind == "launches" and "500 of 500 calls" in found[0].text
    assert found[0].lost_s == pytest.approx(500 * launch, rel=0.01)


def test_an_op_whose_share_has_grown_is_told_against_the_other_chip(facts):
    other = [event("attention", 1e14, 1e3, 0.2), event("linear", 1e14, 1e3, 0.2)]
    slow = [event("attention", 1e14, 1e3, 0.8), event("linear", 1e14, 1e3, 0.2)]
    a, b = (grouped(events, facts, "bf16") for events in (other, slow))
    shares = [cause.text for cause in causes(b, a) if cause.kind == "share"]
    assert shares == ["attention takes 80 % of the step and 50 % of the other chip's: as good a kernel for this chip "
                      "would save 60 % of the step"]


def test_a_step_at_its_roofline_has_no_cause(facts):
    assert causes(grouped([event("linear", facts.facts["peak.bf16"].si, 0.0, 1.0)], facts, "bf16")) == []


def test_sides_are_joined_by_op_and_shapes(facts):
    a = grouped([event("linear", 1e14, 1e3, 0.2), event("rope", 1e3, 1e9, 0.1)], facts, "bf16")
    b = grouped([event("linear", 1e14, 1e3, 0.4), event("linear", 1e14, 1e3, 0.1, rows=64)], facts, "bf16")
    table = {(row["op"], row["shape"]): (row["time_s_a"], row["time_s_b"]) for row in joined(a, b)}
    assert table == {("linear", "[4096, 64] x [64, 64]"): (0.2, 0.4), ("linear", "[64, 64] x [64, 64]"): (None, 0.1),
                     ("rope", "[4096, 64] x [64, 64]"): (0.1, None)}


def test_a_report_has_the_plans_of_both_v4_models_on_both_chips() -> None:
    rows = planned_rows("v4-flash", ("h100", "ascend910c"))
    assert [row.name.split(",")[0] for row in rows] == [f"plan of {model}: {task}" for model in ("v4-flash", "v4-pro")
                                                        for task in ("training", "decode")]
    assert all(row.a and row.b and row.gap and row.gap.value == row.b.value / row.a.value < 1 for row in rows)
    assert "weights fp8" in rows[1].note and "weights w8a8" in rows[1].note
    assert not planned_rows("v4-flash", ("cpu", "h100"))
