"""The ops of the CPU chip: fp32 kernels for ordinary processors, forward and backward, on torch's own threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..ops import Ops
from ..ops.orthogonal import Matrices, MuonRule
from . import cpu_attention, cpu_compress, cpu_experts, cpu_hyper, cpu_linear, cpu_loss, cpu_muon, cpu_norm, cpu_route
from .cpu_batch import Batches
from .cpu_block import Blocks
from .cpu_kernels import load_library


class CpuOps(Ops):
    """The seam's ops on a CPU. fp32 only; any other number format raises NotSupported.

    Building one loads the kernels' library, which is compiled at first use. Raises ChipError where that fails.
    """

    linear = staticmethod(cpu_linear.linear)
    grouped_linear = staticmethod(cpu_linear.grouped_linear)
    embed = staticmethod(cpu_linear.embed)
    rms_norm = staticmethod(cpu_norm.rms_norm)
    rope = staticmethod(cpu_norm.rope)
    norm_rope = staticmethod(cpu_norm.norm_rope)
    attention = staticmethod(cpu_attention.attention)
    index_topk = staticmethod(cpu_attention.index_topk)
    compress = staticmethod(cpu_compress.compress)
    route = staticmethod(cpu_route.route)
    mlp = staticmethod(cpu_experts.mlp)
    experts = staticmethod(cpu_experts.experts)
    hc_pre = staticmethod(cpu_hyper.hc_pre)
    hc_post = staticmethod(cpu_hyper.hc_post)
    hc_head = staticmethod(cpu_hyper.hc_head)
    cross_entropy = staticmethod(cpu_loss.cross_entropy)

    def __init__(self) -> None:
        load_library()
        self._blocks, self._batches = Blocks(), Batches()

    def orthogonalize(self, stack_BMN: Tensor) -> Tensor:
        return cpu_muon.orthogonalize(stack_BMN)

    def muon(self, groups: Sequence[Matrices], rule: MuonRule) -> None:
        cpu_muon.muon(groups, rule)

    def block(self, block: Any, streams_Tnd: Tensor, ids_T: Tensor, plan: Any, cache: Any) -> Tensor | None:
        """Run a whole block of a few tokens with a state in one kernel; None for any other pass."""
        return self._blocks.run(block, streams_Tnd, ids_T, plan, cache)

    def batch_pass(self, model: Any, cache: Any, batch: Any,
                   streams_Tnd: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Run a pass of serving in one kernel call; None where a weight or size is not the kernel's."""
        return self._batches.run(model, cache, batch, streams_Tnd)
