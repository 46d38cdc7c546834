"""How wrong the planner is: every published row predicted, with its error, or the reason why it cannot be.

Training rows with a stated layout and serving rows are what the constants were fitted on; each also gets a held-out
error, from constants fitted without its fold (one Gauss-Newton step from the shipped constants, whose residuals are
nearly linear in them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AnychipError
from .calibrate import Observation, quantile
from .constants import Constants, constants
from .failure_rows import failure_prediction
from .rows import Row, Unusable, read_rows
from .serve_rows import ServeCase, serve_case
from .train import plan_train
from .train_rows import TrainCase, train_case

GROUPS = ("training, layout stated", "training, layout not stated", "serving", "failure")
# group -> (median, 90th percentile) of |error| that the planner is held to
TARGETS = {GROUPS[0]: (0.10, 0.25), GROUPS[2]: (0.20, 0.40)}
FOLDS = 5


@dataclass(frozen=True)
class Judged:
    """One row: group, predicted and published figure, relative error, and the error when it was held out."""

    row: Row
    group: str
    predicted: float
    published: float
    held_out: float | None = None
    note: str = ""

    @property
    def error(self) -> float:
        """Predicted over published, less one."""
        return self.predicted / self.published - 1


@dataclass(frozen=True)
class Validation:
    """All rows: judged ones, and (row, reason) of those that cannot be modelled."""

    judged: tuple[Judged, ...]
    unusable: tuple[tuple[Row, str], ...]

    def of(self, group: str) -> list[Judged]:
        """Return the judged rows of a group."""
        return [judged for judged in self.judged if judged.group == group]

    def summary(self, group: str, *, held_out: bool = False) -> tuple[int, float, float]:
        """Return (rows, median |error|, 90th percentile) of a group."""
        rows = self.of(group)
        errors = [j.held_out if held_out else j.error for j in rows]
        known = [error for error in errors if error is not None]
        return len(known), quantile(known, 0.5), quantile(known, 0.9)


def validate(path: Path | None = None, *, folds: int = FOLDS, c: Constants | None = None, trace: bool = True
             ) -> Validation:
    """Judge every row of a file with `published.csv`'s columns, the shipped rows by default.

    `folds` 0 leaves the held-out errors out. `trace` simulates schedules, otherwise they are taken in closed form (the
    same within 2 %, four times as fast). Raises InputError for a file that cannot be read.
    """
    c = c or constants()
    judged: list[Judged] = []
    unusable: list[tuple[Row, str]] = []
    cases: dict[int, Any] = {}
    for row in read_rows(path):
        try:
            found, case = _judge(row, c, trace=trace)
        except (Unusable, AnychipError) as error:
            unusable.append((row, " ".join(str(error).split())))
            continue
        if case is not None:
            cases[len(judged)] = case
        judged.append(found)
    if folds:
        judged = _with_held_out(judged, cases, c, folds)
    return Validation(tuple(judged), tuple(unusable))


def _judge(row: Row, c: Constants, *, trace: bool) -> tuple[Judged, Any]:
    task = row["task"]
    if task == "train":
        case = train_case(row)
        group = GROUPS[0] if case.stated else GROUPS[1]
        note = f"{case.parallel.describe()}, {case.job.precision}, {case.job.sequences} x {case.job.length}"
        return Judged(row, group, predict_train(case, c, trace=trace), case.published, note=note), case
    if task in ("decode", "prefill"):
        served = serve_case(row)
        return Judged(row, GROUPS[2], served.predict(c), served.published), served
    if task == "failure":
        predicted, published, note = failure_prediction(row)
        return Judged(row, GROUPS[3], predicted, published, note=note), None
    raise Unusable(f"a task {task!r} is not planned; tasks are train, prefill, decode, failure")


def predict_train(case: TrainCase, c: Constants, *, trace: bool = False) -> float:
    """Return a training case's figure; fits take the schedules in closed form, `trace` simulates them."""
    return case.predicted(plan_train(case.model, case.cluster, case.parallel, case.job, c=c, trace=trace))


def fitted_names(c: Constants, group: str) -> list[str]:
    """Return the names of the constants that are fitted on training or on serving rows."""
    starts = ("train.", "stack.") if group == "train" else ("serve.",)
    return [name for name, constant in c.by_name.items() if constant.fitted and name.startswith(starts)]


def _with_held_out(judged: Sequence[Judged], cases: dict[int, Any], c: Constants, folds: int) -> list[Judged]:
    """The rows with held-out errors: those that the constants were fitted on by folds, all others by the constants."""
    found = list(judged)
    tasks: list[tuple[str, str, Callable[[Any, Constants], float]]] = [
        (GROUPS[0], "train", predict_train), (GROUPS[2], "serve", ServeCase.predict)]
    for group, kind, predict in tasks:
        places = [i for i, j in enumerate(judged) if j.group == group]
        fitted = [i for i in places if judged[i].row["id"] in c.rows[kind]]
        errors = {i: judged[i].error for i in places if i not in fitted}
        if len(fitted) >= 2 * folds:
            observations = [Observation(judged[i].row["id"], cases[i], judged[i].published) for i in fitted]
            errors |= zip(fitted, held_out_linear(observations, predict, c, fitted_names(c, kind), folds), strict=True)
        for i, error in errors.items():
            found[i] = replace(found[i], held_out=error)
    return found


def held_out_linear(observations: Sequence[Observation], predict: Callable[[Any, Constants], float], c: Constants,
                    names: Sequence[str], folds: int) -> list[float]:
    """Return each observation's relative error by constants re-fitted without its fold, to first order.

    The residuals' slopes are taken once; each fold solves robust normal equations (weights of soft L1) on the others.
    """
    names = [name for name in names if c[name] > 0]
    base = np.array([math.log(predict(o.case, c) / o.published) for o in observations])
    step = 0.02
    columns = []
    for name in names:
        moved = c.with_values({name: c[name] * math.exp(step)})
        columns.append([(math.log(predict(o.case, moved) / o.published) - b) / step
                        for o, b in zip(observations, base, strict=True)])
    slopes = np.array(columns).T
    order = np.random.default_rng(0).permutation(len(observations))
    errors = [0.0] * len(observations)
    for k in range(folds):
        out = set(order[k::folds].tolist())
        kept = [i for i in range(len(observations)) if i not in out]
        weight = 1 / np.sqrt(1 + (base[kept] / 0.1) ** 2)
        a = slopes[kept] * weight[:, None]
        ridge = 0.05 * np.eye(len(names))
        change = np.linalg.solve(a.T @ slopes[kept] + ridge, -(a.T @ base[kept]))
        low = np.log([max(c.by_name[n].low, 1e-12) / c[n] for n in names])
        high = np.log([c.by_name[n].high / c[n] for n in names])
        fitted = c.with_values({n: c[n] * math.exp(float(d)) for n, d in
                                zip(names, np.clip(change, low, high), strict=True)})
        for i in out:
            errors[i] = predict(observations[i].case, fitted) / observations[i].published - 1
    return errors
