"""What can go wrong in a run, by kind, and how it ends an attempt."""

from __future__ import annotations

from enum import Enum

from ..errors import AnychipError


class FaultKind(str, Enum):
    """The kinds of faults that a run detects, names and recovers from."""

    KILLED = "killed"  # a rank's process has died
    HANG = "hang"  # a rank makes no progress
    NOT_FINITE = "not_finite"  # loss or gradient is NaN or infinite
    SPIKE = "spike"  # the loss is far above the last ones
    WEIGHTS = "weights"  # bits of weights or of the optimizer's state changed without an update
    GRADIENT = "gradient"  # the same gradient computed twice differs
    COPIES = "copies"  # ranks that should hold the same numbers do not
    SLOW = "slow"  # a rank works longer than the others
    DISK = "disk"  # a save could not be written
    UNREADABLE = "unreadable"  # a save could not be read
    ERROR = "error"  # a rank ended with an exception


class Fault(Exception):
    """An attempt at a run ends here; the run goes on from its last save.

    `ranks` are those that are to blame, empty where that is not known. `everywhere` says that all ranks have come to
    the same verdict at the same step, so none has to be ended from outside.
    """

    def __init__(self, kind: FaultKind, message: str, *, step: int, ranks: tuple[int, ...] = (),
                 everywhere: bool = True) -> None:
        super().__init__(message)
        self.kind, self.message, self.step, self.ranks, self.everywhere = kind, message, step, ranks, everywhere


class Stopped(AnychipError):
    """A run that cannot go on by itself. The message says why, and what a person can do."""
