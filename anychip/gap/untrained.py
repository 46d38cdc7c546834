"""Random weights for a model that has no trained ones: spread so that every part of the maths shows in the logits.

A fresh initialisation hides most of it: norms at 1, biases and sinks at 0, logits all alike. What is judged here is the
chip, not the text, so weights lie further apart than training would begin with. The embedding is loud, as the residual
of a trained model is: else each near tie of a router that goes the other way would drown what the number format does.
"""

from __future__ import annotations

import torch

from ..config import PRESETS, load_config
from ..errors import InputError
from ..model import Transformer, count_parameters, initialize
from ..ops import Ops
from ..serve.models import SHIPPED
from ..text.tokenizer import SHIPPED as SHIPPED_TOKENIZER
from ..text.tokenizer import Tokenizer, open_tokenizer

MOST = 2 * 10**8  # parameters, all in fp32 on this machine
_WIDER, _LOUDER = 2.0, 16.0  # matrices and the embedding, against a fresh initialisation
_SPREAD = 0.3  # of norms around 1, of biases, sinks and bases around 0


def is_untrained(name: str) -> bool:
    """Tell whether a model's name is that of a preset without trained weights."""
    return name in PRESETS and name not in SHIPPED


def random_model(name: str, seed: int) -> tuple[Transformer, Tokenizer]:
    """Return a preset's model with random weights from a seed, fp32 on the host, and the shipped tokenizer.

    The tokenizer's ids are the first of the vocabulary: what random weights see in them is the same for any.
    Raises InputError where the model is too large to be run here.
    """
    config = load_config(name)
    total = count_parameters(config).total
    if total > MOST:
        raise InputError(f"{name} has {total / 1e9:.3g}G parameters and no trained weights in anychip; random ones are "
                         f"made for at most {MOST / 1e9:g}G: choose a small preset of its family, or give the folder "
                         "of a checkpoint")
    model = Transformer(config, Ops())
    spread_weights(model, seed)
    return model.eval(), open_tokenizer(SHIPPED_TOKENIZER)


def spread_weights(model: Transformer, seed: int) -> None:
    """Fill a model in place. Tied and shared tensors keep being shared."""
    initialize(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_scale"):
                parameter.fill_(1.0)
            elif parameter.dim() < 2 or name.endswith("ape"):
                parameter.add_(_SPREAD * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(_LOUDER if name == "embed.weight" else _WIDER)
        for name, buffer in model.named_buffers():
            if name.endswith("gate.bias"):
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
