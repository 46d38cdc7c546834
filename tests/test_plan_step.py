"""Schedules have their published bubbles; searches are exact; times respond as they must."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from anychip.errors import ConfigError, NotSupported
from anychip.plan.cluster import parse_cluster
from anychip.plan.constants import constants
from anychip.plan.cut import Share, cut, uneven
from anychip.plan.fit import Serving
from anychip.plan.imbalance import load_distribution
from anychip.plan.models import find_model
from anychip.plan.parallel import Parallel
from anychip.plan.schedule import Task, orders
from anychip.plan.search import search_layouts, why_not
from anychip.plan.serve import Traffic, plan_decode
from anychip.plan.simulate import pipeline_needs, simulate, write_chrome_trace
from anychip.plan.sources import serve_ops, train_ops, with_kernels
from anychip.plan.train import TrainJob, plan_train
from anychip.plan.work import Batch


def makespan(schedule: str, ranks: int, micros: int, chunks: int = 1) -> float:
    """Seconds of a step whose micro-batch takes 1 s forward and 2 s backward on a rank."""
    each = {"F": 1 / chunks, "B": 2 / chunks, "b": 1 / chunks, "w": 1 / chunks}

    def seconds(task: Task) -> float:
        return sum(each[kind] for kind, _, _ in task.units)

    mirrored = schedule == "dualpipe"
    needs = pipeline_needs(ranks * chunks, mirrored=mirrored)
    return simulate(orders(schedule, ranks, micros, chunks), seconds, needs).makespan_s


@pytest.mark.parametrize(("ranks", "micros"), [(2, 4), (4, 8), (8, 16), (8, 40), (16, 64)])
def test_bubbles_are_the_published_ones(ranks: int, micros: int) -> None:
    work = 3 * micros
    assert makespan("1f1b", ranks, micros) == pytest.approx(work + 3 * (ranks - 1))
    assert makespan("interleaved", ranks, micros, 2) == pytest.approx(work + 3 * (ranks - 1) / 2)
    assert makespan("zero-bubble", ranks, micros) == pytest.approx(work + ranks - 1)  # (p-1)(F + B - 2W) of B, W = 1
    assert makespan("dualpipe", ranks, micros) == pytest.approx(work + (ranks / 2 - 1) * 2)  # (p/2-1)(F&B + B - 3W)


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zero-bubble", "dualpipe"])
def test_every_unit_runs_once_on_its_rank(schedule: str) -> None:
    ranks, micros, chunks = 4, 8, 2 if schedule == "interleaved" else 1
    done = [unit for rank in orders(schedule, ranks, micros, chunks) for task in rank for unit in task.units]
    assert len(done) == len(set(done))
    forward = [unit for unit in done if unit[0] == "F"]
    assert len(forward) == ranks * chunks * micros  # DualPipe: half of the micro-batches on each of two copies
    assert len(forward) == sum(unit[0] in "Bb" for unit in done)
    assert sum(unit[0] == "b" for unit in done) == sum(unit[0] == "w" for unit in done)


def test_a_closed_form_plan_is_the_simulated_one() -> None:
    model, cluster, job = find_model("llama3-70b"), parse_cluster("64xh100"), TrainJob(256, 8192)
    for p in (Parallel(2, 4, 8), Parallel(2, 4, 8, virtual=5, schedule="interleaved")):
        simulated, closed = (plan_train(model, cluster, p, job, trace=trace) for trace in (True, False))
        assert closed.step_s == pytest.approx(simulated.step_s, rel=0.02)
        assert sum(simulated.parts_s.values()) == pytest.approx(simulated.step_s)


def test_a_step_becomes_a_chrome_trace(tmp_path: Path) -> None:
    plan = plan_train(find_model("nano"), parse_cluster("4xh100"), Parallel(2, 1, 2), TrainJob(8, 512))
    assert plan.timeline is not None
    write_chrome_trace(plan.timeline, tmp_path / "step.json")
    events = [e for e in json.loads((tmp_path / "step.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert {e["tid"] for e in events} == {0, 1} and len(events) == 2 * 2 * 4
    assert max(e["ts"] + e["dur"] for e in events) == pytest.approx(plan.timeline.makespan_s * 1e6)


def test_the_search_finds_what_trying_everything_finds() -> None:
    model, cluster, job = find_model("tiny"), parse_cluster("8xh100"), TrainJob(32, 1024)
    found = search_layouts(model, cluster, job)
    tried = []
    for tensor, pipeline, expert, micro, recompute, shard in itertools.product(
            (1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4), ("none", "full"), ("optimizer", "full")):
        for schedule, virtual in (("1f1b", 1), ("interleaved", 2), ("zero-bubble", 1), ("dualpipe", 1)):
            if tensor * pipeline <= 8 and (pipeline > 1 or schedule == "1f1b"):
                p = Parallel(8 // tensor // pipeline, tensor, pipeline, 1, expert, virtual, micro, shard, recompute,
                             schedule)
                try:
                    tried.append(plan_train(model, cluster, p, job, trace=False).step_s)
                except ConfigError:
                    continue
    assert found.best.step_s <= min(tried) * 1.02
    assert "impossible" in found.left_out and found.examined > 100


def test_why_not_says_what_the_other_layout_costs() -> None:
    model, job = find_model("tiny"), TrainJob(32, 1024)
    found = search_layouts(model, parse_cluster("8xh100"), job)
    assert "% slower; most of it is" in why_not(found, model, pipeline=4)
    assert "cannot" in why_not(found, model, expert=7) or "no layout with expert=7" in why_not(found, model, expert=7)


def test_all_reasons_against_a_layout_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        plan_train(find_model("v4-flash"), parse_cluster("64xh100"), Parallel(8, 3, 4, 1, 5), TrainJob(30, 4096))
    for words in ("expert=5 does not divide n_routed_experts=256; use 1, 2, 4", "is 96 devices, not 64",
                  "tensor=3 does not divide num_attention_heads=64", "does not divide the batch of 30"):
        assert words in str(error.value), words


def test_a_chip_without_the_format_is_refused() -> None:
    with pytest.raises(NotSupported, match="ascend910c has no fp8 matrix unit; it has fp32, hf32, fp16, bf16, int8"):
        plan_train(find_model("nano"), parse_cluster("2xascend910c"), Parallel(2), TrainJob(8, 512, "fp8"))


def test_uneven_experts_and_stragglers_cost_time() -> None:
    even, few, many = (load_distribution(256, 64, rows, 8.0) for rows in (10**9, 10**5, 10**3))
    assert 1 < even.mean < few.mean < many.mean and few.median <= few.mean <= few.high * 1.1
    model, cluster, p = find_model("v4-flash"), parse_cluster("128xgb200"), Parallel(128, expert=64)
    even_s, uneven_s = (plan_train(model, cluster, p, TrainJob(256, 4096, "fp8", balanced)).step_s
                        for balanced in (True, False))
    assert even_s < uneven_s


def test_an_uneven_load_reads_no_weight_twice_and_copies_of_popular_experts_even_it_out() -> None:
    part = find_model("v4-flash").work(Batch(4, 1, 4096)).parts["CSA"]
    cuts = cut(part, Share(1, 1, 32))
    twice, routed = uneven(cuts, 2.0), np.array(cuts.ops) == "experts"
    assert np.array_equal(twice.weights, cuts.weights)
    assert np.array_equal(twice.flops, np.where(routed, 2, 1) * cuts.flops)
    without, with_copies = (load_distribution(256, 64, 10**5, 8.0, copies).mean for copies in (0, 64))
    assert 1 < with_copies < without


def test_op_times_of_kernels_are_named_and_only_where_kernels_were_timed() -> None:
    model, cluster, p = find_model("v4-flash"), parse_cluster("64xascend910c"), Parallel(64, expert=64)
    ours = plan_train(model, cluster, p, TrainJob(64, 4096, op_times="kernels"), trace=False)
    sources = {op: each.source for op, each in train_ops(ours, model).items()}
    assert set(sources.values()) == {"kernels"} and {"attention", "experts", "linear", "hc_pre"} <= set(sources)
    vendors = plan_train(model, cluster, p, TrainJob(64, 4096), trace=False)
    assert with_kernels(vendors, model).step_s == ours.step_s != vendors.step_s
    w8a8 = serve_ops(plan_decode(model, cluster, Serving("w8a8", "bf16", op_times="kernels"), Traffic(64, 4096)))
    assert w8a8["experts"].source == "published" and w8a8["attention"].source == "kernels"  # none in int8
    with pytest.raises(NotSupported, match="no kernels were timed for h100; they were for ascend910b1"):
        plan_train(model, parse_cluster("64xh100"), p, TrainJob(64, 4096, op_times="kernels"))


def test_every_constant_is_within_its_range_and_explained() -> None:
    for name, constant in constants().by_name.items():
        assert constant.low <= constant.value <= constant.high and len(constant.meaning) > 8, name


def test_ten_thousand_devices_are_planned_in_seconds() -> None:
    p = Parallel(640, 1, 16, expert=64)
    plan = plan_train(find_model("v4-pro"), parse_cluster("10240xh100"), p, TrainJob(640 * 32, 4096))
    assert plan.timeline is not None and len(plan.timeline.spans) == 2 * 16 * 32
    assert 0.05 < plan.mfu < 0.6
