"""What is measured or simulated: the kind of every number, and one Event for every call of an op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum


class Kind(str, Enum):
    """Where a number comes from. Every number that a person sees carries one."""

    MEASURED = "measured"  # timed or counted on the chip itself
    EMULATED = "emulated"  # real maths, in another chip's number formats
    SIMULATED = "simulated"  # a model of time, no chip involved
    PUBLISHED = "published"  # somebody else's figure, with its source


@dataclass(frozen=True)
class Quantity:
    """A number for a person: value, unit, kind, and a 95 % interval where one is known. None is unknown."""

    value: float | None
    unit: str
    kind: Kind
    low: float | None = None
    high: float | None = None

    def text(self) -> str:
        """Return the number with its unit and interval, `unknown` where there is none."""
        if self.value is None:
            return "unknown"
        spread = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{spread} {self.unit}".rstrip()


@dataclass(frozen=True)
class Cost:
    """Work of one op call: floating-point operations and bytes that must move to and from memory."""

    flops: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Event:
    """One call of an op: where, on what shapes, how much work, and the time with its kind (None = not timed).

    `source` says what a simulated time comes from, where there is more than one model of time: `kernels`, or
    `roofline: ` and why no kernel.
    """

    op: str
    layer: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    flops: float
    bytes: float
    time_s: float | None
    kind: Kind
    source: str = ""


@dataclass
class Recorder:
    """Collects Events, and hands each call's tensors to `watch(event, arguments, result)` where one is given."""

    events: list[Event] = field(default_factory=list)
    watch: Callable[[Event, tuple[object, ...], object], None] | None = None

    def add(self, event: Event, arguments: tuple[object, ...], result: object) -> None:
        """Keep one event, and show its tensors to the watcher."""
        self.events.append(event)
        if self.watch is not None:
            self.watch(event, arguments, result)
