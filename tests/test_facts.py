"""Chip facts: what the files say, and what is refused."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from anychip.chips.fact_schema import FORMATS, SCHEMA
from anychip.chips.facts import ChipFacts, chip_aliases, known_chips, load_facts, parse_facts
from anychip.errors import ChipError

CHIPS = [
    "ascend910b1",
    "ascend910b2",
    "ascend910b3",
    "ascend910b4",
    "ascend910b4_32g",
    "ascend910c",
    "ascend950pr",
    "ascend950dt",
    "a100",
    "h100",
    "h200",
    "h800",
    "h20",
    "b200",
    "b300",
    "gb200",
    "gb300",
]

GOOD = """
vendor = "V"
arch = "A"
device = "one D"
[peak]
bf16 = { value = 2.0, unit = "PFLOPS", source = "s" }
[memory]
bytes = { value = 1, unit = "GiB", source = "s" }
bandwidth = { value = 2, unit = "TB/s", source = "s" }
[launch]
matmul = { value = 5, unit = "us", source = "s", guess = true, note = "felt right" }
vector = { value = 2, unit = "us", source = "s" }
[efficiency]
matmul = { value = 0.5, unit = "1", source = "s" }
memory = { value = 0.5, unit = "1", source = "s" }
vector = { value = 0.5, unit = "1", source = "s" }
[sources]
s = { text = "somewhere", date = "2026-01" }
"""


@pytest.mark.parametrize("name", CHIPS)
def test_every_number_has_a_source_and_a_date(name: str) -> None:
    facts = load_facts(name)
    assert facts.facts
    for path, fact in facts.facts.items():
        assert len(fact.source) > 5 and re.fullmatch(r"20\d\d(-\d\d){0,2}", fact.date), path


@pytest.mark.parametrize("name", CHIPS)
def test_every_guess_says_what_it_comes_from(name: str) -> None:
    facts = load_facts(name)
    for path in facts.guesses:
        assert facts.facts[path].note, path
        assert "(guess)" in facts.show(path)


@pytest.mark.parametrize("name", CHIPS)
def test_every_source_of_a_file_is_used(name: str) -> None:
    text = (files("anychip.chips") / "facts" / f"{name}.toml").read_text(encoding="utf-8")
    body, _, sources = text.partition("[sources]")
    for key in re.findall(r"^(\w+) = ", sources, re.MULTILINE):
        assert f'source = "{key}"' in body, key


def test_the_chips_of_the_project_are_all_known() -> None:
    assert known_chips() == sorted(CHIPS)


def test_aliases_resolve_and_say_why() -> None:
    assert load_facts("ascend910b").name == "ascend910b2"
    assert load_facts("Ascend950").name == "ascend950pr"
    assert len(load_facts("ascend910b2").aliases["ascend910b"]) > 20
    assert not set(chip_aliases()) & set(known_chips())


def test_units_become_si_and_the_file_keeps_the_source_unit() -> None:
    facts = parse_facts("x", GOOD)
    assert facts.peak_flops_per_s == {"bf16": 2e15}
    assert (facts.memory_bytes, facts.memory_bytes_per_s) == (2**30, 2e12)
    assert facts.number("launch.matmul") == pytest.approx(5e-6)
    assert str(facts.facts["peak.bf16"]) == "2 PFLOPS"
    assert facts.guesses == ("launch.matmul",)


def test_unknown_is_none_and_a_lacking_format_is_not_unknown() -> None:
    facts = parse_facts("x", GOOD)
    assert facts.power_w is None and facts.l2_bytes is None and facts.number("link.in_node") is None
    assert (facts.show("power.tdp"), facts.show("peak.fp8")) == ("unknown", "none")
    with pytest.raises(KeyError, match="no fact is called 'power.peak'"):
        facts.fact("power.peak")


def test_rows_list_every_fact_a_chip_can_have() -> None:
    rows = {path: value for path, value, _, _ in load_facts("h20").rows()}
    assert len(rows) == sum(len(keys) for keys in SCHEMA.values())
    assert (rows["l2.bytes"], rows["peak.fp4"], rows["memory.bytes"]) == ("unknown", "none", "96 GiB")


def test_910c_is_one_die_with_half_a_card() -> None:
    die = load_facts("ascend910c")
    assert "DIE" in die.device
    assert die.peak_flops_per_s["bf16"] * 2 == pytest.approx(707.8e12, rel=1e-3)
    assert (die.memory_bytes, die.memory_bytes_per_s) == (64 * 2**30, 1.6e12)


def test_ascend_peaks_are_the_cube_only_ones() -> None:
    for name, cube, marketing in (("ascend910b1", 373.88, 400), ("ascend910b2", 353.8944, 376),
                                  ("ascend910b3", 294.912, 313), ("ascend910b4", 245.76, 280)):  # fmt: skip
        fact = load_facts(name).facts["peak.bf16"]
        assert fact.value == cube and str(marketing) in fact.note, name


def test_b200_peaks_are_dense() -> None:
    b200 = load_facts("b200")
    assert b200.peak_flops_per_s["fp8"] == 4.5e15 and b200.peak_flops_per_s["fp4"] == 9e15
    assert "sparse" in b200.facts["peak.fp8"].note


def test_formats_that_a_chip_lacks_are_absent() -> None:
    assert not {"fp8", "fp4", "tf32"} & set(load_facts("ascend910c").formats)
    assert not {"fp8", "fp4", "hf32"} & set(load_facts("a100").formats)
    assert "fp8" in load_facts("h100").formats and "fp4" not in load_facts("h100").formats
    assert {"fp8", "fp4", "hf32"} <= set(load_facts("ascend950dt").formats) <= set(FORMATS)


def test_unknown_chip_is_refused_with_the_nearest_name_and_the_list() -> None:
    with pytest.raises(ChipError) as error:
        load_facts("ascend910d")
    words = str(error.value)
    assert "Did you mean 'ascend910" in words and "b200" in words and "ascend950 = ascend950pr" in words


def test_all_faults_of_a_file_are_named_at_once() -> None:
    bad = (
        GOOD.replace('unit = "PFLOPS"', 'unit = "GB"')
        .replace('bytes = { value = 1, unit = "GiB", source = "s" }', "")
        .replace("value = 0.5", "value = 1.5", 1)
        .replace(', note = "felt right"', "")
        .replace('arch = "A"', "")
        .replace("[launch]", '[lunch]\nx = 1\n[launch]\nwarp = { value = -1, unit = "us", source = "t" }')
    )
    with pytest.raises(ChipError) as error:
        parse_facts("bad", bad)
    words = str(error.value)
    for fault in ("bad.toml has 7 fault(s)",
                  "peak.bf16 has unit 'GB'; use one of TFLOPS", "memory.bytes is missing",
                  "efficiency.matmul is 1.5; a ratio is at most 1", "launch.matmul is a guess without a note",
                  "arch is missing", "[lunch] is no table of facts. Did you mean 'launch'?",
                  "launch.warp is not a known fact"):  # fmt: skip
        assert fault in words, fault


def test_bad_values_sources_and_dates_are_refused() -> None:
    bad = GOOD.replace("value = 2, unit", "value = 0, unit").replace('date = "2026-01"', 'date = "yesterday"')
    with pytest.raises(ChipError, match="memory.bandwidth has value 0; it must be a number above 0"):
        parse_facts("bad", bad)
    with pytest.raises(ChipError, match="sources.s has date 'yesterday'; write YYYY"):
        parse_facts("bad", bad)
    with pytest.raises(ChipError, match="is not TOML"):
        parse_facts("bad", "peak = [")


def test_with_value_changes_one_fact_of_a_copy() -> None:
    facts: ChipFacts = parse_facts("x", GOOD)
    faster = facts.with_value("memory.bandwidth", 4)
    assert (faster.memory_bytes_per_s, facts.memory_bytes_per_s) == (4e12, 2e12)
