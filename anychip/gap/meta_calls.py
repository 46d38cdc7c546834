"""The op calls of a model's steps, from the model itself on the meta device: no weights, no arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..config import ModelConfig
from ..model import Layout, State, Transformer
from ..ops.recorded import RecordedOps
from ..ops.shapes import ShapeOps
from ..record import Event, Kind, Recorder

TRAIN_SEQUENCES, TRAIN_LENGTH = 16, 4096

Calls = tuple[list[Event], list[tuple[Any, ...]]]  # events, and the arguments of each: positional ones, then named


def train_calls(config: ModelConfig, sequences: int = TRAIN_SEQUENCES, length: int = TRAIN_LENGTH) -> Calls:
    """Return the calls of a forward and backward pass over `sequences` of `length` tokens, loss included."""
    calls, model = _recorded(config)
    ids = torch.empty(sequences * length, dtype=torch.int64, device="meta")
    with torch.no_grad():
        hidden = model(ids, Layout.whole([length] * sequences))
        model.ops.at("head").cross_entropy(hidden.hidden_Td, model.head.weight, ids)
    events, arguments = calls
    backward = [replace(e, op=f"{e.op} backward", flops=2 * e.flops, bytes=2 * e.bytes) for e in events]
    return events + backward, arguments * 2


def decode_calls(config: ModelConfig, context: int) -> Calls:
    """Return the calls of one decoded token of one sequence after `context` tokens, logits included."""
    calls, model = _recorded(config)
    state = State(config, context + 1, chunk=1, device="meta", dtype=torch.bfloat16)
    state.assume(context)
    with torch.no_grad():
        hidden = model(torch.empty(1, dtype=torch.int64, device="meta"), Layout((context,), (1,)), state)
        model.ops.at("head").linear(hidden.hidden_Td, model.head.weight)
    return calls


def prefill_calls(config: ModelConfig, length: int) -> Calls:
    """Return the calls of one prompt of `length` tokens into an empty cache, the last token's logits included."""
    calls, model = _recorded(config)
    state = State(config, length, chunk=length, device="meta", dtype=torch.bfloat16)
    with torch.no_grad():
        hidden = model(torch.empty(length, dtype=torch.int64, device="meta"), Layout.whole([length]), state)
        model.ops.at("head").linear(hidden.hidden_Td[-1:], model.head.weight)
    return calls


def _recorded(config: ModelConfig) -> tuple[Calls, Transformer]:
    """A model on the meta device, and the calls that its ops will have had."""
    calls: Calls = ([], [])

    def keep(event: Event, arguments: tuple[Any, ...], result: object) -> None:
        calls[0].append(event)
        calls[1].append(arguments)

    with torch.device("meta"):
        model = Transformer(config, RecordedOps(ShapeOps(), Recorder(watch=keep), Kind.SIMULATED))
    return calls, model.to(torch.bfloat16)
