"""Initial weights. The publisher's initialisation of mHC and the hash table is not published: ours is stated here."""

from __future__ import annotations

import torch
from torch import Tensor

from .moe import Gate
from .transformer import Transformer

HC_SCALE = 0.01  # mHC's gating factors start small (report 2.2); the value is Megatron-LM's


def initialize(model: Transformer, seed: int) -> None:
    """Fill every parameter from `seed`: matrices normal(initializer_range), norms 1, sinks, biases and bases 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            leaf = name.rsplit(".", 2)[-2] if name.endswith(".weight") else name.rsplit(".", 1)[-1]
            if leaf.endswith("norm"):
                parameter.fill_(1.0)
            elif leaf.endswith("_scale"):
                parameter.fill_(HC_SCALE)
            elif leaf.endswith("_base") or leaf in ("attn_sink", "ape", "bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, model.config.initializer_range, generator=generator)
        for module in model.modules():
            if isinstance(module, Gate):
                _fill_gate(module, generator)


def _fill_gate(gate: Gate, generator: torch.Generator) -> None:
    if gate.bias is not None:
        gate.bias.zero_()
    if gate.tid2eid is not None:
        gate.tid2eid.copy_(balanced_table(gate.tid2eid.shape, gate.weight.shape[0], generator))


def balanced_table(shape: torch.Size, num_experts: int, generator: torch.Generator) -> Tensor:
    """Return K distinct random experts for each token id, int64 [V, K]."""
    return torch.rand(shape[0], num_experts, generator=generator).argsort(-1)[:, : shape[1]]
