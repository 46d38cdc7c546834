"""Planted faults are found and named; clean chips are not accused; a user's module is judged like a port."""

from dataclasses import replace
from functools import cache

import pytest

from anychip.chips import open_chip
from anychip.errors import ChipError
from anychip.faults import PARTS, find_fault, list_faults
from anychip.gap.guided import guide
from anychip.gap.load import load_subject
from anychip.gap.localise import locate, part_of
from anychip.gap.op_level import record_op_level
from anychip.gap.proof import EXPLAINED, FLOORS, Reference
from anychip.gap.subject import Settings
from anychip.ops import COSTS

FAULTS = list_faults()
CLEAN = ("cpu", "cpu:reference", "virtual:ascend910b", "virtual:h100@fp8", "virtual:h100@fp16")


@cache
def reference() -> Reference:
    return Reference(load_subject("nano", None, Settings()))


@cache
def cases(chip_name: str, seed: int = 0, ops: tuple[str, ...] | None = None) -> list[dict]:
    chip = open_chip(chip_name)
    allowed = EXPLAINED[chip.precision]
    rows = [row | {"allowed": max(allowed, FLOORS * row["floor"])} for row in record_op_level(chip, seed, ops)]
    return [row | {"gap": not row["error"] <= row["allowed"]} for row in rows]


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.op], ids=lambda f: f.name)
def test_a_fault_of_an_op_is_named(fault) -> None:
    found = cases(f"fault:{fault.name}", ops=(fault.part,))  # its other ops are a clean chip's
    assert {place.part for place in locate(found, [], [])} == {fault.part}


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.model and f.part != "gradient"], ids=lambda f: f.name)
def test_a_fault_of_the_model_around_its_ops_is_named(fault) -> None:
    assert part_of(next(reference().each_departure(open_chip(f"fault:{fault.name}")))) == fault.part


def test_a_dropped_gradient_is_named_though_every_op_is_right() -> None:
    chip = open_chip("fault:attention-gradient-dropped")
    assert locate([], reference().departures(chip), reference().gradient_rows(chip))[0].part == "gradient"


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_chip_is_not_accused(name: str) -> None:
    chip = open_chip(name)
    rows = [row for seed in range(2 if name == "cpu" else 1) for row in cases(name, seed)]
    assert locate(rows, reference().departures(chip), reference().gradient_rows(chip)) == []


def test_every_op_has_a_hard_case_in_both_directions() -> None:
    seen = {(row["op"], row["direction"]) for row in cases("cpu")}
    assert {op for op, _ in seen} == set(COSTS)
    assert {op for op, direction in seen if direction == "backward"} == set(COSTS) - {"index_topk"}


def test_every_fault_names_an_op_or_a_known_part() -> None:
    assert {fault.part for fault in FAULTS} <= set(COSTS) | set(PARTS)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40


def test_a_model_that_calls_another_op_is_said_to() -> None:
    chip, calls = open_chip("cpu"), reference().traces["whole"]
    other = [replace(call, op="rope") if i == 3 else call for i, call in enumerate(calls)]
    scenario = reference()._scenarios()["whole"]
    found = guide("whole", reference().subject.model(chip), chip, scenario, other, 1e-5)
    assert found[0].argument == "called where the reference calls rope"


def test_a_users_module_is_judged_like_a_port(tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import torch\ndef rms_norm(x, weight_C, eps):\n    y = x * torch.rsqrt(x.square().mean(-1, keepdim"
                    "=True))\n    return y if weight_C is None else weight_C * y\n")
    assert {row["op"] for row in cases(f"patched:{file}") if row["gap"]} == {"rms_norm"}


@pytest.mark.parametrize(("text", "said"), [
    ("x = 1\n", "defines none of the ops"), ("def rope(x):\n    return x\n", "rope: too many positional arguments"),
    ("import nothing_of_this_name\n", "cannot be imported: ModuleNotFoundError"), (None, "there is no file")])
def test_a_module_that_cannot_patch_is_refused_with_the_reason(tmp_path, text: str | None, said: str) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ChipError, match=said):
        open_chip(f"patched:{file}")


def test_an_unknown_fault_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ChipError, match="Did you mean 'sink-dropped'"):
        find_fault("sink-droped")
