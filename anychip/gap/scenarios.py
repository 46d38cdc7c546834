"""Ways of running the model that reach every part of it: whole, packed, in chunks, in decode, with MTP."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model import Layout, State, Transformer
from .guided import Scenario

# Tokens of a chunked prompt: they end before, on and after the edges of 4 and 128, and pass the indexer's limit.
CHUNKS = (3, 1, 122, 2, 129, 30, 11)
PACKED = (5, 131, 266)
DECODED = 6


def scenarios(ids: Tensor, num_mtp: int) -> dict[str, Scenario]:
    """Return the scenarios by name, over the first tokens of `ids` (at least 402)."""

    def whole(model: Transformer) -> None:
        probe = _place(ids[:320], model)
        model.logits(model(probe, Layout.whole([len(probe)])).hidden_Td)

    def packed(model: Transformer) -> None:
        model(_place(ids[: sum(PACKED)], model), Layout.whole(PACKED))

    def chunks(model: Transformer) -> None:
        lengths = (*CHUNKS, *(1,) * DECODED)
        _continue(model, ids, [(length,) for length in lengths])

    def decode(model: Transformer) -> None:
        _continue(model, ids, [(130, 7), *((1, 1),) * DECODED])

    def mtp(model: Transformer) -> None:
        layout = Layout.whole([100, 40])
        hidden = model(_place(ids[:140], model), layout)
        model.predict_next(hidden.streams_Tnd, _place(ids[1:141], model), layout)

    found: dict[str, Scenario] = {"whole": whole, "packed": packed, "chunks": chunks, "decode": decode}
    return found | ({"mtp": mtp} if num_mtp else {})


def _place(ids: Tensor, model: Transformer) -> Tensor:
    return ids.to(model.embed.weight.device)


def _continue(model: Transformer, ids: Tensor, passes: list[tuple[int, ...]]) -> None:
    """Feed one or several sequences to a state, `passes[i]` new tokens of each in pass i."""
    num = len(passes[0])
    most = max(sum(lengths[s] for lengths in passes) for s in range(num))
    longest = max(max(lengths) for lengths in passes)
    state = State(model.config, most, num_sequences=num, chunk=longest, device=model.embed.weight.device)
    done = [0] * num
    for lengths in passes:
        new = torch.cat([ids[s + done[s] : s + done[s] + lengths[s]] for s in range(num)])
        model(_place(new, model), Layout(tuple(done), lengths), state)
        done = [a + b for a, b in zip(done, lengths, strict=True)]
