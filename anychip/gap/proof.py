"""The evidence that names a faulty op or part: hard cases of every op, guided runs, guided gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ..chips import Chip, list_chips, open_chip
from ..chips.virtual import VirtualOps
from .bundle import Bundle
from .gradient_level import gradient_errors, reference_gradients
from .guided import Call, Departure, guide, trace
from .localise import Place, locate
from .op_level import record_op_level
from .scenarios import scenarios
from .subject import Subject

# Relative rms difference that a chip's format explains for one op on equal inputs: three unit roundoffs (half a
# unit in the last place each), about twice what rounding inputs, weights and output gives; fp32 leaves room for sums.
EXPLAINED = {"fp32": 1e-5, "tf32": 1.5 * 2**-11, "hf32": 1.5 * 2**-12, "fp16": 1.5 * 2**-11, "bf16": 1.5 * 2**-8,
             "fp8": 1.5 * 2**-4, "fp4": 1.5 * 2**-2}
FLOORS = 8  # how many times a case's own floor an error may be: roundings inside an op are several
GRADIENT = 5e-4  # relative difference of a tensor's gradient in fp32: ten times the largest of 100 clean runs


@dataclass(frozen=True)
class Reference:
    """The plain-torch definition's runs of a subject, which guide every chip's; made once, when first asked for."""

    subject: Subject

    @cached_property
    def chip(self) -> Chip:
        return open_chip("cpu:reference")

    @cached_property
    def fast_chip(self) -> Chip:
        """The cpu chip where its kernels can be built here, else the definition: for emulations, not for judging."""
        return next(open_chip(status.name) for status in list_chips() if not status.reason)

    @cached_property
    def traces(self) -> dict[str, list[Call]]:
        model = self.subject.model(self.chip)
        return {name: trace(model, scenario) for name, scenario in self._scenarios().items()}

    @cached_property
    def gradients(self) -> tuple[list[Call], dict[str, Tensor]]:
        return reference_gradients(self.subject.model(self.chip), self.subject.ids)

    def departures(self, chip: Chip) -> list[Departure]:
        """Run every scenario on `chip`, guided, and return where its model code departs."""
        return list(self.each_departure(chip))

    def each_departure(self, chip: Chip) -> Iterator[Departure]:
        """Yield the departures scenario by scenario, each run when the first of its own is asked for."""
        model, allowed = self.subject.model(chip), EXPLAINED[chip.precision]
        for name, scenario in self._scenarios().items():
            yield from guide(name, model, chip, scenario, self.traces[name], allowed)

    def gradient_rows(self, chip: Chip) -> list[dict[str, Any]]:
        """Return one row a parameter of the first step's gradient: error, what is allowed, and whether it is a gap.

        Allowed are `FLOORS` times what the definition loses when emulated in the chip's format.
        """
        errors = gradient_errors(self.subject.model(chip), chip.device, self.subject.ids, self.gradients)
        floors = self._gradient_floors(chip.precision)
        return [{"name": name, "error": error, "allowed": floors[name], "gap": not error <= floors[name]}
                for name, error in errors.items()]

    def _gradient_floors(self, precision: str) -> dict[str, float]:
        if precision == "fp32":
            return dict.fromkeys(self.gradients[1], GRADIENT)
        model = self.subject.model(self.chip)
        model.ops = VirtualOps(model.ops, precision)
        errors = gradient_errors(model, self.chip.device, self.subject.ids, self.gradients)
        return {name: max(GRADIENT, EXPLAINED[precision], FLOORS * error) for name, error in errors.items()}

    def _scenarios(self) -> dict[str, Any]:
        return scenarios(self.subject.ids, self.subject.config.num_nextn_predict_layers)


def record_hard_cases(subject: Subject, chip: Chip, bundle: Bundle) -> None:
    """Every op on hard inputs against its float64 golden; seeded by the subject's seed."""
    bundle.tables["hard_cases"] = record_op_level(chip, subject.settings.seed, config=subject.config)


def record_guided(reference: Reference, chip: Chip, bundle: Bundle) -> None:
    """Guided runs and guided gradients: where the model's code departs though no op does."""
    bundle.tables["departures"] = [asdict(departure) for departure in reference.departures(chip)]
    bundle.tables["gradients"] = reference.gradient_rows(chip)


def judged_cases(a: Bundle, b: Bundle) -> list[dict[str, Any]]:
    """Return b's hard cases with what is allowed and whether each is a gap: three-way, golden, a and b.

    Allowed is the largest of: what the coarser format explains, `FLOORS` times the case's own floor, twice a's error.
    """
    explained, rows = max(EXPLAINED[bundle.about["precision"]] for bundle in (a, b)), []
    for mine, theirs in zip(b.tables["hard_cases"], a.tables["hard_cases"], strict=True):
        allowed = max(explained, FLOORS * max(mine["floor"], theirs["floor"]), 2 * _finite(theirs["error"]))
        rows.append(mine | {"error_a": theirs["error"], "allowed": allowed, "gap": not mine["error"] <= allowed})
    return rows


def _finite(error: float) -> float:
    return error if error < float("inf") else 0.0


def places(a: Bundle, b: Bundle, levels: Sequence[str] = ("op", "layer")) -> list[Place]:
    """Return where b departs from a, likeliest first, by the levels that both have."""
    ops = [*judged_cases(a, b), *_replays(a, b)] if "op" in levels else []
    if "layer" not in levels:
        return locate(ops, [], [])
    seen = {(d["scenario"], d["call"], d["argument"]) for d in a.tables["departures"]}
    found = [Departure(**d) for d in b.tables["departures"] if (d["scenario"], d["call"], d["argument"]) not in seen]
    return locate(ops, found, b.tables["gradients"])


def _replays(a: Bundle, b: Bundle) -> list[dict[str, Any]]:
    """The op calls of the reference's own run, as rows like the hard cases': real inputs, larger than theirs.

    `index_topk` is left out: near ties of real scores may go either way, and the hard cases judge it with its scores.
    """
    explained, rows = max(EXPLAINED[bundle.about["precision"]] for bundle in (a, b)), []
    for mine, theirs in zip(b.tables.get("ops", []), a.tables.get("ops", []), strict=True):
        allowed = max(explained, 2 * _finite(theirs["error"]))
        rows.append({"op": mine["op"], "case": f"the text's own values in {mine['layer']}", "direction": "forward",
                     "of": "output", "error": mine["error"], "allowed": allowed,
                     "gap": mine["op"] != "index_topk" and not mine["error"] <= allowed})
    return rows
