"""The residual between sub-layers: mHC's streams that matrices mix (report, section 2.2), or a plain sum, one stream.

Parameters lie in the block that uses them, under the checkpoint's names. Shape suffixes: T tokens, n streams, d hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops import HyperRule, HyperWeights, Ops


def hyper_rule(config: ModelConfig) -> HyperRule | None:
    """Return mHC's constants, None where the residual is plain."""
    hyper = config.hyper
    return None if hyper is None else HyperRule(hyper.sinkhorn_iters, hyper.eps, config.rms_norm_eps)


def add_mixing(block: nn.Module, config: ModelConfig) -> None:
    """Give a block the parameters of mHC's reads and writes, where there are streams."""
    n, d = config.num_streams, config.hidden_size
    for site in ("attn", "ffn") if config.hyper else ():
        block.register_parameter(f"hc_{site}_fn", nn.Parameter(torch.empty(n * (n + 2), n * d)))
        block.register_parameter(f"hc_{site}_base", nn.Parameter(torch.empty(n * (n + 2))))
        block.register_parameter(f"hc_{site}_scale", nn.Parameter(torch.empty(3)))


def add_joining(module: nn.Module, config: ModelConfig) -> None:
    """Give a module the parameters that join mHC's streams at the end, where there are streams."""
    n, d = config.num_streams, config.hidden_size
    if config.hyper:
        module.hc_head_fn = nn.Parameter(torch.empty(n, n * d))
        module.hc_head_base = nn.Parameter(torch.empty(n))
        module.hc_head_scale = nn.Parameter(torch.empty(1))


def drop_joining(module: nn.Module) -> None:
    """Take them away again: another rank joins the streams."""
    for name in [name for name in module._parameters if name.startswith("hc_head_")]:
        delattr(module, name)


def begin(x_Td: Tensor, config: ModelConfig) -> Tensor:
    """Return the streams [T, n, d] that a model begins with: n copies of the embedding."""
    return x_Td[:, None].expand(-1, config.num_streams, -1).contiguous()


def read(block: Any, streams_Tnd: Tensor, site: str, ops: Ops) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the input [T, d] of a block's sub-layer, and what its write needs."""
    if block.rule is None:
        return streams_Tnd[:, 0], ()
    weights = HyperWeights(*(getattr(block, f"hc_{site}_{part}") for part in HyperWeights._fields))
    x_Td, *mixing = ops.hc_pre(streams_Tnd, weights, block.rule)
    return x_Td, tuple(mixing)


def write(y_Td: Tensor, streams_Tnd: Tensor, mixing: tuple[Tensor, ...], ops: Ops) -> Tensor:
    """Return the streams [T, n, d] with a sub-layer's output [T, d]; `mixing` is what its read gave."""
    if not mixing:
        return ops.add(streams_Tnd[:, 0], y_Td)[:, None]
    post_Tn, comb_Tnn = mixing
    return ops.hc_post(y_Td, streams_Tnd, post_Tn, comb_Tnn)


def join(module: Any, streams_Tnd: Tensor, ops: Ops) -> Tensor:
    """Return the hidden [T, d] that a module's streams come to."""
    if module.rule is None:
        return streams_Tnd[:, 0]
    weights = HyperWeights(module.hc_head_fn, module.hc_head_base, module.hc_head_scale)
    return ops.hc_head(streams_Tnd, weights, module.rule)
