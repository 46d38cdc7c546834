"""`anychip train` on several processes: started and looked after here, or started by torchrun."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .terminal import progress_bar, stderr

if TYPE_CHECKING:
    from ..train.job import Job

TORCHRUN = "TORCHELASTIC_RUN_ID"


def is_rank_of_torchrun() -> bool:
    """Tell whether torchrun (or a launcher like it) has started this process as one of several."""
    return TORCHRUN in os.environ


def run_under_torchrun(job: Job, hang_s: float) -> Path | None:
    """Be the rank that torchrun made; return the checkpoint on the first rank, None on the others."""
    from ..errors import AnychipError
    from ..train.job import work

    answer = work(job, hang_s=hang_s)
    if isinstance(answer, AnychipError):
        raise answer
    return Path(answer) if os.environ["RANK"] == "0" else None


def run_supervised(job: Job, num_processes: int, hang_s: float, steps: int) -> Path:
    """Start the ranks on this machine and show how they get on; return the checkpoint."""
    from ..train.supervisor import Supervision, supervise

    supervision = Supervision(num_processes, hang_s)
    with progress_bar("training", steps) as advance, _shown(job.out, steps, advance):
        return supervise(job, supervision)


@contextmanager
def _shown(out: Path, steps: int, advance: Callable[[int, int, str], None]) -> Iterator[None]:
    """Follow the run's files: steps move the bar, faults are told above it."""
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(out, steps, advance, ended), daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()


def _follow(out: Path, steps: int, advance: Callable[[int, int, str], None], ended: threading.Event) -> None:
    from ..train.folder import EVENTS, METRICS

    console, metrics, events = stderr(), Tail(out / METRICS), Tail(out / EVENTS)
    events.new(), metrics.new()  # what earlier commands did is no news
    last = False
    while not last:
        last = ended.wait(0.3)
        for event in events.new():
            if event["event"] in ("fault", "skip", "anticipate"):
                console.print(describe(event), highlight=False, markup=False)
        for line in metrics.new()[-1:]:
            advance(line["step"] + 1, steps, describe_step(line))


class Tail:
    """The whole lines that a JSONL file has got since the last look."""

    def __init__(self, path: Path) -> None:
        self.path, self._at = path, 0

    def new(self) -> list[dict[str, Any]]:
        """Return them."""
        import json

        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def describe(event: dict[str, Any]) -> str:
    """Return an event in words."""
    if event["event"] == "skip":
        return f"batch {event['batch']} is skipped from now on: its step went wrong twice"
    if event["event"] == "anticipate":
        return (f"the spike at batch {event['batch']} came back: steps {event['first']} to {event['end'] - 1} are "
                f"routed by the weights of {event['delay']} steps before")
    return f"fault ({event['kind']}): {event['message']}"


def describe_step(line: dict[str, Any]) -> str:
    """Return a step's line of metrics in words."""
    share = "" if line["share_of_limit"] is None else f", {100 * line['share_of_limit']:.0f} % of the limit"
    return f"loss {line['loss']:.3f}, {line['tokens_per_s']:,.0f} tokens/s of this machine{share}"
