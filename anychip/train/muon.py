"""Which parameters Muon trains, and how they fall into logical matrices (report, section 2.4 and algorithm 1).

A logical matrix is one W of the report's formulas. A parameter that joins several - an expert bank, the groups of the
output projection, CSA's two halves, the three parts of an mHC map - is taken apart: each is orthogonalised alone.
Embedding, head, norms, sinks, position biases, mHC's biases and gates are AdamW's.
"""

from __future__ import annotations

from torch import Tensor

from ..config import DeepseekV4Config, ModelConfig, only


def is_muons(name: str, parameter: Tensor) -> bool:
    """Tell whether Muon trains the parameter of this name."""
    return parameter.dim() > 1 and name not in ("embed.weight", "head.weight") and not name.endswith(".ape")


def logical_matrices(name: str, tensor: Tensor, config: ModelConfig) -> list[Tensor]:
    """Return views [B, M, N] of a whole parameter (or of its gradient, or momentum), B matrices of equal shape each.

    A bank's leading dimension may be a part of the experts. Raises nothing; the order is that of the memory.
    """
    if name.endswith(".experts.w13"):  # gate rows, then up rows
        return [tensor.reshape(-1, tensor.shape[-2] // 2, tensor.shape[-1])]
    if name.endswith(".experts.w2"):
        return [tensor]
    if name.endswith(".wo_a.weight"):
        return [_cut(tensor, only(config, DeepseekV4Config, name).o_groups)]
    if name.endswith((".compressor.wkv.weight", ".compressor.wgate.weight")):
        v4 = only(config, DeepseekV4Config, name)
        channels = v4.index_head_dim if ".indexer." in name else v4.head_dim
        return [_cut(tensor, tensor.shape[0] // channels)]
    if name.endswith(("hc_attn_fn", "hc_ffn_fn")):
        n = config.num_streams
        return [_cut(tensor[: 2 * n], 2), tensor[None, 2 * n :]]
    return [tensor[None]]


def _cut(tensor: Tensor, count: int) -> Tensor:
    return tensor.reshape(count, -1, tensor.shape[-1])
