"""The loss on held-out text, and the loss of a model that knows only how often each token occurs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..model import Layout, Transformer


def mean_loss(model: Transformer, ids: Tensor, length: int, batch: int = 8) -> float:
    """Return the mean next-token loss, nats a token, over a whole stream of ids [tokens].

    The stream is cut into windows of `length` tokens that do not overlap, so a token sees at most `length - 1`
    before it; the last window may be shorter. Raises InputError for a stream of fewer than two tokens.
    """
    if ids.numel() < 2:
        raise InputError(f"a loss needs at least 2 tokens, the text has {ids.numel()}")
    inputs, targets = ids[:-1].split(length * batch), ids[1:].split(length * batch)
    total = 0.0
    with torch.no_grad():
        for tokens, nexts in zip(inputs, targets, strict=True):
            total += float(_losses(model, tokens, nexts, length).double().sum())
    return total / (ids.numel() - 1)


def _losses(model: Transformer, tokens: Tensor, nexts: Tensor, length: int) -> Tensor:
    device = model.embed.weight.device
    layout = Layout.whole([part.numel() for part in tokens.split(length)])
    hidden_Td = model(tokens.to(device), layout).hidden_Td
    return model.ops.at("head").cross_entropy(hidden_Td, model.head.weight, nexts.to(device))


def unigram_loss(train_ids: Tensor, ids: Tensor, vocab_size: int) -> float:
    """Return the nats a token of `ids` under token frequencies in `train_ids` (each count plus one)."""
    counts = torch.bincount(train_ids, minlength=vocab_size).double() + 1
    return float(-(counts / counts.sum()).log()[ids[1:]].mean())
