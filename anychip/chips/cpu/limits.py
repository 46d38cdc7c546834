"""What this processor can do at best, measured now: fp32 matrix products and memory traffic."""

from __future__ import annotations

import datetime
import os
import statistics
import time
from collections.abc import Callable
from types import MappingProxyType

import torch

from ..facts import ChipFacts, Fact

GEMM_SIZES = (1024, 2048)  # square products; the faster one is the limit
STREAM_BYTES = 256 << 20  # far larger than any cache


def measure_limits(description: str) -> ChipFacts:
    """Time products and memory passes for about two seconds; return them as facts of kind measured-now."""
    with torch.no_grad():
        gemm = max(gemm_flops_per_s(size) for size in GEMM_SIZES)
        bandwidth = read_bytes_per_s()
        few = torch.zeros(8)
        launch_us = 1e6 * _median_s(lambda: few + few, 200)
    found = {
        "peak.fp32": (gemm / 1e12, "TFLOPS"), "vector_peak.fp32": (gemm / 1e12, "TFLOPS"),
        "memory.bandwidth": (bandwidth / 1e9, "GB/s"), "memory.bytes": (_memory_bytes() / 2**30, "GiB"),
        "launch.matmul": (launch_us, "us"), "launch.vector": (launch_us, "us"),
        "efficiency.matmul": (1.0, "1"), "efficiency.memory": (1.0, "1"), "efficiency.vector": (1.0, "1"),
    }
    today = datetime.date.today().isoformat()
    facts = {path: Fact(value, unit, "measured on this machine", today) for path, (value, unit) in found.items()}
    return ChipFacts("cpu", "", torch.__config__.parallel_info().split("\n")[0], description, MappingProxyType(facts))


def gemm_flops_per_s(size: int) -> float:
    """Return the median rate of an fp32 product size x size x size on torch's threads, FLOP/s."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2.0 * size**3 / _median_s(lambda: a @ b, 5)


def read_bytes_per_s() -> float:
    """Return the median rate of reading a large array, bytes/s."""
    x = torch.ones(STREAM_BYTES // 4)
    return STREAM_BYTES / _median_s(lambda: x.sum(), 5)


def _median_s(call: Callable[[], object], times: int) -> float:
    call()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
