"""Each rank's heartbeat in memory that its supervisor reads: how far it is, and whether it computes or waits.

A thread looks at the training thread every few milliseconds. A thread whose innermost frame is a collective call
waits for other ranks; the rest of the time it works. So a hang can be told from waiting for one that hangs, and a
slow rank from those that wait for it, whatever the layout and without touching the model's code.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_FORM = struct.Struct("<qqqqqq")  # pid, step, last beat ns, last progress ns, own ns, waiting ns
_SLOT = 64
_WAITING = ("torch/distributed/", "anychip/parallel/")
TICK_S = 0.01
STARTING = 20  # times the limit that a rank may take until its first step is done: imports, text, saves, compiling


@dataclass(frozen=True)
class Beat:
    """What a rank last said: process, step, clocks (monotonic, s), and seconds of own work and of waiting."""

    pid: int
    step: int
    beat_s: float
    progress_s: float
    own_s: float
    waiting_s: float
    is_waiting: bool


class Pulse:
    """The heartbeat of this rank: `start` in the training thread, `progress` at every phase, `stop` at the end."""

    def __init__(self, path: Path, rank: int) -> None:
        """`path` is a file of `num_ranks` slots (see `create`)."""
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._rank, self._watched = rank, threading.get_ident()
        self._step, self._progress_ns = -1, time.monotonic_ns()
        self.own_ns = self.waiting_ns = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> Pulse:
        """Begin to watch the calling thread."""
        self._thread.start()
        return self

    def progress(self, step: int) -> None:
        """Say that the training thread gets on."""
        self._step, self._progress_ns = step, time.monotonic_ns()

    def stop(self) -> None:
        """End; the slot then says that there is nothing to watch."""
        self._ended.set()
        self._thread.join()
        self._write(0, time.monotonic_ns(), False)

    def _beat(self) -> None:
        pid, before = os.getpid(), time.monotonic_ns()
        while not self._ended.wait(TICK_S):
            now, waits = time.monotonic_ns(), is_waiting(sys._current_frames().get(self._watched))
            if waits:
                self.waiting_ns += now - before
            else:
                self.own_ns += now - before
            before = now
            self._write(pid, now, waits)

    def _write(self, pid: int, now: int, waits: bool) -> None:
        _FORM.pack_into(self._memory, self._rank * _SLOT, pid, self._step * 2 + waits, now, self._progress_ns,
                        self.own_ns, self.waiting_ns)


def create(path: Path, num_ranks: int) -> None:
    """Make, or empty in place, the file that the ranks of one machine share with their supervisor."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(b"\0" * (_SLOT * num_ranks))


def share(path: Path, num_ranks: int) -> None:
    """Make the file where there is none; ranks that start at the same moment may all call it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(handle, _SLOT * num_ranks)
    os.close(handle)


def read(path: Path) -> list[Beat | None]:
    """Return each rank's last beat, None for a rank that has none or has ended."""
    data, beats = path.read_bytes(), []
    for at in range(0, len(data), _SLOT):
        pid, step, beat, progress, own, waiting = _FORM.unpack_from(data, at)
        beats.append(Beat(pid, step >> 1, beat / 1e9, progress / 1e9, own / 1e9, waiting / 1e9, bool(step & 1))
                     if pid else None)
    return beats


def is_waiting(frame: FrameType | None) -> bool:
    """Tell whether a thread is inside a call to other ranks: its innermost Python frame belongs to collectives."""
    return frame is not None and any(part in frame.f_code.co_filename for part in _WAITING)


@dataclass(frozen=True)
class Hang:
    """A rank that makes no progress, for how long, and how that is known."""

    rank: int
    pid: int
    step: int
    silent_s: float
    reason: str


def find_hang(beats: list[Beat | None], now_s: float, limit_s: float) -> Hang | None:
    """Return the rank that holds up the others, None while all get on.

    A rank without progress for `limit_s` that does not wait for others, or whose heartbeat itself has stopped, is
    the cause; where all wait for each other for twice as long, it is the one that has been silent longest. Until its
    first step is done a rank may take `STARTING` times as long.
    """
    if any(beat is None for beat in beats):
        return None  # not all have begun, or some have ended
    late = [(rank, beat) for rank, beat in enumerate(beats)
            if beat and now_s - beat.progress_s > limit_s * (STARTING if beat.step < 0 else 1)]
    frozen = [(r, b, "its process does not run") for r, b in late if now_s - b.beat_s > max(1.0, limit_s / 2)]
    stuck = [(r, b, "it computes, or sleeps, while the others wait") for r, b in late if not b.is_waiting]
    all_wait = [(r, b, "all ranks wait for each other") for r, b in late
                if len(late) == len(beats) and now_s - b.progress_s > 2 * limit_s]
    for found in (frozen, stuck, sorted(all_wait, key=lambda item: item[1].progress_s)):
        if found:
            rank, beat, reason = found[0]
            return Hang(rank, beat.pid, beat.step, now_s - beat.progress_s, reason)
    return None
