"""Small models for tests, with weights large enough that every part of the maths shows in the logits."""

import torch

from anychip.config import ModelConfig, load_config
from anychip.model import Transformer, initialize
from anychip.ops import Ops


def vivid_model(config: ModelConfig, ops: Ops, seed: int = 0) -> Transformer:
    """Return a model whose sinks, biases, gates and mixing are far from their initial zeros."""
    model = Transformer(config, ops)
    initialize(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_scale"):
                parameter.fill_(1.0)
            elif name.endswith(("_base", "attn_sink", "ape")):
                parameter.normal_(0, 0.5, generator=generator)
            elif parameter.dim() > 1:
                parameter.mul_(2)
        for name, buffer in model.named_buffers():
            if name.endswith("gate.bias"):
                buffer.normal_(0, 0.1, generator=generator)
    return model


def nano() -> ModelConfig:
    """Return the nano preset: every kind of layer, sparse beyond 256 tokens."""
    return load_config("nano")


def random_ids(count: int, seed: int = 0) -> torch.Tensor:
    """Return `count` token ids below 4096."""
    return torch.randint(0, 4096, (count,), generator=torch.Generator().manual_seed(seed))
