"""The time of a whole launch on one die: blocks over cores, shared L2 and memory bandwidth, the start of the kernel."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .compile import CompiledKernel
from .machine import library
from .rates import Rates, load_rates
from .recording import BlockInfo, BlockTime, Recording
from .run import run_kernel
from .targets import Target
from .trace import BlockSpan

PIPE_NAMES = ("scalar", "vector", "cube", "MTE1", "MTE2", "MTE3", "FIX")
BOUNDS = {"cube": "cube", "vector": "vector", "memory": "memory", "move": "memory", "scalar": "scalar", "sync": "sync"}
SCALE_STEPS = 12
BUDGET = 200_000  # instructions recorded of a launch; more blocks than that are extrapolated
MOST_BLOCKS = 1024  # recorded of one launch
LISTED = 10_000  # blocks in a KernelTime's schedule
FOLLOWED_BYTES = 32 * 2**20  # arguments above that size: one sector in 16 is followed through the L2


@dataclass(frozen=True)
class KernelTime:
    """The simulated time of one launch.

    time_s: launch included; launch_s of it is the start of the kernel. utilisation: busy share of each pipe over all
    cores that have it, from the first block's start to the last one's end. causes: share of the critical path of the
    blocks by what it waited for. bound: the largest of them (cube, vector, memory, scalar, sync). hbm_bytes: bytes
    that missed the L2. slowdown: how much longer transfers take because the cores share L2 and memory. timed_blocks of
    num_blocks were timed instruction by instruction. schedule: when the first 10,000 blocks ran, on which core.
    """

    kernel: str
    target: str
    time_s: float
    launch_s: float
    utilisation: dict[str, float]
    causes: dict[str, float]
    bound: str
    read_bytes: float
    written_bytes: float
    hbm_bytes: float
    slowdown: float
    num_blocks: int
    timed_blocks: int
    schedule: tuple[BlockSpan, ...] = ()


@dataclass(frozen=True)
class Launched:
    """A recorded launch: which kernel, on which chip, how many blocks, the recording, bytes of its arguments.

    core_type: AIV, AIC or MIX, as the compiler says. Blocks that were not recorded take the time of recorded
    neighbours.
    """

    kernel: str
    target: Target
    core_type: str
    num_blocks: int
    argument_bytes: int
    recording: Recording

    @property
    def num_cores(self) -> int:
        """Cores that take blocks: vector cores for a vector kernel, else cube cores with their vector cores."""
        return self.target.num_vector if self.core_type == "AIV" else self.target.num_cube

    def time(self, rates: Rates, *, warm: bool = False) -> KernelTime:
        """Time the launch. warm: the L2 holds what an earlier launch of the same kernel and arguments left there."""
        blocks = self.recording.blocks()
        plan = _Plan(self, rates, blocks)
        missed = plan.missed_bytes(warm)
        slowdown = plan.slowdown(missed)
        return plan.result(slowdown, missed)


class _Plan:
    """One timing: times of the recorded blocks, extrapolated to all."""

    def __init__(self, launched: Launched, rates: Rates, blocks: Sequence[BlockInfo]) -> None:
        self.launched, self.rates, self.blocks = launched, rates, blocks
        self.order = sorted(range(len(blocks)), key=lambda i: blocks[i].block)
        self.recorded = {b.block for b in blocks}
        self.scale = launched.num_blocks / len(blocks)
        self.read = self.scale * sum(b.read_bytes for b in blocks)
        self.written = self.scale * sum(b.written_bytes for b in blocks)

    def times(self, slowdown: float) -> list[BlockTime]:
        rates = replace(self.rates, slowdown=(slowdown, slowdown))
        return self.launched.recording.times(rates)

    def schedule(self, times: Sequence[BlockTime], listed: int = 0) -> tuple[float, list[BlockSpan]]:
        """Each core takes the next block when it is free, as the hardware's dispatcher does; in cycles.

        Returns the end of the last block, and the first `listed` blocks.
        """
        lengths, start = self._lengths(times), self.rates.rate["block_start"].value
        free = [(0.0, core) for core in range(min(self.launched.num_cores, self.launched.num_blocks))]
        spans, last = [], 0.0
        for block, length in enumerate(lengths):
            at, core = free[0]
            end = at + start + length
            if block < listed:
                spans.append(BlockSpan(block, core, at + start, end, block in self.recorded))
            heapq.heapreplace(free, (end, core))
            last = max(last, end)
        return last, spans

    def missed_bytes(self, warm: bool) -> float:
        """Bytes that come from or go to HBM: misses of the recorded blocks in the L2, extrapolated."""
        starts = {span.block: span.start_s for span in self.schedule(self.times(1.0), self.launched.num_blocks)[1]
                  if span.timed}
        complete = len(self.blocks) == self.launched.num_blocks
        fits = self.launched.argument_bytes <= self.rates.die["l2"].value * 2**20
        if warm and fits:
            return 0.0
        rounds = 2 if warm and complete else 1
        use = self.launched.recording.cache(self.rates, self.order, [starts[self.blocks[i].block] for i in self.order],
                                            rounds)
        missed = self.read * use.read_misses / max(use.reads, 1) + self.written * use.write_misses / max(use.writes, 1)
        return min(missed, float(self.launched.argument_bytes)) if fits else missed

    def slowdown(self, missed: float) -> float:
        """The least factor on transfer times at which L2 and HBM carry what the cores ask of them."""
        needed = self._needed_cycles(missed)
        if self._end(1.0) >= needed:
            return 1.0
        low, high = 1.0, 2.0
        while self._end(high) < needed and high < 1024:
            low, high = high, 2 * high
        for _ in range(SCALE_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._end(middle) >= needed else (middle, high)
        return high

    def result(self, slowdown: float, missed: float) -> KernelTime:
        times = self.times(slowdown)
        (end, spans), hertz = self.schedule(times, LISTED), self.rates.clock_hz
        causes = {name: sum(t.causes[name] for t in times) for name in times[0].causes}
        total = sum(causes.values()) or 1.0
        launch = self.rates.die["launch"].value * 1e-6
        bounds: dict[str, float] = {}
        for name, cycles in causes.items():
            bounds[BOUNDS[name]] = bounds.get(BOUNDS[name], 0.0) + cycles
        return KernelTime(
            self.launched.kernel, self.launched.target.name, launch + end / hertz, launch,
            self._utilisation(times, end), {name: cycles / total for name, cycles in causes.items()},
            max(bounds, key=lambda name: bounds[name]), self.read, self.written, missed, slowdown,
            self.launched.num_blocks, len(self.blocks),
            tuple(replace(s, start_s=s.start_s / hertz, end_s=s.end_s / hertz) for s in spans))

    def _needed_cycles(self, missed: float) -> float:
        die, hertz, cores = self.rates.die, self.rates.clock_hz, self.launched.target.num_cube
        return max(missed / (die["hbm"].value * 1e12 * die["hbm_share"].value) * hertz,
                   self.read / (die["l2_read"].value * cores), self.written / (die["l2_write"].value * cores))

    def _end(self, slowdown: float) -> float:
        return self.schedule(self.times(slowdown))[0]

    def _lengths(self, times: Sequence[BlockTime]) -> list[float]:
        """Cycles of every block; one that was not recorded takes those of the nearest recorded one."""
        known = sorted((b.block, t.cycles) for b, t in zip(self.blocks, times, strict=True))
        lengths: list[float] = []
        beyond = (2 * self.launched.num_blocks, 0.0)
        for (block, cycles), (following, _) in zip(known, [*known[1:], beyond], strict=True):
            end = min((block + following) // 2 + 1, self.launched.num_blocks)
            lengths += [cycles] * (end - len(lengths))
        return lengths

    def _utilisation(self, times: Sequence[BlockTime], end: float) -> dict[str, float]:
        """Busy share of each pipe: of the cube core for the cube, of the busiest kind of core for the others."""
        cores = min(self.launched.num_cores, self.launched.num_blocks)
        kinds = {"AIV": [1], "AIC": [0], "MIX": [0, 1, 2]}[self.launched.core_type]
        found = {}
        for pipe, name in enumerate(PIPE_NAMES):
            busy = [self.scale * sum(t.busy[core][pipe] for t in times) / (cores * end) for core in kinds]
            cube, vector = busy[0] if 0 in kinds else 0.0, sum(busy[1:]) / 2 if len(kinds) == 3 else busy[-1]
            share = max(cube, vector) if self.launched.core_type != "AIC" else cube
            if share > 0:
                found[name] = share
        return found


def kernel_time(kernel: CompiledKernel, args: Mapping[str, Any], grid: Sequence[int], *, rates: Rates | None = None,
                warm: bool = False) -> KernelTime:
    """Return the simulated time of a launch; `args` are as for `run_kernel`, and written.

    rates: default the target's. warm: see `Launched.time`. Raises what `run_kernel` and `load_rates` raise.
    """
    return record(kernel, args, grid).time(rates or load_rates(kernel.target), warm=warm)


def record(kernel: CompiledKernel, args: Mapping[str, Any], grid: Sequence[int], *, numerics: bool = True,
           budget: int = BUDGET) -> Launched:
    """Run enough blocks of a launch to time it, unchecked. numerics: see `run_kernel`; budget: instructions."""
    argument_bytes = sum(int(value.nbytes) for value in args.values() if hasattr(value, "nbytes"))
    num_blocks = math.prod(grid)

    def run(blocks: list[int]) -> Launched:
        recording = Recording(library(), 16 if argument_bytes > FOLLOWED_BYTES else 1)
        run_kernel(kernel, args, grid, check=False, blocks=blocks, observers=(recording.observer,), numerics=numerics)
        return Launched(kernel.name, kernel.target, kernel.core_type, num_blocks, argument_bytes, recording)

    first = run([0])
    if num_blocks == 1:
        return first
    return run(sample_blocks(num_blocks, first.num_cores, first.recording.blocks()[0].instructions, budget))


def sample_blocks(num_blocks: int, num_cores: int, steps_of_one: int, budget: int) -> list[int]:
    """Return the blocks to record: all, or the first wave and some spread over the rest, within `budget` steps."""
    room = min(max(2, budget // max(steps_of_one, 1)), MOST_BLOCKS)
    if num_blocks <= room:
        return list(range(num_blocks))
    first = list(range(min(num_cores, room // 2)))
    spread = room - len(first)
    rest = {len(first) + (num_blocks - 1 - len(first)) * i // max(spread - 1, 1) for i in range(spread)}
    return sorted({*first, *rest})
