"""A strict stand-in for an Ascend NPU: a torch device named `npu` with the host's processor behind it.

What it computes is right; what it is for is what it refuses, by name and call site (see `rules`): any CUDA call, any
aten operator that torch_npu would run on the host, any number format that a 910B lacks, any implicit copy to the host,
and any fused operator of torch_npu outside its documented limits. It registers itself in torch for good, so it lives
in a process of its own:

    python -m standin COMMAND...     runs `anychip COMMAND...` on it; exit code 3 where anything was refused
"""

from .device import install
from .rules import Refused, log

__all__ = ["Refused", "install", "log"]
