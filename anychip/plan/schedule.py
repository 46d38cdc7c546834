"""The order in which each pipeline rank does its work: 1F1B, interleaved, zero-bubble (ZB-H1) and DualPipe.

A `Task` is a forward (F), a backward (B), a backward of inputs only (b), a backward of weights (w), or a forward and a
backward run together (FB, DualPipe). Chunk c of the model runs on rank c % pipeline (DualPipe holds every chunk twice).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..errors import ConfigError

Unit = tuple[str, int, int]  # F, B, b or w; chunk; micro-batch


class Task(NamedTuple):
    """What a rank does next: one unit, or two at once."""

    units: tuple[Unit, ...]


def one_f_one_b(rank: int, ranks: int, micros: int, _: int) -> list[Task]:
    """arXiv:2006.09503: fill, then one forward and one backward in turn, then drain."""
    warm = min(ranks - 1 - rank, micros)
    order = [("F", rank, i) for i in range(warm)]
    for i in range(micros - warm):
        order += [("F", rank, warm + i), ("B", rank, i)]
    order += [("B", rank, i) for i in range(micros - warm, micros)]
    return [Task((unit,)) for unit in order]


def interleaved(rank: int, ranks: int, micros: int, chunks: int) -> list[Task]:
    """arXiv:2104.04473: each rank holds several chunks and takes micro-batches in groups of the pipeline's size."""
    total = micros * chunks

    def unit(kind: str, k: int) -> Unit:
        group, place = divmod(k, ranks * chunks)
        chunk = place // ranks
        chunk = chunk if kind == "F" else chunks - 1 - chunk
        return kind, chunk * ranks + rank, group * ranks + place % ranks

    warm = min((ranks - 1 - rank) * 2 + (chunks - 1) * ranks, total)
    order = [unit("F", k) for k in range(warm)]
    for k in range(total - warm):
        order += [unit("F", warm + k), unit("B", k)]
    order += [unit("B", k) for k in range(total - warm, total)]
    return [Task((one,)) for one in order]


def zero_bubble(rank: int, ranks: int, micros: int, _: int) -> list[Task]:
    """arXiv:2401.10241, ZB-H1: gradients of weights wait, and fill the drain."""
    order: list[Unit] = []
    pending: list[int] = []
    for task in one_f_one_b(rank, ranks, micros, 1):
        (kind, chunk, i), = task.units
        if kind == "F":
            order.append((kind, chunk, i))
            continue
        order.append(("b", chunk, i))
        pending.append(i)
        if len(pending) > rank:
            order.append(("w", chunk, pending.pop(0)))
    order += [("w", rank, i) for i in pending]
    return [Task((unit,)) for unit in order]


def dualpipe(rank: int, ranks: int, micros: int, _: int) -> list[Task]:
    """arXiv:2412.19437, section 3.2.1: micro-batches enter from both ends; forward and backward run together.

    Direction 0 uses chunks 0..p-1 as laid out, direction 1 the same model mirrored, as chunks p..2p-1.
    """
    half, near = ranks // 2, min(rank, ranks - 1 - rank)
    mine = 0 if rank < half else 1  # the direction whose first chunks are near this end
    chunk = {0: rank, 1: ranks + (ranks - 1 - rank)}
    done = {(kind, d): 0 for kind in "Fb" for d in (0, 1)}
    order: list[Task] = []
    waiting: list[Unit] = []

    def unit(kind: str, side: int, *, split: bool = False) -> Unit:
        d = mine ^ side
        key = ("F" if kind == "F" else "b", d)
        i, done[key] = done[key], done[key] + 1
        if kind == "B" and split:
            waiting.append(("w", chunk[d], i))
            return "b", chunk[d], i
        return kind, chunk[d], i

    def add(*units: Unit) -> None:
        order.append(Task(units))

    def weights() -> None:
        add(waiting.pop(0))

    for _step in range((half - near - 1) * 2):
        add(unit("F", 0))
    for _step in range(near + 1):
        add(unit("F", 0))
        add(unit("F", 1))
    for _step in range(half - near - 1):
        add(unit("B", 1, split=True))
        weights()
        add(unit("F", 1))
    for step in range(micros // 2 - ranks + near + 1):
        if step == 0 and near == half - 1:  # nothing to overlap with yet in the middle
            add(unit("F", 0))
            add(unit("B", 1))
        else:
            add(unit("F", 0), unit("B", 1))
        add(unit("F", 1), unit("B", 0))
    for _step in range(half - near - 1):
        add(unit("B", 1))
        add(unit("F", 1), unit("B", 0))
    for step in range(near + 1):
        late = step > near // 2
        add(unit("B", 1, split=late and near % 2 == 1 or late))
        add(unit("B", 0, split=step >= (near + 1) // 2))
    for _step in range(half - near - 1):
        if waiting:
            weights()
        add(unit("B", 0, split=True))
    while waiting:
        weights()
    return order


ORDERS: dict[str, Callable[[int, int, int, int], list[Task]]] = {
    "1f1b": one_f_one_b, "interleaved": interleaved, "zero-bubble": zero_bubble, "dualpipe": dualpipe}


def orders(schedule: str, ranks: int, micros: int, chunks: int) -> list[list[Task]]:
    """Return every rank's order. Raises ConfigError for an unknown schedule."""
    if schedule not in ORDERS:
        raise ConfigError(f"schedule={schedule!r}: choose one of {', '.join(ORDERS)}")
    return [ORDERS[schedule](rank, ranks, micros, chunks) for rank in range(ranks)]
