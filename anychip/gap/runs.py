"""Two training runs side by side: loss for loss, speed, and reliability, from their folders."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..train.folder import METRICS, RUN, read_lines, read_losses
from ..train.goodput import Goodput, goodput

CLOSE = 1e-5  # relative: curves of one recipe in fp32 agree to this


def compare_runs(first: Path, second: Path) -> dict[str, Any]:
    """Return the sections `train` and `reliability` of two runs' folders, as plain values.

    Raises InputError where a folder holds no run, or the two are runs of different models, settings or tokens: their
    losses then say nothing of the chips.
    """
    identities = [_identity(folder) for folder in (first, second)]
    differing = [name for name in ("config", "settings", "tokenizer", "tokens", "start")
                 if identities[0].get(name) != identities[1].get(name)]
    if differing:
        raise InputError(f"{first} and {second} cannot be compared: they differ in {', '.join(differing)}. Train both "
                         "with the same command but for the chip and the ranks")
    losses = [[line["loss"] for line in read_losses(folder)] for folder in (first, second)]
    chips = [identity["chip"] for identity in identities]
    return {"chips": chips, "train": _losses(*losses) | {"tokens_per_s": [_speed(f) for f in (first, second)]},
            "reliability": [account.to_dict() if (account := goodput(f)) else None for f in (first, second)]}


def runs_text(found: dict[str, Any], folders: tuple[Path, Path]) -> str:
    """Return the comparison in words. All figures are of the machines that ran it (measured)."""
    train, at = found["train"], found["train"]["first_apart"]
    apart = f"first apart at step {at}" if at is not None else "never apart"
    lines = [f"losses of {train['steps']} steps: largest relative difference {train['largest']:.2g}, {apart} by more "
             f"than {CLOSE:g} (measured)"]
    for folder, chip, speed in zip(folders, found["chips"], train["tokens_per_s"], strict=True):
        account: Goodput | None = goodput(folder)
        rate = f"median {speed:,.0f} tokens/s (measured)" if speed else "no step was timed"
        lines.append(f"\n{folder} on {chip}: {rate}")
        lines += [f"  {line}" for line in account.lines()] if account else ["  has not begun"]
    return "\n".join(lines)


def _identity(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no training run: {RUN} cannot be read ({error}); give the --out folder of "
                         "`anychip train`") from error
    return found


def _losses(first: list[float], second: list[float]) -> dict[str, Any]:
    steps = min(len(first), len(second))
    if steps == 0:
        raise InputError("a run without steps cannot be compared: train both first")
    apart = [abs(b - a) / abs(a) for a, b in zip(first, second, strict=False)]
    return {"steps": steps, "largest": max(apart),
            "first_apart": next((step for step, value in enumerate(apart) if value > CLOSE), None),
            "last": [first[steps - 1], second[steps - 1]]}


def _speed(folder: Path) -> float | None:
    rates = [line["tokens_per_s"] for line in read_lines(folder / METRICS)]
    return statistics.median(rates) if rates else None
