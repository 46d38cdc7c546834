"""What a facts file may hold: number formats, units with their SI factor, and every table and key."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FORMATS = ("fp32", "hf32", "tf32", "fp16", "bf16", "int8", "fp8", "fp4")

UNITS: Mapping[str, tuple[str, float]] = MappingProxyType(
    {  # unit of the file: (dimension, factor to SI)
        "TFLOPS": ("op/s", 1e12),
        "PFLOPS": ("op/s", 1e15),
        "TOPS": ("op/s", 1e12),
        "KiB": ("byte", 2.0**10),
        "MiB": ("byte", 2.0**20),
        "GiB": ("byte", 2.0**30),
        "GB": ("byte", 1e9),
        "GB/s": ("byte/s", 1e9),
        "TB/s": ("byte/s", 1e12),
        "Gb/s": ("byte/s", 1e9 / 8),
        "us": ("s", 1e-6),
        "GHz": ("Hz", 1e9),
        "W": ("W", 1.0),
        "kW": ("W", 1e3),
        "1": ("ratio", 1.0),
        "count": ("count", 1.0),
        "USD": ("money", 1.0),  # money stays in its own currency
        "USD/h": ("money/h", 1.0),
        "CNY/h": ("money/h", 1.0),
    }
)

# Table -> key -> dimension. Link figures are one direction, per device; peaks are dense.
SCHEMA: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "peak": dict.fromkeys(FORMATS, "op/s"),  # matrix units only; an absent format is one the chip lacks
        "vector_peak": dict.fromkeys(("fp32", "fp16", "bf16"), "op/s"),
        "memory": {"bytes": "byte", "bandwidth": "byte/s"},
        "l2": {"bytes": "byte", "bandwidth": "byte/s"},
        "launch": dict.fromkeys(("matmul", "vector", "communication"), "s"),
        "efficiency": dict.fromkeys(("matmul", "memory", "vector"), "ratio"),
        "link": dict.fromkeys(("die_to_die", "in_node", "across_nodes", "rdma"), "byte/s"),
        "link_latency": dict.fromkeys(("die_to_die", "in_node", "across_nodes"), "s"),
        "cores": {"cube": "count", "vector": "count", "clock": "Hz"},
        "scratch": dict.fromkeys(("ub", "l1", "l0a", "l0b", "l0c"), "byte"),
        "power": dict.fromkeys(("tdp", "all_in"), "W"),
        "price": {"buy": "money", "rent_low": "money/h", "rent_high": "money/h"},
    }
)

REQUIRED = (
    "memory.bytes",
    "memory.bandwidth",
    "launch.matmul",
    "launch.vector",
    "efficiency.matmul",
    "efficiency.memory",
    "efficiency.vector",
)
