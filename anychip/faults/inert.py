"""Whether changed ops change anything in a model: a fault of a form that it does not call would be found nowhere."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model import Layout, State, Transformer
from ..ops import Ops

LENGTHS, DECODED = (300, 20), 2  # a long sequence for what an indexer leaves out, a short one beside it


def changes(model: Transformer, clean: Ops) -> bool:
    """Tell whether a model on its ops differs in any bit from itself on `clean` ones: logits, decode or gradients."""
    changed = model.ops
    try:
        found = _outcome(model)
        model.ops = clean
        wanted = _outcome(model)
    finally:
        model.ops = changed
    return any(not torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def _outcome(model: Transformer) -> list[Tensor]:
    ids = torch.arange(sum(LENGTHS)) * 7 % model.config.vocab_size
    hidden = model(ids, Layout.whole(LENGTHS)).hidden_Td
    loss = model.ops.at("head").cross_entropy(hidden, model.head.weight, ids.roll(-1)).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    state, results = State(model.config, LENGTHS[0] + DECODED, chunk=LENGTHS[0]), [hidden.detach()]
    with torch.no_grad():
        results.append(model(ids[: LENGTHS[0]], Layout.whole(LENGTHS[:1]), state).hidden_Td)
        for i in range(DECODED):
            results.append(model(ids[i : i + 1], Layout((LENGTHS[0] + i,), (1,)), state).hidden_Td)
    return results + [gradient for gradient in gradients if gradient is not None]
