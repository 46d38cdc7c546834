"""The gap of every family: each op that it calls is judged, and faults of forms that it lacks are refused."""

from dataclasses import replace

import pytest

from anychip.chips import open_chip
from anychip.config import PRESETS, load_config
from anychip.errors import NotSupported
from anychip.gap.more_cases import hard_cases, more_cases, ops_called
from anychip.gap.op_level import record_op_level
from anychip.gap.proof import EXPLAINED, FLOORS
from anychip.gap.record import PUBLISHED
from anychip.gap.untrained import random_model
from anychip.ops import Ops

DRAWN = 48.026817321777344  # the sum of the last case's input: it moves where a draw before it does
SMALL = [name for name in PRESETS if name.endswith("-nano")]


@pytest.mark.parametrize("name", SMALL)
def test_every_op_that_a_family_calls_has_hard_cases(name):
    config = load_config(name)
    assert ops_called(config) <= {case.op for case in hard_cases(0, config)}
    assert load_config(PUBLISHED[config.family]).family == config.family


def test_further_forms_leave_the_cases_of_v4_as_they_are():
    assert hard_cases(0, load_config("nano"))[-1].arguments[0].sum().item() == pytest.approx(DRAWN, rel=1e-6)


def judged(ops: Ops, called: set[str]) -> list[dict]:
    """Rows of the hard cases on these ops."""
    return record_op_level(replace(open_chip("cpu:reference"), implementation=ops), 0, called,
                           config=load_config("v32-nano"))


def beyond(rows: list[dict]) -> set[tuple[str, str]]:
    return {(row["op"], row["case"]) for row in rows
            if row["error"] > max(EXPLAINED["fp32"], FLOORS * row["floor"])}


def test_the_definition_passes_the_hard_cases_of_all_forms():
    called = {"add", "attention", "grouped_attention", "layer_norm", "rope", "route"}
    rows = judged(Ops(), called)
    assert not beyond(rows)
    assert {case.name for case in more_cases(0) if case.op in called} <= {row["case"] for row in rows}


class _Wrong(Ops):
    """Ops that miss each run's first row, and do not keep a router's groups apart."""

    def __init__(self) -> None:
        def grouped_attention(query, key, value, ranges, scale):
            later = (ranges.count > 1).int()
            moved = type(ranges)(ranges.start + later, ranges.count - later, ranges.num_pairs, ranges.max_count)
            return Ops.grouped_attention(query, key, value, moved, scale)

        def route(*arguments, **named):
            rule = named.pop("rule", None)
            return Ops.route(*arguments, **named, **({} if rule is None else {"rule": rule._replace(kept_groups=1,
                                                                                                 groups=1)}))

        self.grouped_attention, self.route = grouped_attention, route


def test_a_wrong_form_is_named_and_the_right_ones_are_not():
    found = beyond(judged(_Wrong(), {"grouped_attention", "route"}))
    assert {op for op, _ in found} == {"grouped_attention", "route"}
    assert {case for op, case in found if op == "route"} == {"sigmoid, the best groups"}


@pytest.mark.parametrize("fault", ["sink-dropped", "clamp-missing-routed", "window-off-by-one"])
def test_a_fault_that_cannot_show_in_a_family_is_refused(fault):
    model, chip = random_model("qwen3-moe-nano", 0)[0], open_chip(f"fault:{fault}")
    model.ops = chip.ops()
    with pytest.raises(NotSupported, match=f"planted fault {fault}"):
        chip.prepare(model)


def test_a_fault_that_shows_in_a_family_is_planted():
    model, chip = random_model("qwen3-moe-nano", 0)[0], open_chip("fault:norm-weight-plus-one")
    model.ops = chip.ops()
    chip.prepare(model)
    assert model.config in chip.checked
