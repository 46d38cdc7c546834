"""What a run tells of each step: rates, the share of the chip's limit, router loads, memory, and where time went.

One line a step in `metrics.jsonl`, steps that were lost and taken again included; TensorBoard files beside it where
asked for.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..chips import Chip
from ..config import ModelConfig
from ..errors import NotSupported
from ..model import Layout, Transformer
from ..ops.recorded import RecordedOps
from ..ops.shapes import ShapeOps
from ..record import Kind, Recorder
from .folder import METRICS
from .settings import TrainSettings
from .trainer import StepResult
from .watch import Watched

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

BOARD = "tensorboard"


class Metrics:
    """Writes a line for each step. `limit_flops_per_s` is the chips' together; None leaves the share of it unknown."""

    def __init__(self, out: Path, watched: Watched, chip: Chip, *, step_flops: float | None = None,
                 limit_flops_per_s: float | None = None, tensorboard: bool = False) -> None:
        self._file = (out / METRICS).open("a", encoding="utf-8")
        self._watched, self._chip, self._flops, self._limit = watched, chip, step_flops, limit_flops_per_s
        self._board = _board(out) if tensorboard else None

    def add(self, result: StepResult) -> dict[str, Any]:
        """Write a step's line; return it."""
        rate = result.tokens / result.time_s
        share = (self._flops / result.time_s / self._limit) if self._flops and self._limit else None
        line = {"step": result.step, "time": time.time(), "loss": result.loss, "grad_norm": result.grad_norm,
                "learning_rate": result.learning_rate, "tokens_per_s": rate, "share_of_limit": share,
                "router_load": self._router_load(), "memory_bytes": memory_bytes(self._chip.device),
                "phases_s": {name: round(s, 6) for name, s in self._watched.phases.taken().items()},
                "step_s": result.time_s}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            self._show(self._board, line)
        return line

    def _router_load(self) -> list[float]:
        """Return, layer by layer, how many times the mean load the busiest expert had."""
        return [round(float(load.max() / load.mean()), 4) for load in self._watched.last_loads]

    def _show(self, board: SummaryWriter, line: dict[str, Any]) -> None:
        step = line["step"]
        for name in ("loss", "grad_norm", "learning_rate", "tokens_per_s", "share_of_limit", "memory_bytes"):
            if line[name] is not None:
                board.add_scalar(name, line[name], step)
        for layer, load in enumerate(line["router_load"]):
            board.add_scalar(f"router_load/{layer}", load, step)
        for phase, seconds in line["phases_s"].items():
            board.add_scalar(f"phase_s/{phase}", seconds, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _board(out: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise NotSupported("TensorBoard files need tensorboard: pip install 'anychip[train]'") from error
    return SummaryWriter(str(out / BOARD))


def memory_bytes(device: torch.device) -> int:
    """Return the most memory taken so far: of the device, or of this process where the device is the CPU."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(getattr(torch, device.type).max_memory_allocated(device))


def step_flops(config: ModelConfig, settings: TrainSettings) -> float:
    """Return the FLOPs of one training step: the ops' forward costs on the meta device, times three.

    Backward counts twice the forward; what is computed again (recomputation, checks) does not count.
    """
    recorder = Recorder()
    with torch.device("meta"):
        model = Transformer(config, RecordedOps(ShapeOps(), recorder, Kind.SIMULATED))
    ids = torch.empty(settings.batch * settings.length, dtype=torch.int64, device="meta")
    layout = Layout.whole([settings.length] * settings.batch)
    with torch.no_grad():
        hidden = model(ids, layout)
        model.ops.at("head").cross_entropy(hidden.hidden_Td, model.head.weight, ids)
        if settings.mtp_weight and model.mtp:
            ahead = model.predict_next(hidden.streams_Tnd, ids, layout)
            model.ops.at("mtp.0").cross_entropy(ahead, model.head.weight, ids)
    return 3 * sum(event.flops for event in recorder.events)


def limit_flops_per_s(chip: Chip) -> float | None:
    """Return the chip's peak in its number format (a CPU's is measured now, for two seconds); None is unknown."""
    limits = chip.limits()
    return None if limits is None else limits.peak_flops_per_s.get(chip.precision)
