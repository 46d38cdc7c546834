"""Fitting the constants to published rows: robust least squares of log(predicted / published), with a weak prior.

All free constants of a group are fitted at once. A held-out error comes from leaving each fold out in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from .constants import Constants

Predict = Callable[[Any, Constants], float]
_PRIOR = 0.04  # residual of a constant that is e times its starting value: far weaker than one row


@dataclass(frozen=True)
class Observation:
    """Something published that a prediction can be held to. `weight` scales its residual."""

    name: str
    case: Any
    published: float
    weight: float = 1.0


def fit(observations: Sequence[Observation], predict: Predict, c: Constants, names: Sequence[str],
        max_steps: int = 8, scale: float = 0.1) -> Constants:
    """Return the constants with `names` fitted to the observations, each within its range.

    Errors beyond `scale` (of the logarithm) count less than by their square: 0.1 for training, 0.2 for serving, whose
    rows scatter twice as far.
    """
    start = np.log([max(c[name], 1e-12) for name in names])
    low = np.log([max(c.by_name[name].low, 1e-12) for name in names])
    high = np.log([c.by_name[name].high for name in names])

    def residuals(x: Any) -> Any:
        now = c.with_values(dict(zip(names, np.exp(x), strict=True)))
        errors = [o.weight * math.log(predict(o.case, now) / o.published) for o in observations]
        return np.array(errors + list(_PRIOR * (x - start)))

    inside = np.clip(start, low + 1e-6, high - 1e-6)
    found = least_squares(residuals, inside, bounds=(low, high), loss="soft_l1", f_scale=scale, diff_step=1e-3,
                          xtol=1e-4, ftol=1e-4, max_nfev=max_steps)
    return c.with_values(dict(zip(names, (float(v) for v in np.exp(found.x)), strict=True)))


def held_out(observations: Sequence[Observation], predict: Predict, c: Constants, names: Sequence[str],
             folds: int = 5) -> list[float]:
    """Return each observation's relative error when it took no part in the fit, in the order given."""
    order = np.random.default_rng(0).permutation(len(observations))
    errors = [0.0] * len(observations)
    for k in range(folds):
        out = set(order[k::folds].tolist())
        fitted = fit([o for i, o in enumerate(observations) if i not in out], predict, c, names)
        for i in out:
            errors[i] = predict(observations[i].case, fitted) / observations[i].published - 1
    return errors


def quantile(errors: Sequence[float], share: float) -> float:
    """Return the quantile of the absolute errors, 0 where there are none."""
    return float(np.quantile(np.abs(errors), share)) if len(errors) else 0.0
