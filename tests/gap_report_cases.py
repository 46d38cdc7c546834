"""A comparison made by hand: every kind, an interval, an unknown, NaN, a departure, and text that tries to escape."""

import functools
import math
from dataclasses import replace

import numpy as np

from anychip.gap.compare import Comparison
from anychip.gap.compare_speed import Step
from anychip.gap.localise import Place
from anychip.gap.noise import KINDS
from anychip.gap.quality import Quality
from anychip.gap.record import LEVELS
from anychip.gap.report.html import render
from anychip.gap.row import Row
from anychip.gap.shortfall import causes, joined
from anychip.gap.statistics import mcnemar, paired_t
from anychip.gap.train_level import Family, Member, Training
from anychip.record import Kind, Quantity

ATTACK = "</p><script>alert('x')</script> & \x1b[31m\u202e[bold]red[/bold]\nline"


def about(chip: str, precision: str, numerics: Kind, timing: Kind) -> dict:
    """Return a bundle's description of a chip."""
    return {"chip": chip, "description": f"the {chip} of a test", "precision": precision, "numerics": numerics.value,
            "timing": timing.value, "versions": {"torch": "2.13.0"}, "anychip": "0.1.0", "model": "nano",
            "digests": {"weights": "ab" * 32, "tokens": "cd" * 32, "settings": "ef" * 32},
            "settings": {"seed": 7, "text_tokens": 64}}


def emulated(value: float | None, unit: str = "", low: float | None = None, high: float | None = None) -> Quantity:
    """Return an emulated quantity."""
    return Quantity(value, unit, Kind.EMULATED, low, high)


def simulated(value: float | None, unit: str) -> Quantity:
    """Return a simulated quantity."""
    return Quantity(value, unit, Kind.SIMULATED)


def top(time_s: float) -> list[dict]:
    """Return ten costliest ops."""
    return [{"op": f"op{i} backward", "shape": "[64, 32] x [32, 64]", "calls": 43, "time_s": time_s / 2**i,
             "share": 0.4 / 2**i} for i in range(10)]


def groups(time_s: float) -> list[dict]:
    """Return the ten ops with what is possible: a launch and half of the rest are lost."""
    return [row | {"possible_s": row["time_s"] / 2, "memory_s": row["time_s"] / (2 if i % 2 else 4), "flops": 1e12,
                   "bytes": 1e9, "launch_s": row["time_s"] / 10, "source": "kernels", "rows": 64}
            for i, row in enumerate(top(time_s))]


def runs(slowness: int) -> list[list[float]]:
    """Return the losses of two seeds."""
    return [[8 + seed / 5 - i / (slowness + seed / 10) for i in range(12)] for seed in (0, 1)]


def training_of(a: list[list[float]], b: list[list[float]]) -> Training:
    """Return the train level of two chips' losses."""
    test = paired_t(*(np.array(side)[:, -3:].mean(1) for side in (a, b)))
    first = max(abs(x[0] - y[0]) for x, y in zip(a, b, strict=True))
    return Training(2, 12, (a, b), first, test, 7.4, True,
                    Family(162, 0.05, Member("head.weight", 0.0 if a == b else 0.01, 0.4)),
                    Family(64, 0.01, Member("layers.1.ffn expert 3", 0.0 if a == b else 0.02, 0.3)), Kind.EMULATED)


def comparison() -> Comparison:
    """Return the comparison; `b` departs in one op and from one layer on, and its chip's memory is unknown."""
    measured = Quantity(2.5e-8, "", Kind.MEASURED)
    ops = [Row("experts", measured, emulated(0.031), emulated(0.03125), "5 calls, largest in layers.1.ffn"),
           Row("linear", measured, emulated(0.0024), emulated(0.00244)),
           Row("index_topk", measured, emulated(0.0), emulated(0.0))]
    layers = [Row(f"layers.{i}", None, None, emulated(0.003 * 4**i)) for i in range(4)]
    model = [Row("KL divergence", None, None, emulated(0.0123, "nats/token", 0.0101, 0.0145), "64 positions"),
             Row("top-1 agreement", None, None, emulated(96.5, "%", 95.1, 97.6), "64 tokens of real text"),
             Row("loss (teacher-forced)", Quantity(5.0, "nats/token", Kind.MEASURED, 4.9, 5.1),
                 emulated(5.02, "nats/token", 4.92, 5.12), emulated(0.02, "nats/token", -0.01, 0.05))]
    training = [Row("loss after 12 steps", Quantity(7.2, "nats/token", Kind.MEASURED), emulated(7.25, "nats/token"),
                    emulated(0.05, "nats/token")),
                Row("largest loss difference", None, None, emulated(0.06, "nats/token"), "over 12 steps, one seed")]
    speed = [Row("v4-flash: training", simulated(100.0, "tokens/s"), simulated(250.0, "tokens/s"), simulated(2.5, "x")),
             Row("v4-flash: decode step at 4096 tokens", simulated(20.0, "ms"), simulated(10.0, "ms"),
                 simulated(0.5, "x")),
             Row("nano: decode step", Quantity(3.9, "ms", Kind.MEASURED, 3.8, 4.1), None)]
    memory = [Row("v4-flash: weights", simulated(1137.0, "GB"), simulated(568.0, "GB")),
              Row("memory of the chip", Quantity(68.7, "GB", Kind.PUBLISHED), Quantity(None, "GB", Kind.PUBLISHED)),
              Row("chips that hold the weights", simulated(17, ""), simulated(None, ""))]
    text = {"prompt": "Once " + ATTACK, "a": "upon a time", "b": "upon a horse " + ATTACK, "tokens": 8,
            "same_tokens": 2, "identical": False}
    return Comparison(
        about_a=about("cpu", "fp32", Kind.MEASURED, Kind.MEASURED),
        about_b=about("virtual:x1", "bf16", Kind.EMULATED, Kind.SIMULATED), levels=list(LEVELS), kind=Kind.EMULATED,
        explained=3 * 2**-8,
        explained_layers=3 * 2**-8, ops=ops, layers=layers,
        departs_op="experts in layers.1.ffn", departs_layer="layers.1", model=model,
        kl_by_position=[0.01 * (1 + i % 7) for i in range(64)], generation=[text], training=training,
        train=training_of(runs(10), runs(11)),
        quality=Quality(120, (0.6, 0.575), (4, 1), mcnemar(4, 1, 120), 0.07, 0.01, 4000.0), speed=speed,
        costliest=(top(3.0), top(0.5)), memory=memory, kl_positions=list(range(0, 2048, 32)),
        costliest_decode=(top(0.02), top(0.0004)),
        steps=[Step("training step", Kind.SIMULATED, joined(groups(3.0), groups(0.5)), simulated(61.0, "%"),
                    causes(groups(0.5), groups(3.0)))],
        limits=({"name": "cpu", "device": "a processor", "guesses": []},
                {"name": "x1", "device": "one X1", "guesses": ["launch.matmul", "efficiency.vector"]}),
        noise=[Row(words, Quantity(1e-9, "nats/token", Kind.MEASURED), emulated(0.004 if name == "format" else 1e-8,
                                                                               "nats/token"))
               for name, words in KINDS.items()],
        hard_cases=[{"op": "experts", "case": "outliers", "direction": "forward", "of": "output", "error": 0.5,
                     "floor": 0.001, "error_a": 1e-7, "allowed": 0.01, "gap": True}],
        places=[Place("experts", "op", "op experts: its result is 0.5 from the float64 golden", 0.5)])


def broken() -> Comparison:
    """Return a comparison in which nothing works: NaN everywhere, and no facts of either chip."""
    nan = emulated(math.nan, "nats/token", math.nan, math.nan)
    whole = comparison()
    nothing = [[8.0] * 12] * 2, [[math.nan] * 12] * 2
    return replace(
        whole, ops=[replace(row, b=nan, gap=nan) for row in whole.ops],
        layers=[replace(row, gap=nan) for row in whole.layers],
        model=[replace(row, gap=nan) for row in whole.model], training=[replace(r, gap=nan) for r in whole.training],
        kl_by_position=[math.nan] * 64, train=training_of(*nothing), costliest=([], []),
        costliest_decode=([], []), limits=(None, None),
        speed=[Row("v4-flash: training", simulated(None, "tokens/s"), simulated(None, "tokens/s"))])


def equal() -> Comparison:
    """Return a comparison of a chip with itself: every difference is exactly zero."""
    whole = comparison()
    zero = emulated(0.0, "", 0.0, 0.0)
    text = whole.generation[0] | {"b": whole.generation[0]["a"], "identical": True, "same_tokens": 8}
    return replace(
        whole, about_b=whole.about_a, departs_op=None, departs_layer=None, generation=[text], places=[],
        hard_cases=[row | {"error": 0.0, "gap": False} for row in whole.hard_cases],
        ops=[replace(row, gap=zero) for row in whole.ops], layers=[replace(row, gap=zero) for row in whole.layers],
        model=[replace(row, gap=zero) for row in whole.model], kl_by_position=[0.0] * 64,
        train=training_of(runs(10), runs(10)),
        quality=replace(whole.quality, right=(0.6, 0.6), changed=(0, 0), test=mcnemar(0, 0, 120)))


CASES = {"departs": comparison, "broken": broken, "equal": equal}


@functools.cache
def page_of(name: str) -> str:
    """Return a case's page, rendered once a test run."""
    return render(CASES[name]())
