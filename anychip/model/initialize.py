"""Initial weights. The publisher's initialisation of mHC and the hash table is not published: ours is stated here."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .moe import Gate
from .transformer import Transformer

HC_SCALE = 0.01  # mHC's gating factors start small (report 2.2); the value is Megatron-LM's


def initialize(model: Transformer, seed: int) -> None:
    """Fill every parameter from `seed`: matrices normal(initializer_range), norms 1, sinks, biases and bases 0."""
    tensors = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in initial_tensors(model, seed):
            tensors[name].copy_(value)


def initial_tensors(model: Transformer, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield what `initialize` fills in, by name, one whole tensor at a time on the CPU. `model` may be on meta."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        value = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
        leaf = name.rsplit(".", 2)[-2] if name.endswith(".weight") else name.rsplit(".", 1)[-1]
        if leaf.endswith("norm"):
            value.fill_(1.0)
        elif leaf.endswith("_scale"):
            value.fill_(HC_SCALE)
        elif leaf.endswith("_base") or leaf in ("attn_sink", "ape", "bias"):
            value.zero_()
        else:
            value.normal_(0.0, model.config.initializer_range, generator=generator)
        yield name, value
    for name, module in model.named_modules():
        if isinstance(module, Gate) and module.bias is not None:
            yield f"{name}.bias", torch.zeros(module.bias.shape, device="cpu")
        if isinstance(module, Gate) and module.tid2eid is not None:
            yield f"{name}.tid2eid", balanced_table(module.tid2eid.shape, module.weight.shape[0], generator)


def balanced_table(shape: torch.Size, num_experts: int, generator: torch.Generator) -> Tensor:
    """Return K distinct random experts for each token id, int64 [V, K]."""
    return torch.rand(shape[0], num_experts, generator=generator, device="cpu").argsort(-1)[:, : shape[1]]
