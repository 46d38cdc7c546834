"""The seam between model and chip: the functions that a chip may replace, each with its reference and its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..record import Cost
from . import attention as _attention
from . import compress as _compress
from . import experts as _experts
from . import grouped as _grouped
from . import hyper as _hyper
from . import index as _index
from . import linear as _linear
from . import loss as _loss
from . import norm as _norm
from . import orthogonal as _orthogonal


class Ops:
    """The ops in plain torch: the definition that every chip is held to. A chip subclasses this and overrides.

    Each function's shapes, units and source are in its module; `COSTS` has its FLOPs and bytes.
    """

    linear = staticmethod(_linear.linear)
    grouped_linear = staticmethod(_linear.grouped_linear)
    embed = staticmethod(_linear.embed)
    rms_norm = staticmethod(_norm.rms_norm)
    layer_norm = staticmethod(_norm.layer_norm)
    rope = staticmethod(_norm.rope)
    norm_rope = staticmethod(_norm.norm_rope)
    attention = staticmethod(_attention.attention)
    grouped_attention = staticmethod(_grouped.grouped_attention)
    compress = staticmethod(_compress.compress)
    index_topk = staticmethod(_index.index_topk)
    route = staticmethod(_experts.route)
    router_scores = staticmethod(_experts.router_scores)
    mlp = staticmethod(_experts.mlp)
    experts = staticmethod(_experts.experts)
    add = staticmethod(_hyper.add)
    hc_pre = staticmethod(_hyper.hc_pre)
    hc_post = staticmethod(_hyper.hc_post)
    hc_head = staticmethod(_hyper.hc_head)
    cross_entropy = staticmethod(_loss.cross_entropy)

    def blocks(self, blocks: Sequence[Any], streams_Tnd: Tensor, ids_T: Tensor, plan: Any) -> Tensor | None:
        """Run whole `model.block.Block`s, one after the other, where the chip has a faster form of this very pass; else
        None.

        An optimisation only: the result must equal the ops' one by one. Recording and virtual chips never use it.
        """
        return None

    def orthogonalize(self, stack_BMN: Tensor) -> Tensor:
        """Return the nearly orthogonal factor of each matrix, by Muon's Newton-Schulz steps (`ops.orthogonal`)."""
        return _orthogonal.orthogonalize(stack_BMN)

    def muon(self, groups: Sequence[_orthogonal.Matrices], rule: _orthogonal.MuonRule) -> None:
        """Take one Muon step of every group of matrices, in place. Not part of a pass: it has no Event."""
        for matrices in groups:
            _orthogonal.muon(matrices, rule, self.orthogonalize)

    def batch_pass(self, model: Any, cache: Any, batch: Any,
                   streams_Tnd: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Run a whole pass of serving (`model.paged`) at once where the chip has a form of it; else None.

        Returns logits [R, V] of the wanted tokens and the streams. With `streams_Tnd` (overwritten) it is the MTP
        block's pass. A token's results must not depend, in any bit, on what else is in the pass or how it was cut.
        """
        return None

    def at(self, layer: str) -> Ops:
        """Return these ops for use in the named part of the model (recording ops note the name)."""
        return self


COSTS: dict[str, Callable[..., Cost]] = {
    "linear": _linear.linear_cost,
    "grouped_linear": _linear.grouped_linear_cost,
    "embed": _linear.embed_cost,
    "rms_norm": _norm.rms_norm_cost,
    "layer_norm": _norm.layer_norm_cost,
    "rope": _norm.rope_cost,
    "norm_rope": _norm.norm_rope_cost,
    "attention": _attention.attention_cost,
    "grouped_attention": _grouped.grouped_attention_cost,
    "compress": _compress.compress_cost,
    "index_topk": _index.index_topk_cost,
    "route": _experts.route_cost,
    "mlp": _experts.mlp_cost,
    "experts": _experts.experts_cost,
    "add": _hyper.add_cost,
    "hc_pre": _hyper.hc_pre_cost,
    "hc_post": _hyper.hc_post_cost,
    "hc_head": _hyper.hc_head_cost,
    "cross_entropy": _loss.cross_entropy_cost,
}
