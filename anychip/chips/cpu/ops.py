"""The ops of the CPU chip: fp32 kernels for ordinary processors, forward and backward, on torch's own threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...ops import Ops
from ...ops.orthogonal import Matrices, MuonRule
from . import attention as _attention
from . import compress as _compress
from . import experts as _experts
from . import hyper as _hyper
from . import linear as _linear
from . import loss as _loss
from . import muon as _muon
from . import norm as _norm
from . import route as _route
from .batch import Batches
from .block import Blocks
from .kernels import load_library


class CpuOps(Ops):
    """The seam's ops on a CPU. fp32 only; any other number format raises NotSupported.

    Building one loads the kernels' library, which is compiled at first use. Raises ChipError where that fails.
    """

    linear = staticmethod(_linear.linear)
    grouped_linear = staticmethod(_linear.grouped_linear)
    embed = staticmethod(_linear.embed)
    rms_norm = staticmethod(_norm.rms_norm)
    layer_norm = staticmethod(_norm.layer_norm)
    rope = staticmethod(_norm.rope)
    norm_rope = staticmethod(_norm.norm_rope)
    attention = staticmethod(_attention.attention)
    grouped_attention = staticmethod(_attention.grouped_attention)
    index_topk = staticmethod(_attention.index_topk)
    compress = staticmethod(_compress.compress)
    route = staticmethod(_route.route)
    mlp = staticmethod(_experts.mlp)
    experts = staticmethod(_experts.experts)
    hc_pre = staticmethod(_hyper.hc_pre)
    hc_post = staticmethod(_hyper.hc_post)
    hc_head = staticmethod(_hyper.hc_head)
    cross_entropy = staticmethod(_loss.cross_entropy)

    def __init__(self) -> None:
        load_library()
        self._blocks, self._batches = Blocks(), Batches()

    def orthogonalize(self, stack_BMN: Tensor) -> Tensor:
        return _muon.orthogonalize(stack_BMN)

    def muon(self, groups: Sequence[Matrices], rule: MuonRule) -> None:
        _muon.muon(groups, rule)

    def blocks(self, blocks: Sequence[Any], streams_Tnd: Tensor, ids_T: Tensor, plan: Any) -> Tensor | None:
        """Run whole blocks of a few tokens with a state in one kernel call; None for any other pass."""
        return self._blocks.run(blocks, streams_Tnd, ids_T, plan)

    def batch_pass(self, model: Any, cache: Any, batch: Any,
                   streams_Tnd: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Run a pass of serving in one kernel call; None where a weight or size is not the kernel's."""
        return self._batches.run(model, cache, batch, streams_Tnd)
