"""The seam between model and chip: the functions that a chip may replace, each with its reference and its cost."""

from __future__ import annotations

from collections.abc import Callable

from ..record import Cost
from . import attention, compress, experts, hyper, index, linear, loss, norm


class Ops:
    """The ops in plain torch: the definition that every chip is held to. A chip subclasses this and overrides.

    Each function's shapes, units and source are in its module; `COSTS` has its FLOPs and bytes.
    """

    linear = staticmethod(linear.linear)
    grouped_linear = staticmethod(linear.grouped_linear)
    embed = staticmethod(linear.embed)
    rms_norm = staticmethod(norm.rms_norm)
    rope = staticmethod(norm.rope)
    norm_rope = staticmethod(norm.norm_rope)
    attention = staticmethod(attention.attention)
    compress = staticmethod(compress.compress)
    index_topk = staticmethod(index.index_topk)
    route = staticmethod(experts.route)
    mlp = staticmethod(experts.mlp)
    experts = staticmethod(experts.experts)
    hc_pre = staticmethod(hyper.hc_pre)
    hc_post = staticmethod(hyper.hc_post)
    hc_head = staticmethod(hyper.hc_head)
    cross_entropy = staticmethod(loss.cross_entropy)

    def at(self, layer: str) -> Ops:
        """Return these ops for use in the named part of the model (recording ops note the name)."""
        return self


COSTS: dict[str, Callable[..., Cost]] = {
    "linear": linear.linear_cost,
    "grouped_linear": linear.grouped_linear_cost,
    "embed": linear.embed_cost,
    "rms_norm": norm.rms_norm_cost,
    "rope": norm.rope_cost,
    "norm_rope": norm.norm_rope_cost,
    "attention": attention.attention_cost,
    "compress": compress.compress_cost,
    "index_topk": index.index_topk_cost,
    "route": experts.route_cost,
    "mlp": experts.mlp_cost,
    "experts": experts.experts_cost,
    "hc_pre": hyper.hc_pre_cost,
    "hc_post": hyper.hc_post_cost,
    "hc_head": hyper.hc_head_cost,
    "cross_entropy": loss.cross_entropy_cost,
}
