"""Do training runs survive kill -9 of any rank at any instant, and every other fault that can be injected?

    python -m benchmarks.kill_runs [--kills 100] [--each 10] [--processes 2,4] [--hang-seconds 2]

Kills: runs of 2 and of 4 processes of a very small model (FSDP, save every 5 steps); at random instants, half of them
aimed at a save being written, a random rank gets SIGKILL. Limit: no step that a save had committed is taken again, the
final weights and losses are bitwise those of the undisturbed run, and nobody had to do anything. Other faults: each
kind `--each` times, one a run; limit: detected, the right rank named where one is to blame, the run finished, weights
bitwise those of the undisturbed run (a skipped batch changes them, and must). On a busy machine a step may take longer
than the 2 s after which a rank counts as hanging: give it more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anychip.chips import open_chip
from anychip.cli.train_ranks import Tail
from anychip.config import load_config
from anychip.text.batches import TokenBatches
from anychip.text.tokenizer import open_tokenizer
from anychip.train import Care, Run, TrainSettings, read_losses, train
from anychip.train.folder import EVENTS, METRICS, read_lines
from anychip.train.goodput import FOUND_AS, Median, goodput
from anychip.train.inject import parse_injections
from anychip.train.job import Job
from anychip.train.supervisor import Supervision, supervise

from .rows import append, row

STEPS, SAVE_EVERY, CHECK_EVERY = 40, 5, 5


def make() -> Run:
    """Return the run: every kind of layer, about 60,000 parameters, 97 random tokens again and again (what is learnt is
    what a spike can rise above)."""
    config = replace(load_config("nano"), hidden_size=16, num_hidden_layers=3, compress_ratios=(0, 4, 128, 0),
                     head_dim=16, qk_rope_head_dim=8, num_attention_heads=2, q_lora_rank=8, o_lora_rank=8,
                     index_n_heads=2, index_head_dim=16, moe_intermediate_size=16, n_routed_experts=4)
    settings = TrainSettings(STEPS, 4, 32, learning_rate=0.06, micro_batches=4)
    ids = torch.randint(0, 100, (97,), generator=torch.Generator().manual_seed(0)).repeat(42)
    return Run(config, open_tokenizer("anychip-4096"), TokenBatches(ids, 4, 32, 0), settings)


def job(out: Path, inject: str, processes: int) -> Job:
    """Return the job in a folder, with faults."""
    care = Care(SAVE_EVERY, keep=2, check_every=CHECK_EVERY, spike_nats=0.5, anticipate_steps=10,
                inject=parse_injections(inject, processes))
    return Job(make, {}, "cpu:reference", out, care, threads=1)


def result(out: Path) -> tuple[bytes, list[float]]:
    """Return what must not depend on faults: the final weights' bytes and every loss."""
    weights = (out / f"step-{STEPS:08d}" / "model" / "model.safetensors").read_bytes()
    return weights, [line["loss"] for line in read_losses(out)]


class Killer:
    """Kills random ranks at random instants while runs go on."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out, self.random, self.processes = out, random.Random(seed), dict[int, int]()
        self.times: list[float] = []
        self.during_save = 0
        self._ended = threading.Event()
        self._restarted = threading.Event()

    def started(self, processes: dict[int, int]) -> None:
        """Take the new processes."""
        self.processes = processes
        self._restarted.set()

    def run(self, limit: int, until: float) -> None:
        """Kill until the run ends, `limit` kills are done or time is up; each after a restart."""
        while len(self.times) < limit and time.monotonic() < until and not self._ended.is_set():
            if not self._restarted.wait(0.2):
                continue
            self._restarted.clear()
            self._await_steps(0 if self.random.random() < 0.15 else self.random.randint(1, 10))
            if self._ended.wait(self.random.uniform(0, 0.3)):
                return
            if self.random.random() < 0.5:
                self._await_save()
            self._kill()

    def _await_steps(self, count: int) -> None:
        """Wait until so many steps have been taken since the ranks were started: instants do not depend on speed."""
        metrics = Tail(self.out / METRICS)
        metrics.new()
        seen = 0
        while seen < count and not self._ended.wait(0.01):
            seen += len(metrics.new())

    def _await_save(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not self._ended.is_set() and not list(self.out.glob("step-*.partial")):
            time.sleep(0.001)
        time.sleep(self.random.uniform(0, 0.03))

    def _kill(self) -> None:
        is_saving = bool(list(self.out.glob("step-*.partial")))
        rank = self.random.choice(sorted(self.processes))
        try:
            now = time.time()
            os.kill(self.processes[rank], signal.SIGKILL)
        except ProcessLookupError:
            return
        self.times.append(now)
        self.during_save += is_saving

    def end(self) -> None:
        """The run has ended."""
        self._ended.set()


def committed_steps_lost(out: Path) -> int:
    """Return how many steps a restart took again although a save that held them was there."""
    saved = lost = 0
    for event in read_lines(out / EVENTS):
        if event["event"] == "saved":
            saved = event["step"]
        elif event["event"] == "begin":
            lost += max(0, saved - event["step"])
    return lost


def kills(folder: Path, processes: int, count: int, seconds: float) -> dict[str, Any]:
    """Kill `count` times over as many runs as that takes, or as often as comes to pass in so many seconds."""
    until = time.monotonic() + seconds
    supervise(job(folder / "undisturbed", "", processes), Supervision(processes))
    wanted, found = result(folder / "undisturbed"), {"kills": 0, "during_save": 0, "runs": 0, "lost": 0, "different": 0}
    detect: list[float] = []
    recover: list[float] = []
    while found["kills"] < count and time.monotonic() < until:
        out = folder / f"run-{found['runs']}"
        killer = Killer(out, seed=1000 * processes + found["runs"])
        thread = threading.Thread(target=killer.run, args=(count - found["kills"], until), daemon=True)
        thread.start()
        supervise(job(out, "", processes), Supervision(processes), started=killer.started)
        killer.end()
        thread.join()
        faults = [event["time"] for event in read_lines(out / EVENTS) if event["event"] == "fault"]
        detect += [min(t - k for t in faults if t > k) for k in killer.times if any(t > k for t in faults)]
        begins = [event["time"] for event in read_lines(out / EVENTS) if event["event"] == "begin"]
        recover += [min(t - f for t in begins if t > f) for f in faults if any(t > f for t in begins)]
        found = {"kills": found["kills"] + len(killer.times), "during_save": found["during_save"] + killer.during_save,
                 "runs": found["runs"] + 1, "lost": found["lost"] + committed_steps_lost(out),
                 "different": found["different"] + (result(out) != wanted)}
        print(f"{processes} processes: {found}", flush=True)
    return found | {"detect": Median.of(detect), "recover": Median.of(recover)}


KINDS = [kind for kind in FOUND_AS if kind != "kill"]
ALONE = ("nan", "spike", "bitflip:weight", "bitflip:optimizer", "bitflip:gradient", "disk_full")


def inject_once(out: Path, kind: str, processes: int, seed: int, hang_s: float) -> dict[str, Any]:
    """Inject one fault of a kind; return whether it was found, named and overcome."""
    chosen = random.Random(seed)
    step, rank = chosen.randrange(16, 30), chosen.randrange(processes)
    if kind == "bitflip:gradient":
        step = step // CHECK_EVERY * CHECK_EVERY  # a gradient is checked at these steps (see silent_corruption)
    if kind == "nan" and step % CHECK_EVERY == 0:
        step += 1  # in a checked step it is found as a gradient that is another one the second time
    if kind == "slow":
        step = 16
    if kind == "spike":
        step += 10  # what is above ten median deviations of losses that still fall fast?
    fault = f"{kind}:rank{rank}@step{step}"
    _go(job(out, fault, processes), processes, hang_s)
    events = read_lines(out / EVENTS)
    said = [e for e in events if e["event"] == "fault" and e["kind"] == FOUND_AS[kind].value]
    names = not said or "ranks" not in said[0] or not said[0]["ranks"] or said[0]["ranks"] == [rank]
    account = goodput(out)
    assert account is not None
    cost = account.faults.get(FOUND_AS[kind].value)
    return {"fault": fault, "detected": bool(said), "named": bool(said) and names, "result": result(out),
            "other": sorted({e["kind"] for e in events if e["event"] == "fault"} - {FOUND_AS[kind].value}),
            "detect_s": cost.detect.value if cost and cost.detect else None,
            "recover_s": cost.recover.value if cost and cost.recover else None}


def _go(what: Job, processes: int, hang_s: float) -> None:
    if processes > 1:
        supervise(what, Supervision(processes, hang_s=hang_s))
    else:
        train(make(), open_chip(what.chip), what.out, care=what.care)


def others(folder: Path, processes: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Inject every other kind `each` times: where no process ends and no other rank is needed, into one process."""
    wanted, table = {}, {}
    for kind in asked.kinds.split(","):
        ranks = 1 if kind in ALONE else processes
        if ranks not in wanted:
            _go(job(folder / f"undisturbed-{ranks}", "", ranks), ranks, asked.hang_seconds)
            wanted[ranks] = result(folder / f"undisturbed-{ranks}")
        trials = [inject_once(folder / f"{kind.replace(':', '-')}-{n}", kind, ranks, n, asked.hang_seconds)
                  for n in range(asked.each)]
        table[kind] = {
            "trials": asked.each, "detected": sum(t["detected"] for t in trials),
            "named": sum(t["named"] for t in trials),
            "bitwise_equal": sum(t["result"] == wanted[ranks] for t in trials),
            "detect": Median.of([t["detect_s"] for t in trials if t["detect_s"] is not None]),
            "recover": Median.of([t["recover_s"] for t in trials if t["recover_s"] is not None]),
            "missed": [t["fault"] for t in trials if not t["named"]]}
        print(kind, _plain(table[kind]), flush=True)
    return table


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.text() if isinstance(value, Median) else value for name, value in values.items()}


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of kills for each number of processes")
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--processes", default="2,4")
    parser.add_argument("--hang-seconds", type=float, default=2.0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    asked = parser.parse_args()
    counts = [int(n) for n in asked.processes.split(",")]
    report: dict[str, Any] = {"kills": {}, "others": {}}
    with tempfile.TemporaryDirectory(prefix="kill-runs-") as scratch:
        for at, processes in enumerate(counts):
            share = asked.kills // len(counts) + (at < asked.kills % len(counts))
            if share:
                found = kills(Path(scratch) / f"kills-{processes}", processes, share, asked.seconds)
                report["kills"][processes] = _plain(found)
                append([row("kill_runs", f"{what} after kill -9", [m.value], "s", f"{processes} processes, n={m.n}")
                        for what in ("detect", "recover") if (m := found[what])])
        if asked.each:
            table = others(Path(scratch) / "others", counts[0], asked)
            report["others"] = {kind: _plain(values) for kind, values in table.items()}
            append([row("kill_runs", f"{what} {kind}", [m.value], "s", f"{counts[0]} processes, n={m.n}")
                    for kind, values in table.items() for what in ("detect", "recover") if (m := values[what])])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
