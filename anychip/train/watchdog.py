"""Who ends a rank that hangs where no supervisor does: under torchrun the ranks of a machine watch each other."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

from . import pulse
from .fault import FaultKind
from .folder import RUN, Events
from .pulse import Beat, Hang

POLL_S = 0.05
FRESH_S = 1.0  # a rank whose heartbeat is older does not run


class Watchdog:
    """Watches the heartbeats of a machine's ranks from within one of them.

    Each rank has one; of those whose process runs and that are not to blame, the first acts. torchrun then starts all
    again. A frozen rank that is alone on its machine is found by nobody here: the collectives' time limit ends it.
    """

    def __init__(self, beats: Path, rank: int, local: int, *, hang_s: float, out: Path) -> None:
        """`rank` is this one's number among all, `local` that on its machine; `hang_s`: how long one may be silent."""
        self._beats, self._local, self._first, self._hang_s = beats, local, rank - local, hang_s
        self._out, self._events = out, Events(out, by=f"rank {rank}")
        self._ended, self._killed = threading.Event(), set[int]()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        """Begin to watch."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End; the heartbeats' file goes too."""
        self._ended.set()
        self._thread.join()
        self._beats.unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            beats, now = pulse.read(self._beats), time.monotonic()
            hang = pulse.find_hang(beats, now, self._hang_s)
            if (hang is not None and hang.pid not in self._killed and acting(beats, hang, now) == self._local
                    and (self._out / RUN).is_file()):
                self._killed.add(hang.pid)
                end_hang(hang, self._events, self._first)


def acting(beats: list[Beat | None], hang: Hang, now_s: float) -> int:
    """Return the rank of this machine that ends one that hangs: another whose process runs, else that one itself."""
    sound = [rank for rank, beat in enumerate(beats) if beat and rank != hang.rank and now_s - beat.beat_s < FRESH_S]
    return sound[0] if sound else hang.rank


def end_hang(hang: Hang, events: Events, first: int = 0) -> None:
    """Note which rank hangs, and kill its process if it still lives. `first` is the number of the machine's rank 0."""
    try:
        os.kill(hang.pid, 0)
    except ProcessLookupError:
        return
    rank = first + hang.rank
    events.add("fault", kind=FaultKind.HANG.value, step=hang.step, ranks=[rank], silent_s=hang.silent_s,
               message=f"rank {rank} (process {hang.pid}) has made no progress for {hang.silent_s:.1f} s at step "
               f"{hang.step}: {hang.reason}. It is ended")
    os.kill(hang.pid, signal.SIGKILL)


def shared_beats(num_local: int) -> Path:
    """Return the file of heartbeats that the ranks of this machine share under torchrun, which names the attempt."""
    run, port = os.environ["TORCHELASTIC_RUN_ID"], os.environ["MASTER_PORT"]
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    before, path = (Path(tempfile.gettempdir(), f"anychip-pulse-{os.getuid()}-{run}-{port}-{at}")
                    for at in (attempt - 1, attempt))
    before.unlink(missing_ok=True)
    pulse.share(path, num_local)
    return path
