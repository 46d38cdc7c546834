"""How the report says things: numbers with unit and kind, and the verdict in plain words."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ...record import Kind, Quantity
from ..compare import Comparison, Row
from ..numerics import DISCRETE
from ..proof import EXPLAINED

TAGS = {Kind.MEASURED: "meas", Kind.EMULATED: "emul", Kind.SIMULATED: "sim", Kind.PUBLISHED: "publ"}
MEANINGS = {
    Kind.MEASURED: "counted or timed on the chip itself",
    Kind.EMULATED: "real maths in the chip's number formats, run on another machine",
    Kind.SIMULATED: "from a model of time or memory; no chip took part",
    Kind.PUBLISHED: "somebody else's figure; the chip's facts file names its source",
}


class Mark(str, Enum):
    """What a line of the verdict tells, as the word that is printed before it."""

    SAME = "same"  # nothing beyond what the formats or chance explain
    DIFFERS = "differs"  # something beyond it
    FACT = "fact"  # a number to judge by yourself
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """One line of the verdict: its mark, what it is about, and a sentence of words and quantities."""

    mark: Mark
    about: str
    parts: tuple[str | Quantity, ...]

    def text(self) -> str:
        """Return the sentence with every quantity in full: value, interval, unit, kind."""
        return "".join(p if isinstance(p, str) else full(p) for p in self.parts)


def number(value: float | None) -> str:
    """Return a number for reading: `unknown`, `NaN`, thousands with commas, four significant digits otherwise."""
    if value is None:
        return "unknown"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 1e-3 else f"{value:.2e}"


def interval(quantity: Quantity) -> str:
    """Return `[low, high]`, or nothing where no interval is known."""
    if quantity.value is None or quantity.low is None or quantity.high is None:
        return ""
    return f"[{number(quantity.low)}, {number(quantity.high)}]"


def full(quantity: Quantity) -> str:
    """Return value, interval, unit and the kind's tag in one line; `unknown` alone where there is no value."""
    if quantity.value is None:
        return "unknown"
    parts = (number(quantity.value), interval(quantity), quantity.unit, f"({TAGS[quantity.kind]})")
    return " ".join(part for part in parts if part)


def seconds(value: float, kind: Kind) -> Quantity:
    """Return a time in the unit that keeps it short: s, ms or us."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return Quantity(value / size, unit, kind)
    return Quantity(value / 1e-6, "us", kind)


def visible(text: str) -> str:
    """Return untrusted text with line breaks and control characters made visible, so that they cannot act."""
    return "".join("\u23ce" if c == "\n" else c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def chip_names(comparison: Comparison) -> tuple[str, str]:
    """Return both chips' names; with what is running them added where the names are the same."""
    a, b = str(comparison.about_a["chip"]), str(comparison.about_b["chip"])
    return (a, b) if a != b else (f"{a} (first)", f"{b} (second)")


def coarser_format(comparison: Comparison) -> str:
    """Return the number format that `explained` stands for: the coarser one of the two chips."""
    formats = (str(about["precision"]) for about in (comparison.about_a, comparison.about_b))
    return max(formats, key=EXPLAINED.__getitem__)


def command(comparison: Comparison) -> str:
    """Return the command that runs this comparison again where both chips are on one machine."""
    about = comparison.about_a
    words = ["anychip", "gap", "--model", str(about["model"]),
             "--chips", f"{about['chip']},{comparison.about_b['chip']}"]
    seed = about["settings"]["seed"]
    return shlex.join(words + (["--seed", str(seed)] if seed else []))


def equal_tokens(row: dict[str, Any]) -> str:
    """Return how much of a generated text both chips share."""
    if row["identical"]:
        return f"identical, {row['tokens']} tokens"
    if row["same_tokens"] == 0:
        return "the first token differs already"
    return f"the first {row['same_tokens']} of {row['tokens']} tokens are equal"


def limits_note(limits: dict[str, Any] | None) -> str:
    """Return whose limits time a chip, and which of them are estimates."""
    if limits is None:
        return "no facts file describes this chip, so nothing of it is simulated"
    guesses = ", ".join(limits["guesses"])
    return f"limits of {limits['device']}; " + (f"our estimates among its facts: {guesses}" if guesses
                                               else "none is an estimate")


def row_unit(row: Row) -> str:
    """Return the unit of a row's numbers; a gap in another unit (a ratio) says its own."""
    return next((side.unit for side in (row.a, row.b, row.gap) if side is not None), "")


def row_note(row: Row) -> str:
    """Return a row's note; for an op whose result is a choice, what its numbers are instead."""
    choice = "share of the choices that differ" if row.name in DISCRETE else ""
    return "; ".join(part for part in (row.note, choice) if part)


def headline(comparison: Comparison) -> str:
    """Return the verdict in one sentence."""
    name = coarser_format(comparison)
    if comparison.places:
        return f"Faulty: {comparison.places[0].text}"
    if comparison.departs_op is not None:
        return f"First op that departs: {comparison.departs_op}"
    if comparison.departs_layer is not None:
        return (f"Every op is within what {name} explains; layers drift further than independent errors would, from "
                f"{comparison.departs_layer} on")
    return f"No op and no layer departs beyond what {name} explains"


def verdicts(comparison: Comparison) -> list[Verdict]:
    """Return the whole verdict, most telling lines first."""
    return [_faults(comparison), _ops(comparison), _layers(comparison), *_model(comparison), _training(comparison),
            _generation(comparison), *_speed(comparison), _memory(comparison)]


def beyond(row: Row, bound: float) -> bool:
    """Tell whether a row's gap is larger than the bound, or unknown."""
    return not (row.gap is not None and row.gap.value is not None and row.gap.value <= bound)


def _explained(comparison: Comparison, bound: float) -> str:
    return f"{coarser_format(comparison)} explains up to {number(bound)}"


def _faults(comparison: Comparison) -> Verdict:
    """What the hard cases and the guided runs say: no fault, or where."""
    cases = len(comparison.hard_cases)
    if not comparison.places:
        worst = max(comparison.hard_cases, key=lambda row: row["error"] / row["allowed"])
        return Verdict(Mark.SAME, "faults", (
            f"none found: {cases} hard cases of every op against float64 (nearest to its bound: {worst['op']} "
            f"{worst['direction']}, {number(worst['error'])} of {number(worst['allowed'])} allowed), the model's code "
            "in guided runs (whole, packed, chunks, decode, MTP), and its gradients",))
    return Verdict(Mark.DIFFERS, "faults", ("; ".join(place.text for place in comparison.places),))


def _ops(comparison: Comparison) -> Verdict:
    if not comparison.ops:
        return Verdict(Mark.UNKNOWN, "ops", ("no op was recorded",))
    worst = next((row for row in comparison.ops if row.name not in DISCRETE), comparison.ops[0])
    tail: tuple[str | Quantity, ...] = (f"largest relative rms difference, in {worst.name}: ", _gap(worst),
                                        f"; {_explained(comparison, comparison.explained)}")
    if comparison.departs_op is None:
        return Verdict(Mark.SAME, "ops", ("none departs on equal inputs; ", *tail))
    return Verdict(Mark.DIFFERS, "ops", (f"first that departs on equal inputs: {comparison.departs_op}; ", *tail))


def _layers(comparison: Comparison) -> Verdict:
    if not comparison.layers:
        return Verdict(Mark.UNKNOWN, "layers", ("no layer was recorded",))
    last = comparison.layers[-1]
    bound = _explained(comparison, comparison.explained_layers)
    tail = (f"after the last one, {last.name}, the streams differ by ", _gap(last), " (relative rms)")
    if comparison.departs_layer is None:
        return Verdict(Mark.SAME, "layers", (f"none departs: {bound}; ", *tail))
    return Verdict(Mark.DIFFERS, "layers",
                   (f"first that departs: {comparison.departs_layer}; {bound}; ", *tail))


def _model(comparison: Comparison) -> list[Verdict]:
    kl, top1, loss = (_find(comparison.model, name) for name in ("KL divergence", "top-1 agreement", "loss"))
    return [
        Verdict(_fact(kl), "next token", ("KL divergence of the distributions on real text: ", _gap(kl),
                                          "; 0 would be equal")),
        Verdict(_fact(top1), "best guess", ("both chips guess the same next token for ", _gap(top1),
                                            f" of {top1.note}")),
        Verdict(_judged(_gap(loss)), "loss", ("loss on real text, B less A: ", _gap(loss),
                                              _against_zero(_gap(loss)))),
    ]


def _training(comparison: Comparison) -> Verdict:
    if not comparison.training:
        return Verdict(Mark.UNKNOWN, "training", ("no training step was recorded",))
    end, largest = _find(comparison.training, "loss after"), _find(comparison.training, "largest loss")
    return Verdict(_fact(largest), "training", (f"{end.name}, B less A: ", _gap(end), "; largest difference ",
                                                _gap(largest), f" {largest.note}"))


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
    return Mark.FACT if math.isfinite(value) else Mark.DIFFERS


def _judged(gap: Quantity) -> Mark:
    if gap.value is None:
        return Mark.UNKNOWN
    if not math.isfinite(gap.value):
        return Mark.DIFFERS
    if gap.low is None or gap.high is None:
        return Mark.FACT
    return Mark.SAME if gap.low <= 0 <= gap.high else Mark.DIFFERS


def _against_zero(gap: Quantity) -> str:
    return {Mark.SAME: "; the interval holds 0, so this text shows no difference",
            Mark.DIFFERS: "; the interval leaves out 0" if gap.value is not None and math.isfinite(gap.value) else ""
            }.get(_judged(gap), "")
