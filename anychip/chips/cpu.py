"""The ops of the CPU chip: fp32 kernels for ordinary processors, forward and backward, on torch's own threads."""

from __future__ import annotations

from ..ops import Ops


class CpuOps(Ops):
    """The seam's ops on a CPU. fp32 only; any other number format raises NotSupported."""
