"""Several models on several chips: what is compared with what, ratios and their intervals, and what is refused."""

import io
import json
import math
import re
from dataclasses import replace
from importlib import resources

import jsonschema
import numpy as np
import pytest
import torch
from rich.console import Console
from test_gap import SMALL
from typer.testing import CliRunner

from anychip.chips import open_chip
from anychip.cli import build as command_line
from anychip.errors import BundleError, InputError
from anychip.eval.score import ratio
from anychip.gap.load import load_subject
from anychip.gap.matrix import build, fill, from_bundles
from anychip.gap.matrix.as_json import matrix_json
from anychip.gap.matrix.block import Block, lines, with_ratios
from anychip.gap.matrix.page import render
from anychip.gap.matrix.quality import read_eval
from anychip.gap.matrix.serving import read_serving
from anychip.gap.matrix.show import print_matrix
from anychip.gap.matrix.timing import time_together
from anychip.gap.statistics import ratio_of_positive
from anychip.gap.untrained import random_model
from anychip.plan.cost import Price, given_price
from anychip.record import Kind, Quantity

MODELS, CHIPS, LEVELS = ("nano", "other"), ("cpu", "virtual:ascend910b"), ("model", "quality", "speed")
FEW = replace(SMALL, questions=12, train_steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def subjects():
    first = load_subject("nano", None, FEW)
    weights = {name: value * 1.01 if value.dim() > 1 and value.is_floating_point() else value
               for name, value in first.weights.items()}
    return [first, replace(first, name="other", weights=weights)]


@pytest.fixture(scope="module")
def grid(subjects, folder):
    return fill(subjects, CHIPS, LEVELS, folder)


@pytest.fixture(scope="module")
def matrix(grid):
    return build(grid, prices={"cpu": given_price(0.36)})


def block(matrix, name) -> Block:
    return next(one for one in matrix.blocks if one.name == name)


def test_each_chip_is_compared_on_one_model_and_each_model_on_one_chip(matrix):
    assert set(matrix.comparisons) == {("nano", CHIPS[1]), ("other", CHIPS[1])}
    assert [name for name, _ in block(matrix, "KL divergence from the first chip").cells] == list(MODELS)
    assert not block(matrix, "KL divergence from the first chip").across_models
    assert {(line.about, re.split(" on |:", line.text())[0]) for line in matrix.verdict} == {
        ("chips", "nano"), ("chips", "other"), ("models", "other")}


def test_relative_quality_is_the_paired_ratio_of_the_same_questions(matrix, grid):
    right = [grid.bundles[model, "cpu"].tensors["quality/scores"].argmax(1).numpy() == 0 for model in MODELS]
    both, only = int((right[0] & right[1]).sum()), [int((a & ~b).sum()) for a, b in (right, right[::-1])]
    found = block(matrix, "quality: continuations of the text").across_models["other", "cpu"]
    wanted = ratio(both, *only)
    assert (found.value, found.low, found.high) == (100 * wanted.value, 100 * wanted.low, 100 * wanted.high)


def test_rates_of_one_session_are_paired_by_round(matrix, grid):
    rates = [np.array(grid.bundles[model, "cpu"].tables["speed"]["rounds"]["decode"]) for model in MODELS]
    found = block(matrix, "decoding one sequence").across_models["other", "cpu"]
    assert math.isclose(found.value, np.exp(np.log(rates[1] / rates[0]).mean()))
    assert found.low < found.value < found.high
    assert found.kind is Kind.MEASURED and set(block(matrix, "decoding one sequence").across_chips) == set()


def test_a_ratio_of_paired_rounds_leaves_out_what_slows_the_machine():
    slow = np.array([1.0, 5.0, 1.0, 9.0, 2.0])
    paired, apart = (ratio_of_positive(100 / slow, 50 / slow, paired=one) for one in (True, False))
    assert math.isclose(paired.value, 0.5) and paired.high - paired.low < 1e-12
    assert math.isclose(apart.value, 0.5) and apart.low < 0.2 and apart.high > 1
    assert math.isnan(ratio_of_positive(np.ones(1), np.ones(1), paired=False).low)


def test_cost_is_rent_for_the_time_of_a_million_tokens(matrix):
    rate, cost = block(matrix, "training").cells["nano", "cpu"], block(matrix, "cost of training").cells["nano", "cpu"]
    assert math.isclose(cost.value, 0.36 / 3600 * 1e6 / rate.value) and cost.kind is Kind.MEASURED
    virtual = block(matrix, "cost of training, published model")
    assert virtual.cells["nano", CHIPS[1]].unit == "CNY/Mtoken" and not virtual.across_chips
    assert "38.45 CNY a device-hour (China Telecom" in matrix.prices[CHIPS[1]]


def test_a_kept_run_is_taken_up_and_another_one_refused(subjects, folder, grid):
    again = fill(subjects, CHIPS, LEVELS, folder)
    rounds = [one.bundles["nano", "cpu"].tables["speed"]["rounds"]["session"] for one in (grid, again)]
    assert rounds[0] == rounds[1] and set(again.bundles) == set(grid.bundles)
    with pytest.raises(BundleError, match="other settings, no level op.*choose another folder"):
        fill([replace(subjects[0], settings=SMALL)], CHIPS, ("op",), folder)


def test_recordings_make_a_grid_and_a_missing_cell_is_said(grid):
    bundles = [grid.bundles[key] for key in (("nano", "cpu"), ("nano", CHIPS[1]), ("other", "cpu"))]
    found = build(from_bundles(bundles))
    assert found.missing == [("other", CHIPS[1])] and set(found.comparisons) == {("nano", CHIPS[1])}
    with pytest.raises(BundleError, match="two recordings are of 'nano' on 'cpu'"):
        from_bundles([bundles[0], bundles[0]])


def test_json_keeps_the_schema_and_page_and_terminal_show_every_number(matrix):
    document = json.loads(json.dumps(matrix_json(matrix), allow_nan=False))
    schema = json.loads((resources.files("anychip.gap.report") / "matrix.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)
    assert [len(one["cells"]) for one in document["blocks"]] == [4] * len(matrix.blocks)
    page = render(matrix, {("nano", CHIPS[1]): "x.html"})
    assert not re.findall(r"https?:|<script|<link|<img|@import|\bsrc=", page) and 'href="x.html"' in page
    for width in (80, 130):
        console = Console(width=width, record=True, file=io.StringIO())
        print_matrix(matrix, console)
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= width
    for one in matrix.blocks:
        assert one.name in text and one.name in page
        assert all("<td" in page for line in lines(one, MODELS, CHIPS) for _ in line.values)


def test_random_weights_are_said_to_be_random_and_have_no_quality(grid):
    bundle = grid.bundles["other", "cpu"]
    untrained = replace(bundle, about={**bundle.about, "trained": False})
    found = build(replace(grid, bundles={**grid.bundles, ("other", "cpu"): untrained}))
    quality = block(found, "quality: continuations of the text")
    assert ("other", "cpu") not in quality.cells and "random weights" in quality.why["other", "cpu"]
    assert "other: random, not trained" in found.verdict[0].text()


def test_random_weights_reach_every_part_and_are_refused_for_large_models():
    model, _ = random_model("qwen3-moe-nano", 3)
    state = model.state_dict()
    assert all(value.std() > 0 for name, value in state.items() if value.is_floating_point() and "_scale" not in name
               and value.numel() > 1)
    assert torch.equal(state["embed.weight"], random_model("qwen3-moe-nano", 3)[0].state_dict()["embed.weight"])
    with pytest.raises(InputError, match="v4-flash has .*G parameters and no trained weights"):
        random_model("v4-flash", 0)


def test_eval_runs_and_serving_runs_stand_beside(grid, tmp_path):
    row = {"task": "arithmetic", "digest": "d", "questions": 4, "kind": "measured"}
    rows = [row | {"system": name, "answers": answers} for name, answers in (
        ("nano@cpu", "1110"), ("other@cpu", "1100"), ("anthropic:m", "1111"))]
    rows[2] |= {"against": "nano@cpu", "relative": [4 / 3, 0.9, 2.0], "smallest_seen": 0.5}
    (tmp_path / "eval.json").write_text(json.dumps(rows))
    spread = {"p50": 0.1, "p99": 0.2}
    load = {"kind": "measured", "requests": 9, "new_tokens_per_s": 50.0, "ttft_s": spread, "tpot_s": spread,
            "arrivals": {"closed_loop": 4}, "goodput": {"share": 1.0, "ttft_within_s": 2, "tpot_within_s": 0.1}}
    (tmp_path / "load.json").write_text(json.dumps(load))
    soak = {"failures": 0, "wall_time_s": 7200, "mtbf_s": {"mean": None, "low": 2400.0, "high": None}}
    (tmp_path / "soak.json").write_text(json.dumps(soak))
    serving = [read_serving(f"{cell}={tmp_path / name}.json") for cell, name in (
        ("nano@cpu", "load"), ("other@cpu", "load"), ("other@cpu", "soak"))]
    found = build(grid, evals=[read_eval(tmp_path / "eval.json")], serving=serving)
    relative, wanted = block(found, "quality: arithmetic").across_models["other", "cpu"], ratio(2, 1, 0)
    assert math.isclose(relative.value, 100 * wanted.value) and math.isclose(relative.low, 100 * wanted.low)
    assert "anthropic:m reaches 133.3 % of nano@cpu" in matrix_json(found)["sentences"][0]
    assert block(found, "serving: answers").across_models["other", "cpu"].value == 1.0
    assert "0 failures in 2 h" in block(found, "serving: mean time between failures").why["other", "cpu"]
    with pytest.raises(InputError, match="which is no cell of this matrix"):
        build(grid, serving=[replace(serving[0], cell=("nano", "cuda"))])
    with pytest.raises(InputError, match="not the output of this anychip's `anychip eval"):
        read_eval(tmp_path / "load.json")


def test_ranges_of_rents_are_not_mixed_with_intervals_of_time():
    cells = {("m", "a"): Quantity(2.0, "x", Kind.SIMULATED), ("m", "b"): Quantity(3.0, "x", Kind.MEASURED)}
    found = with_ratios(Block("Cost", "c", "x", "", cells), ["m"], ["a", "b"])
    assert found.across_chips["m", "b"] == Quantity(1.5, "x", Kind.SIMULATED)
    assert Price(1, 4, "USD", "").middle == 2


@pytest.mark.parametrize(("words", "said"), [
    (["--model", "nano", "--chips", "cpu"], "two are compared"),
    (["--model", "nano,nano", "--chips", "cpu,cpu"], "named twice"),
    (["--model", "nano,tiny", "--record", "x.gap", "--chip", "cpu"], "record each"),
    (["--chips", "cpu,cpu:reference", "--price", "cuda=1", "--level", "quality"], "none of the chips"),
    (["--chips", "cpu,cpu:reference", "--price", "cpu=x", "--level", "quality"], "CHIP=USD_AN_HOUR"),
])
def test_bad_options_are_refused_in_words(words, said, tmp_path):
    result = CliRunner().invoke(command_line(), ["gap", *words, "--html", str(tmp_path / "gap.html")])
    assert result.exit_code == 2 and said in result.output


def test_rounds_go_through_all_cells_in_turn(subjects):
    found = time_together({("nano", "cpu"): (subjects[0], open_chip("cpu"))}, rounds=2)
    assert set(found["nano", "cpu"]) == {"session", "prefill", "decode", "training"}
    assert len(found["nano", "cpu"]["decode"]) == 2 and min(found["nano", "cpu"]["decode"]) > 0
