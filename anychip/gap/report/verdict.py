"""The verdict in plain words: one line a topic, marked same, within noise, or real gap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ...record import Kind, Quantity
from ..compare import Comparison
from ..noise import KINDS
from ..numerics import DISCRETE
from ..row import Row
from ..statistics import LEVEL
from .marks import Mark, Verdict
from .training import training_verdicts
from .words import TAGS, coarser_format, number, row_unit

UNTRAINED = ("random, not trained: what the model says and answers means nothing; ops, layers, distributions, training "
             "and speed hold")
RESOLUTION = 1e-6  # nats a token: what float32 log-probabilities of about -10 can tell apart
FORMAT_FACTOR = 2  # a chip may round twice as often as the emulation, which rounds what ops read and write


def headline(comparison: Comparison) -> str:
    """Return the verdict in one sentence."""
    name = coarser_format(comparison)
    if comparison.places:
        return f"Faulty: {comparison.places[0].text}"
    if comparison.departs_op is not None:
        return f"First op that departs: {comparison.departs_op}"
    if not {"op", "layer"} & set(comparison.levels):
        return f"Compared: {', '.join(comparison.levels)}"
    if comparison.departs_layer is not None:
        return (f"Every op is within what {name} explains; layers drift further than independent errors would, from "
                f"{comparison.departs_layer} on")
    return f"No op and no layer departs beyond what {name} explains"


def verdicts(comparison: Comparison) -> list[Verdict]:
    """Return the whole verdict, most telling lines first: a line or several for each level that was compared."""
    lines: dict[str, list[Callable[[Comparison], Verdict | list[Verdict]]]] = {
        "op": [_ops], "layer": [_layers], "model": [_model, _generation], "train": [training_verdicts],
        "quality": [_quality], "speed": [_speed, _shortfall, _memory]}
    found = [] if trained(comparison) else [Verdict(Mark.FACT, "weights", (UNTRAINED,))]
    found += [_faults(comparison)] if {"op", "layer"} & set(comparison.levels) else []
    for level in comparison.levels:
        for line in lines[level]:
            told = line(comparison)
            found += told if isinstance(told, list) else [told]
    return found


def trained(comparison: Comparison) -> bool:
    """Tell whether the weights are a trained model's, not random ones."""
    return bool(comparison.about_a.get("trained", True))


def beyond(row: Row, bound: float) -> bool:
    """Tell whether a row's gap is larger than the bound, or unknown."""
    return not (row.gap is not None and row.gap.value is not None and row.gap.value <= bound)


def _explained(comparison: Comparison, bound: float) -> str:
    return f"{coarser_format(comparison)} explains up to {number(bound)}"


def _faults(comparison: Comparison) -> Verdict:
    """What the hard cases and the guided runs say: no fault, or where."""
    if comparison.places:
        said = "; ".join(place.text for place in comparison.places)
        return Verdict(Mark.GAP, "faults", (f"{said} (B's figures: {comparison.about_b['numerics']})",))
    told = []
    if comparison.hard_cases:
        worst = max(comparison.hard_cases, key=lambda row: row["error"] / row["allowed"])
        kind = TAGS[Kind(comparison.about_b["numerics"])]
        near = f"{worst['op']} {worst['direction']}, {number(worst['error'])} ({kind}) of {number(worst['allowed'])}"
        count = len(comparison.hard_cases)
        told.append(f"{count} hard cases of every op against float64 (nearest to its bound: {near})")
    if "layer" in comparison.levels:
        told.append("the model's code in guided runs (whole, packed, chunks, decode, MTP) and its gradients")
    return Verdict(Mark.SAME, "faults", ("none found: " + "; ".join(told),))


def _ops(comparison: Comparison) -> Verdict:
    if not comparison.ops:
        return Verdict(Mark.UNKNOWN, "ops", ("no op was recorded",))
    worst = next((row for row in comparison.ops if row.name not in DISCRETE), comparison.ops[0])
    tail: tuple[str | Quantity, ...] = (f"largest relative rms difference, in {worst.name}: ", _gap(worst),
                                        f"; {_explained(comparison, comparison.explained)}")
    if comparison.departs_op is None:
        return Verdict(_small(comparison.ops), "ops", ("none departs on equal inputs; ", *tail))
    return Verdict(Mark.GAP, "ops", (f"first that departs on equal inputs: {comparison.departs_op}; ", *tail))


def _layers(comparison: Comparison) -> Verdict:
    if not comparison.layers:
        return Verdict(Mark.UNKNOWN, "layers", ("no layer was recorded",))
    last = comparison.layers[-1]
    bound = _explained(comparison, comparison.explained_layers)
    tail = (f"after the last one, {last.name}, the streams differ by ", _gap(last), " (relative rms)")
    if comparison.departs_layer is None:
        return Verdict(_small(comparison.layers), "layers", (f"none departs: {bound}; ", *tail))
    return Verdict(Mark.GAP, "layers",
                   (f"first that departs: {comparison.departs_layer}; {bound}; ", *tail))


def _small(rows: Sequence[Row]) -> Mark:
    """Of differences that are all explained: the same where every one is exactly 0."""
    return Mark.SAME if all(row.gap is not None and row.gap.value == 0 for row in rows) else Mark.NOISE


def _next_token(comparison: Comparison) -> Verdict:
    """The KL divergence against the chips' own noise and against what the coarser format does to this model."""
    kl = _gap(_find(comparison.model, "KL divergence"))
    said = ("KL divergence of the distributions on real text: ", kl)
    own, formats = (_largest([row for row in comparison.noise if (row.name == KINDS["format"]) is wanted])
                    for wanted in (False, True))
    low = kl.value if kl.low is None else kl.low
    if kl.value is None or low is None or not math.isfinite(kl.value) or own.value is None or formats.value is None:
        return Verdict(Mark.GAP if kl.value is not None and own.value is not None else Mark.UNKNOWN, "next token", said)
    if kl.value == 0:
        return Verdict(Mark.SAME, "next token", (*said, ": equal"))
    if low <= max(own.value, RESOLUTION):
        return Verdict(Mark.NOISE, "next token", (*said, "; a chip's own noise (again, alone, in chunks) reaches ", own,
                                                  f", and float32 log-probabilities resolve {RESOLUTION:.0e}"))
    if low <= FORMAT_FACTOR * formats.value:
        return Verdict(Mark.NOISE, "next token", (
            *said, f"; the definition emulated in {coarser_format(comparison)} departs by up to ", formats,
            "; the chips' own noise is ", own))
    return Verdict(Mark.GAP, "next token", (*said, "; the chips' own noise reaches ", own, ", their number formats ",
                                            formats))


def _largest(rows: Sequence[Row]) -> Quantity:
    """The largest upper end of the rows' intervals, either side."""
    sides = [side for row in rows for side in (row.a, row.b) if side is not None and side.value is not None]
    if not sides:
        return Quantity(None, "nats/token", Kind.MEASURED)
    return max((replace(side, value=side.high if side.high is not None else side.value, low=None, high=None)
                for side in sides), key=lambda side: side.value or 0.0)


def _model(comparison: Comparison) -> list[Verdict]:
    top1, loss = (_find(comparison.model, name) for name in ("top-1 agreement", "loss"))
    next_token, mark, tail = _next_token(comparison), _judged(_gap(loss)), _against_zero(_gap(loss))
    if mark is Mark.GAP and next_token.mark is Mark.NOISE:
        mark, tail = Mark.NOISE, f"{tail}, by less than the number format or the chips' noise explains (next token)"
    return [
        next_token,
        Verdict(_fact(top1), "best guess", ("both chips guess the same next token for ", _gap(top1),
                                            f" of {top1.note}")),
        Verdict(mark, "loss", ("loss on real text, B less A: ", _gap(loss), tail)),
    ]


def _quality(comparison: Comparison) -> Verdict:
    """The same questions on both; no verdict of equality where so few cannot show the difference that is asked for."""
    q, kind = comparison.quality, comparison.kind
    assert q is not None
    if not trained(comparison):
        return Verdict(Mark.UNKNOWN, "quality", (f"{q.num} questions: random weights answer by chance",))
    d = q.test.difference
    points = Quantity(100 * d.value, "points", kind, 100 * d.low, 100 * d.high)
    a, b = (Quantity(100 * share, "%", Kind(about["numerics"]))
            for share, about in zip(q.right, (comparison.about_a, comparison.about_b), strict=True))
    said = (f"{q.num} questions (which of four continuations is the text's own): A right on ", a, ", B on ", b,
            "; B less A ", points,
            f"; {q.changed[0]} right on A alone, {q.changed[1]} on B alone (McNemar p {number(q.test.p)})")
    if q.test.p < 1 - LEVEL:
        return Verdict(Mark.GAP, "quality", said)
    if sum(q.changed) == 0:
        return Verdict(Mark.SAME, "quality", (*said, "; every answer is the same"))
    if q.seen <= q.asked:
        return Verdict(Mark.NOISE, "quality", said)
    return Verdict(Mark.UNKNOWN, "quality", (*said, f"; so many questions show {number(100 * q.seen)} points or more: "
                                             f"{math.ceil(q.wanted):,} would show {number(100 * q.asked)}"))


def _generation(comparison: Comparison) -> Verdict:
    rows = comparison.generation
    if not rows:
        return Verdict(Mark.UNKNOWN, "generation", ("no text was generated",))
    same = sum(row["identical"] for row in rows)
    if same == len(rows):
        said = f"greedy text is the same in {same} of {same} prompts, to the last token"
        return Verdict(Mark.SAME, "generation", (said,))
    lengths = ", ".join(f"{row['same_tokens']} of {row['tokens']}" for row in rows)
    return Verdict(Mark.FACT, "generation", (f"greedy text is the same in {same} of {len(rows)} prompts; "
                                             f"equal tokens from the start: {lengths}",))


def _speed(comparison: Comparison) -> list[Verdict]:
    found = []
    for row in comparison.speed:
        if row.gap is not None:
            assert row.a is not None and row.b is not None
            found.append(Verdict(_fact(row), "speed", (f"{row.name}: A ", row.a, ", B ", row.b, "; B is ",
                                                       _times_as_fast(row), " as fast")))
    if found:
        return found
    return [Verdict(Mark.UNKNOWN, "speed", ("a ratio needs times of both chips, and one has no facts file",))]


def _shortfall(comparison: Comparison) -> list[Verdict]:
    """Why B's steps are not as fast as its chip could be at full peaks: the likeliest causes, largest first."""
    found = []
    for step in comparison.steps:
        said = "; ".join(f"({i}) {cause.text}" for i, cause in enumerate(step.causes, 1))
        said = f". Likeliest causes of the rest: {said}" if said else "; no cause takes as much as 1 % of it"
        tail = f" of its roofline at full peaks (times {step.kind.value}){said}"
        found.append(Verdict(Mark.FACT, "shortfall", (f"{step.name}: B reaches ", step.reached, tail)))
    return found


def _times_as_fast(row: Row) -> Quantity:
    """The ratio of B's speed to A's: rates as they are, times turned over."""
    ratio = _gap(row)
    if ratio.value is None or row_unit(row).endswith("/s"):
        return ratio
    return Quantity(1 / ratio.value, ratio.unit, ratio.kind)


def _memory(comparison: Comparison) -> Verdict:
    row = _find(comparison.memory, "chips that hold")
    assert row.a is not None and row.b is not None
    known = row.a.value is not None or row.b.value is not None
    model = comparison.memory[0].name.split(":")[0]
    return Verdict(Mark.FACT if known else Mark.UNKNOWN, "memory",
                   (f"chips whose memory holds the weights of {model}: A ", row.a, ", B ", row.b))


def _find(rows: Sequence[Row], start: str) -> Row:
    return next(row for row in rows if row.name.startswith(start))


def _gap(row: Row) -> Quantity:
    assert row.gap is not None
    return row.gap


def _fact(row: Row) -> Mark:
    value = _gap(row).value
    if value is None:
        return Mark.UNKNOWN
    return Mark.FACT if math.isfinite(value) else Mark.GAP


def _judged(gap: Quantity) -> Mark:
    if gap.value is None:
        return Mark.UNKNOWN
    if not math.isfinite(gap.value):
        return Mark.GAP
    if gap.low is None or gap.high is None:
        return Mark.FACT
    if gap.low == gap.high == 0:
        return Mark.SAME
    return Mark.NOISE if gap.low <= 0 <= gap.high else Mark.GAP


def _against_zero(gap: Quantity) -> str:
    return {Mark.NOISE: "; the interval holds 0, so this text shows no difference",
            Mark.GAP: "; the interval leaves out 0" if gap.value is not None and math.isfinite(gap.value) else ""
            }.get(_judged(gap), "")
