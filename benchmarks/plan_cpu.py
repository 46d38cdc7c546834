"""Are the planner's memory and step time right for real runs on this processor?

17 runs of this project's own trainer, decode state and ranks (fp32, one thread each): peak bytes of all
tensors, as torch's allocator counts them, against `plan.own`; and the mean processor seconds of a training step
against `plan.measured`, whose factor comes from the first run alone. Held to: memory within 8 %, time within 15 %.
Calls and steps are timed in turn in one process: both see the same machine.

    python -m benchmarks.plan_cpu [--runs N] [--ranks N] [--no-time]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from statistics import mean
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from anychip.chips import open_chip
from anychip.config import load_config
from anychip.model import Layout, State, Transformer, initialize
from anychip.parallel.degrees import Degrees
from anychip.parallel.launch import launch
from anychip.parallel.ranks import Ranks
from anychip.parallel.world import join
from anychip.plan.measured import step_time
from anychip.plan.own import own_pass_memory, own_train_memory
from anychip.train.settings import TrainSettings
from anychip.train.trainer import Trainer

from .rows import append, row

# task, model, sequences, length, recompute, optimizer
RUNS = (
    ("train", "nano", 4, 1024, False, "muon"), ("train", "nano", 4, 1024, True, "muon"),
    ("train", "nano", 1, 4096, False, "muon"), ("train", "nano", 1, 4096, True, "adamw"),
    ("train", "nano", 8, 512, False, "adamw"), ("train", "nano", 2, 2048, True, "muon"),
    ("train", "tiny", 1, 1024, False, "muon"), ("train", "tiny", 1, 1024, True, "muon"),
    ("train", "tiny", 2, 512, False, "adamw"), ("train", "tiny", 1, 2048, True, "adamw"),
    ("serve", "tiny", 4, 4096, False, ""), ("serve", "nano", 8, 8192, False, ""),
)
# model, sequences, length, ranks, recompute; a micro-batch is one rank's sequences
RANKS = (
    ("nano", 4, 1024, Degrees(shard=2), False), ("nano", 4, 1024, Degrees(expert=2), False),
    ("tiny", 4, 256, Degrees(shard=4), False),
    ("tiny", 2, 512, Degrees(shard=2), True), ("tiny", 2, 512, Degrees(expert=2), False),
)
CHUNK = 256  # new tokens of a serving pass, of each sequence
ROUNDS = 3  # steps, and timings of all their calls, in turn
MEMORY_LIMIT, TIME_LIMIT = 0.08, 0.15


class _Random:
    """Random tokens for every step."""

    def __init__(self, vocabulary: int, batch: int, length: int) -> None:
        self.shape = vocabulary, batch, length

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        vocabulary, batch, length = self.shape
        ids = torch.randint(0, vocabulary, (batch, length + 1), generator=torch.Generator().manual_seed(step))
        return ids[:, :-1], ids[:, 1:]


def peak_bytes(call: Any) -> float:
    """Run `call` and return the most bytes that its tensors had together, over what there was before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return float(peak)


def size_of(value: Any) -> int:
    """Return the bytes of all tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(size_of(item) for item in items)


def measure(index: int, *, timed: bool) -> dict[str, Any]:
    """Run one of RUNS here and return its peak bytes, and for training the processor seconds of a step and of its
    calls."""
    torch.set_num_threads(1)
    task, name, sequences, length, recompute, optimizer = RUNS[index]
    config, chip = load_config(name), open_chip("cpu")
    model = Transformer(config, chip.ops())
    initialize(model, 0)
    weights = sum(size_of(t) for t in (*model.parameters(), *model.buffers()))
    if task == "serve":
        with torch.inference_mode():
            state = State(config, length, num_sequences=sequences, chunk=CHUNK)
            state.assume(length - CHUNK)
            ids = torch.zeros(sequences * CHUNK, dtype=torch.int64)
            layout = Layout((length - CHUNK,) * sequences, (CHUNK,) * sequences)
            peak = peak_bytes(lambda: model(ids, layout, state))
        return {"peak": weights + state.nbytes() + peak}
    settings = TrainSettings(steps=10, batch=sequences, length=length, recompute=recompute, optimizer=optimizer)
    trainer = Trainer(model, chip, _Random(config.vocab_size, sequences, length), settings)
    trainer.step()
    peak = peak_bytes(trainer.step)
    found = {"peak": weights + size_of(trainer.optimizer.state_dict()) + peak}
    if not timed:
        return found
    seconds, calls = [], []
    for _ in range(ROUNDS):
        begin = time.process_time()
        trainer.step()
        seconds.append(time.process_time() - begin)
        calls.append(step_time(config, sequences, length, chip.ops(), recompute=recompute,
                               optimizer=optimizer).total_s)
    return found | {"seconds": mean(seconds), "calls": mean(calls)}


def measure_rank(index: int) -> float:
    """Be one rank of one of RANKS and return its peak bytes."""
    torch.set_num_threads(1)
    name, sequences, length, degrees, recompute = RANKS[index]
    settings = TrainSettings(steps=10, batch=sequences, length=length, recompute=recompute,
                             micro_batches=degrees.num_data)
    chip = open_chip("cpu")
    model = Transformer(load_config(name), chip.ops())
    initialize(model, 0)
    placed = Ranks(model, join(chip.device, degrees), settings)
    trainer = Trainer(model, chip, _Random(model.config.vocab_size, sequences, length), settings, placed)
    trainer.step()
    held = (*model.parameters(), *model.buffers(), *trainer.optimizer.state_dict().values())
    before = sum(size_of(t.to_local() if isinstance(t, DTensor) else t) for t in held)
    return before + peak_bytes(trainer.step)


def predict(index: int) -> float:
    """Return the predicted peak bytes of one of RUNS."""
    task, name, sequences, length, recompute, optimizer = RUNS[index]
    if task == "serve":
        return own_pass_memory(load_config(name), length, sequences, CHUNK)
    return own_train_memory(load_config(name), sequences, length, recompute=recompute, optimizer=optimizer).peak


def predict_rank(index: int) -> float:
    """Return the predicted peak bytes of a rank of one of RANKS."""
    name, sequences, length, degrees, recompute = RANKS[index]
    return own_train_memory(load_config(name), sequences, length, recompute=recompute, shard=degrees.shard,
                            expert=degrees.expert).peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=len(RUNS))
    parser.add_argument("--ranks", type=int, default=len(RANKS))
    parser.add_argument("--no-time", action="store_true")
    parser.add_argument("--one", type=int, default=None)
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps(measure(asked.one, timed=not asked.no_time)))
        return
    rows, scale, errors, times = [], None, [], []
    for index, run in enumerate(RUNS[: asked.runs]):
        command = [sys.executable, "-m", "benchmarks.plan_cpu", "--one", str(index)]
        done = subprocess.run(command + ["--no-time"] * asked.no_time, capture_output=True, text=True, check=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        errors.append(predict(index) / measured["peak"] - 1)
        line = {"run": run, "peak_MB": measured["peak"] / 1e6, "error": errors[-1]}
        rows.append(row("plan_cpu", "peak memory predicted over measured", [1 + errors[-1]], "1", str(run)))
        if "seconds" in measured:
            scale = scale or measured["seconds"] / measured["calls"]
            times.append(measured["calls"] * scale / measured["seconds"] - 1)
            line |= {"seconds": measured["seconds"], "time_error": times[-1]}
            rows.append(row("plan_cpu", "step time predicted over measured", [1 + times[-1]], "1", str(run)))
        print(json.dumps(line), flush=True)
    for index, ranks in enumerate(RANKS[: asked.ranks]):
        peak = max(launch(ranks[3].num_ranks, measure_rank, (index,)))
        errors.append(predict_rank(index) / peak - 1)
        print(json.dumps({"run": str(ranks), "peak_MB": peak / 1e6, "error": errors[-1]}), flush=True)
        rows.append(row("plan_cpu", "peak memory predicted over measured", [1 + errors[-1]], "1", str(ranks)))
    append(rows)
    worst, slowest = max(map(abs, errors)), max(map(abs, times[1:]), default=None)
    print(json.dumps({"runs": len(errors), "largest_memory_error": worst, "limit": MEMORY_LIMIT,
                      "largest_time_error": slowest, "time_limit": TIME_LIMIT, "time_factor": scale}))


if __name__ == "__main__":
    main()
