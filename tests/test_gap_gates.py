"""Levels run alone, and gates fail a comparison by name."""

import functools
import json
from dataclasses import replace
from importlib import resources

import jsonschema
import pytest
from gap_report_cases import broken, comparison

from anychip.chips import open_chip
from anychip.errors import BundleError, InputError
from anychip.gap.compare import Comparison, compare
from anychip.gap.gates import METRICS, metrics, parse_gates
from anychip.gap.load import load_subject
from anychip.gap.proof import Reference
from anychip.gap.record import LEVELS, choose_levels, record
from anychip.gap.report import to_json
from anychip.gap.report.html import render
from anychip.gap.subject import Settings

SMALL = Settings(probe_tokens=140, text_tokens=64, text_length=32, train_seeds=2, train_steps=2, train_length=16,
                 questions=4, new_tokens=2)


@functools.cache
def reference() -> Reference:
    return Reference(load_subject("nano", None, SMALL))


@functools.cache
def alone(level: str) -> Comparison:
    bundle = record(reference(), open_chip("cpu"), levels=[level])
    return compare(bundle, bundle)


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_runs_and_is_reported_alone(level: str) -> None:
    found = alone(level)
    assert found.levels == [level] and render(found) and to_json(found)["levels"] == [level]


def test_the_json_report_keeps_to_its_published_schema() -> None:
    schema = json.loads((resources.files("anychip.gap.report") / "schema.json").read_text())
    for case in (comparison(), broken(), alone("quality"), alone("op")):
        jsonschema.validate(to_json(case), schema)


def test_bundles_without_a_common_level_are_refused() -> None:
    pair = [record(reference(), open_chip("cpu"), levels=[level]) for level in ("quality", "train")]
    with pytest.raises(BundleError, match="no level in common"):
        compare(*pair)


def test_an_unknown_level_is_refused_with_the_choices() -> None:
    assert choose_levels("train,op") == ("op", "train")
    with pytest.raises(InputError, match="unknown level 'modle'; choose of: op, layer"):
        choose_levels("op,modle")


def test_every_figure_of_a_whole_comparison_is_known() -> None:
    assert None not in metrics(comparison()).values() and set(metrics(comparison())) == set(METRICS)


@pytest.mark.parametrize(("gate", "fails"), [
    ("kl>0.001", True), ("kl>0.1", False), ("faults>0", True), ("top1<90", False), ("op >= 0.03", True),
    ("layer<=0.001", False)])
def test_a_gate_fails_where_it_holds(gate: str, fails: bool) -> None:
    assert bool(parse_gates([gate])[0].fails(comparison())) is fails


def test_a_figure_that_is_no_number_fails_every_gate_on_it() -> None:
    assert "kl is nan" in parse_gates(["kl>1000"])[0].fails(broken())


def test_gates_that_cannot_be_read_are_named_all_at_once() -> None:
    with pytest.raises(InputError, match=r"'kl' is not NAME>NUMBER.*'los' is no figure.*Did you mean 'loss'"):
        parse_gates(["kl", "los>1"])


def test_a_gate_on_a_level_that_was_not_compared_is_refused() -> None:
    with pytest.raises(InputError, match="has no such figure; compared are the levels quality"):
        parse_gates(["kl>0.1"])[0].fails(replace(comparison(), model=[], levels=["quality"]))
