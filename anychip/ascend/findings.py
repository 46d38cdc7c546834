"""What the virtual Ascend finds wrong in a kernel: kind, source line, op, pipe, what was seen and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

PIPES = ("scalar", "vector", "cube", "MTE1", "MTE2", "MTE3", "FIX", "all")
CORES = ("cube core", "vector core", "second vector core")

# In the order of FindingKind in machine/step.h: name, what to do.
KINDS: tuple[tuple[str, str], ...] = (
    ("outside_read", "A masked load still reads memory where its mask is no prefix of the tile, or where its indices "
                     "are gathered: clamp the indices (tl.where(ok, i, 0), tl.minimum), make the mask a prefix of "
                     "tl.arange, or pad the tensor."),
    ("outside_write", "A store whose mask is no prefix of the tile writes the whole tile: mask a tl.arange directly, "
                      "one dimension at a time, or pad the tensor; check the grid and the index against the size."),
    ("outside_view", "The compiler cut a piece outside its buffer: report it to triton-ascend with this kernel."),
    ("wait_without_set", "A pipe waits for an event that nothing sets, and hangs: a set is missing."),
    ("flag_overrun", "An event is set again before anything waited for it: a wait is missing."),
    ("flag_left", "An event is still set when the kernel ends and confuses the next kernel: a wait is missing."),
    ("deadlock", "The cores of a block wait for each other for ever: a cross-core set is missing or comes too late."),
    ("uninitialised", "Give the load an `other` value, or write the whole tile before it is read."),
    ("read_after_write", "Nothing makes the read wait for the write: a barrier, or a set and wait of a flag, is "
                         "missing between the two."),
    ("write_after_read", "Nothing makes the write wait for the read: a barrier, or a set and wait of a flag, is "
                         "missing between the two."),
    ("write_after_write", "Nothing orders the two writes: a barrier, or a set and wait of a flag, is missing."),
    ("block_race", "Programs of the grid run in any order, on several cores at once: let each write bytes of its own, "
                   "use tl.atomic_add (or max, min), or split the kernel in two. A store with a mask that is no "
                   "prefix reads and rewrites its whole tile, neighbours' bytes too."),
    ("sync_left", "A cross-core flag is still set when the kernel ends: a cross-core wait is missing."),
)
UNINITIALISED = 7


@dataclass(frozen=True)
class Place:
    """Where in a kernel: `file.py:12` (or `unknown`), the HIVM op, the pipe and the core that execute it."""

    line: str
    op: str
    pipe: str
    core: str

    def text(self) -> str:
        """Return it in one phrase."""
        return f"{self.op} at {self.line} ({self.pipe} pipe, {self.core})"


@dataclass(frozen=True)
class Finding:
    """One fault of a kernel. `count` times in the blocks that ran, first in block `block` (program number).

    kind: a name of KINDS. seen: what happened, with the bytes; other: the other side of a race. advice: what to do.
    """

    kind: str
    kernel: str
    place: Place
    seen: str
    advice: str
    block: int
    count: int = 1
    other: Place | None = None

    def text(self) -> str:
        """Return the finding as a few lines for a terminal."""
        times = f", {self.count} times" if self.count > 1 else ""
        return (f"{self.kind}: kernel {self.kernel}, {self.place.text()}, program {self.block}{times}\n"
                f"  {self.seen}\n  {self.advice}")

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class RawFinding:
    """The machine's numbers (machine/step.h, struct Finding), in order.

    Of an uninitialised read, `event` is the buffer that came out otherwise with other garbage (-1: the read itself).
    """

    kind: int
    instruction: int
    other_instruction: int
    core: int
    pipe: int
    other_core: int
    other_pipe: int
    buffer: int
    event: int
    block: int
    low: int
    high: int
    count: int


class Listing(Protocol):
    """What a program knows of its instructions and buffers; the numbers are the machine's."""

    def op(self, instruction: int) -> str:
        """Return the HIVM op's name."""

    def line(self, instruction: int) -> str:
        """Return `file.py:12`, or `unknown`."""

    def buffer(self, buffer: int) -> tuple[str, int | None]:
        """Return a buffer's name for people (`argument x`, `UB`, ...) and its size in bytes where it matters."""


def describe(found: Iterable[RawFinding], kernel: str, listing: Listing) -> tuple[Finding, ...]:
    """Turn the machine's numbers into findings, the same fault at the same source line only once."""
    merged: dict[tuple[Any, ...], Finding] = {}
    for raw in found:
        name, advice = KINDS[raw.kind]
        place = _place(raw.instruction, raw.core, raw.pipe, listing)
        other = (_place(raw.other_instruction, raw.other_core, raw.other_pipe, listing)
                 if raw.other_instruction >= 0 else None)
        finding = Finding(name, kernel, place, _seen(raw, name, listing, other), advice, raw.block, raw.count, other)
        key = (name, place, other, raw.buffer, raw.event if raw.kind == UNINITIALISED else -1)
        first = merged.get(key)
        merged[key] = finding if first is None else Finding(**{**vars(first), "count": first.count + raw.count})
    return tuple(sorted(merged.values(), key=lambda f: ([k for k, _ in KINDS].index(f.kind), f.place.line)))


def summary(findings: Sequence[Finding]) -> str:
    """Return all findings as text, or `no findings`."""
    return "\n".join(finding.text() for finding in findings) if findings else "no findings"


def _place(instruction: int, core: int, pipe: int, listing: Listing) -> Place:
    known = instruction >= 0
    return Place(listing.line(instruction) if known else "the end of the kernel",
                 listing.op(instruction) if known else "return",
                 PIPES[pipe] if 0 <= pipe < len(PIPES) else "scalar",
                 CORES[core] if 0 <= core < len(CORES) else "any core")


def _seen(raw: RawFinding, name: str, listing: Listing, other: Place | None) -> str:
    if raw.buffer >= 0:
        where, size = listing.buffer(raw.buffer)
    else:
        where, size = "memory", None
    span = f"bytes {raw.low} to {raw.high} of {where}"
    if name in ("outside_read", "outside_write", "outside_view"):
        of = f", which has {size} bytes" if size is not None else ""
        return f"{'writes' if name == 'outside_write' else 'reads'} {span}{of}"
    if name == "uninitialised":
        output = listing.buffer(raw.event)[0] if raw.event >= 0 else "its result"
        return f"{output} depends on byte {raw.low} of {where}, which nothing has written"
    if name in ("read_after_write", "write_after_read", "write_after_write") and other is not None:
        verb = "reads" if name.startswith("read") else "writes"
        before = "reads" if name.endswith("read") else "writes"
        return f"{verb} {span} while {other.text()} may still be at it ({before} them)"
    if name == "block_race" and other is not None:
        return f"uses {span}, which another program uses in {other.text()}"
    if name in ("sync_left", "deadlock"):
        return f"cross-core flag {raw.event}"
    return f"event {raw.event} from the {PIPES[raw.pipe]} pipe to the {_pipe(raw.other_pipe)} pipe"


def _pipe(pipe: int) -> str:
    return PIPES[pipe] if 0 <= pipe < len(PIPES) else "other"
