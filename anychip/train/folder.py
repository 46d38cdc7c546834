"""The folder of a run: what run it is, its losses line by line, and what happened to it.

    OUT/run.json       what two runs must share to be one run; neither the number of ranks nor their layout is in it
    OUT/loss.jsonl     one line a step of the run as it stands
    OUT/metrics.jsonl  one line for every step ever taken, those that were lost and taken again included
    OUT/events.jsonl   starts, saves, faults and recoveries, with the wall clock
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, TextIO

from ..errors import InputError
from .shards import PARTIAL, write_synced

RUN, LOSSES, METRICS, EVENTS = "run.json", "loss.jsonl", "metrics.jsonl", "events.jsonl"


def read_losses(out: str | Path) -> list[dict[str, Any]]:
    """Return the whole lines of a run's `loss.jsonl`; a line that was cut off by a kill is left out."""
    return read_lines(Path(out) / LOSSES)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a JSONL file, none where there is no file."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines if line]


class Events:
    """Appends to a run's events.jsonl, one write a line, so that several processes can share the file."""

    def __init__(self, out: Path, **always: Any) -> None:
        """`always` goes into every line."""
        self.path, self._always = out / EVENTS, always

    def add(self, event: str, **fields: Any) -> dict[str, Any]:
        """Write one event with the wall clock (seconds since 1970); return it."""
        line = {"event": event, "time": time.time()} | self._always | fields
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, (json.dumps(line, ensure_ascii=False) + "\n").encode())
        finally:
            os.close(handle)
        return line

    def all(self) -> list[dict[str, Any]]:
        """Return every event of the run so far."""
        return read_lines(self.path)


def open_folder(out: Path, identity: dict[str, Any]) -> None:
    """Make the run's folder, or check that it holds this very run.

    Raises InputError where it holds another run or something else, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / RUN).is_file():
            _check_same(out, identity)
        elif any(path.name != RUN + PARTIAL for path in out.iterdir()):  # what a kill at the start leaves is no content
            raise InputError(f"{out} is not empty and holds no training run (no {RUN}): choose another folder")
        else:
            write_whole(out / RUN, json.dumps(identity, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another folder") from error


class Losses:
    """The open loss.jsonl of a run at `done` steps: losses after it are cut off, `num_cut` of them.

    Raises InputError where lines up to `done` are missing.
    """

    def __init__(self, out: Path, done: int) -> None:
        lines = read_losses(out)
        kept = lines[:done]
        if [line["step"] for line in kept] != list(range(done)):
            raise InputError(f"{out / LOSSES} does not hold the {done} steps of the last save: restore the file, or "
                             "choose another folder")
        write_whole(out / LOSSES, "".join(json.dumps(line) + "\n" for line in kept))
        self.num_cut = len(lines) - len(kept)
        self._file: TextIO = (out / LOSSES).open("a", encoding="utf-8")

    def add(self, line: dict[str, Any]) -> None:
        """Append a step."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Push all lines to the disk: a save must not outlive the losses that led to it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + PARTIAL)
    write_synced(partial, text.encode())
    os.replace(partial, path)


def _check_same(out: Path, identity: dict[str, Any]) -> None:
    try:
        found = json.loads((out / RUN).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{out / RUN} is not JSON ({error}): choose another folder") from error
    wanted = json.loads(json.dumps(identity))
    differing = list(_differences(found, wanted))
    if differing:
        raise InputError(f"{out} holds another run, which cannot be resumed with these settings:\n  "
                         + "\n  ".join(differing) + "\n  -> give the run's own settings, or another folder")


def _differences(found: Any, wanted: Any, where: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = sorted(found.keys() | wanted.keys())
        return [line for name in names
                for line in _differences(found.get(name), wanted.get(name), f"{where}.{name}".lstrip("."))]
    return [] if found == wanted else [f"{where}: the folder has {found!r}, asked for is {wanted!r}"]
