"""The errors a user can meet. Each message says what was asked, what is true, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class AnychipError(Exception):
    """Base of every error that is the input's fault, not a bug: the command line prints it and exits with `exit_code`,
    2 unless a run failed for another reason than its input."""

    exit_code: ClassVar[int] = 2


class ConfigError(AnychipError):
    """A model or run configuration that contradicts itself or asks for what does not exist."""


class CheckpointError(AnychipError):
    """A checkpoint with missing, surplus, misshapen or corrupt tensors."""


class ChipError(AnychipError):
    """A chip that is unknown, or that is not available on this machine."""


class NotSupported(AnychipError):
    """A chip was asked for a number format or operation that it does not have."""


class InputError(AnychipError):
    """A prompt, file, path or argument that cannot be used."""


class KernelError(AnychipError):
    """A kernel that does not compile for a chip, or that cannot be run as it was asked.

    kind: `source` (the Triton code), `memory` (on-chip memory is too small), `unsupported` (the compiler cannot do
    it), `crash` (the compiler fell over), `timeout`, or `other`. place: `file.py:line` where it is known.
    """

    def __init__(self, message: str, *, kind: str = "other", place: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.place = place


class BundleError(AnychipError):
    """A gap bundle that is corrupt, foreign, or does not match its partner."""


def nearest(asked: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the choice nearest to `asked`, or an empty string when none is near."""
    found = difflib.get_close_matches(asked, list(choices), n=1, cutoff=0.4)
    return f" Did you mean {found[0]!r}?" if found else ""
