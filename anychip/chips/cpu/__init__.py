"""The processor of this machine: its chip, its ops in C++ (`ops.CpuOps`), and its measured limits."""

from .chip import CpuChip, open_cpu

__all__ = ["CpuChip", "open_cpu"]
