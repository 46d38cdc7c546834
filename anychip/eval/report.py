"""What a run of `anychip eval` found, as rows: each system's share, and each against the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ..gap.statistics import Interval
from .run import TaskRun
from .score import Relative, compare, share

Price = tuple[float, float]  # for a million tokens in, and out


def rows(runs: Sequence[TaskRun], reference: str, prices: Mapping[str, Price]) -> list[dict[str, Any]]:
    """Return one JSON row a system and task, and one a system over all tasks where there are several. Measured.

    `reference` is the system that the others are set against. Costs are what this run asked for, at the given prices.
    """
    names = list(dict.fromkeys(run.system for run in runs))
    tasks = list(dict.fromkeys(run.task.name for run in runs))
    groups = [[task] for task in tasks] + ([tasks] if len(tasks) > 1 else [])
    found = {(run.system, run.task.name): run for run in runs}
    return [_row([found[name, task] for task in group], [found[reference, task] for task in group], prices)
            for group in groups for name in names]


def _row(mine: Sequence[TaskRun], others: Sequence[TaskRun], prices: Mapping[str, Price]) -> dict[str, Any]:
    right = [right for run in mine for right in run.right]
    row: dict[str, Any] = {
        "task": "all" if len(mine) > 1 else mine[0].task.name, "digest": "+".join(run.task.digest for run in mine),
        "system": mine[0].system, "kind": "measured", "questions": len(right), "right": sum(right),
        "share": _ends(share(sum(right), len(right))), "answers": "".join("01"[one] for one in right),
        "unread": sum(answer.answer is None for run in mine for answer in run.answers),
        "cut_off": sum(answer.reply.finish in ("length", "max_tokens") for run in mine for answer in run.answers),
        "cost": _cost(mine, prices.get(mine[0].system)),
    }
    if mine[0].system != others[0].system:
        row["against"] = others[0].system
        row |= _relative(compare([right for run in others for right in run.right], right))
    return row


def _relative(found: Relative) -> dict[str, Any]:
    return {"relative": None if found.ratio is None else _ends(found.ratio),
            "difference": _ends(found.difference.difference), "p": found.difference.p,
            "only_reference": found.only[0], "only_this": found.only[1], "smallest_seen": found.seen,
            "questions_for_one_point": found.wanted}


def _cost(runs: Sequence[TaskRun], price: Price | None) -> dict[str, Any]:
    counted = [run.tokens(asked_only=True) for run in runs]
    if any(count is None for count in counted):
        return {"input_tokens": None, "output_tokens": None, "usd": None}
    tokens = [sum(count[i] for count in counted if count is not None) for i in range(2)]
    money = None if price is None else (tokens[0] * price[0] + tokens[1] * price[1]) / 1e6
    return {"input_tokens": tokens[0], "output_tokens": tokens[1], "usd": money}


def _ends(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


def table(found: Sequence[Mapping[str, Any]]) -> Table:
    """Return the rows for a terminal."""
    shown = Table(title="Quality (measured), 95 % intervals")
    for head in ("task", "system", "right", "share", "of the reference", "p", "smallest seen", "tokens", "USD"):
        shown.add_column(head)
    for row in found:
        cost, tokens = row["cost"], row["cost"]["input_tokens"]
        shown.add_row(row["task"], row["system"], f"{row['right']}/{row['questions']}", _percent(row["share"]),
                      _percent(row["relative"]) if row.get("relative") else ("reference" if "p" not in row else "none"),
                      f"{row['p']:.3g}" if "p" in row else "",
                      f"{100 * row['smallest_seen']:.1f} points" if "smallest_seen" in row else "",
                      "unknown" if tokens is None else f"{tokens:,} + {cost['output_tokens']:,}",
                      "unknown" if cost["usd"] is None else f"{cost['usd']:.4f}")
    return shown


def sentence(row: Mapping[str, Any], tasks: str) -> str:
    """Say one row's relative score in words, with its question set."""
    value, low, high = row["relative"]
    return (f"{row['system']} reaches {100 * value:.1f} % of {row['against']} ({100 * low:.1f} to {100 * high:.1f} %) "
            f"on {row['questions']} questions ({tasks}); a difference below {100 * row['smallest_seen']:.1f} points "
            "would not have been seen")


def _percent(ends: Sequence[float]) -> str:
    value, low, high = (100 * end for end in ends)
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"
