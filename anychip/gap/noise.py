"""The noise of a chip: how far its own output moves when nothing that matters changes.

The same text again, the sequences one by one in reverse order, in chunks with a cache, and the plain-torch definition
emulated in the chip's number format. A gap between two chips is real only above these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..chips import Chip
from ..chips.virtual import VirtualOps
from ..model import Layout, State, Transformer
from .bundle import Bundle
from .proof import Reference

CHUNK = 100  # tokens of a chunk: crosses the edges of 4 and 128 at other places than one pass does
KINDS = {"again": "the same run again", "alone": "the sequences one by one", "chunks": "in chunks, with a cache",
         "format": "the definition, emulated in the chip's format"}


def record_noise(reference: Reference, chip: Chip, bundle: Bundle) -> None:
    """Keep the KL divergence by position of each changed run from the plain one, on the first sequences of the text."""
    subject = reference.subject
    length = subject.settings.text_length
    parts = list(subject.ids[: min(2 * length, subject.settings.text_tokens)].split(length))
    model = subject.model(chip)
    with torch.no_grad():
        plain = _together(model, parts)
        runs = {"again": _together(model, parts), "alone": _alone(model, parts), "chunks": _chunks(model, parts)}
        for name, changed in runs.items():
            bundle.tensors[f"noise/{name}"] = divergence(plain, changed)
        bundle.tensors["noise/format"] = _format_noise(reference, chip, parts)


def divergence(a_TV: Tensor, b_TV: Tensor) -> Tensor:
    """Return KL(a, b) in nats for each position of two tables of log-probabilities; never below 0."""
    a, b = a_TV.double(), b_TV.double()
    return (a.exp() * (a - b)).sum(-1).clamp_min(0).float()


def _format_noise(reference: Reference, chip: Chip, parts: list[Tensor]) -> Tensor:
    if chip.precision == "fp32":
        return torch.zeros(sum(map(len, parts)))
    exact = reference.subject.model(reference.fast_chip)
    rounded = reference.subject.model(reference.fast_chip)
    rounded.ops = VirtualOps(rounded.ops, chip.precision)
    return divergence(_together(exact, parts), _together(rounded, parts))


def _together(model: Transformer, parts: list[Tensor]) -> Tensor:
    ids = torch.cat(parts).to(model.embed.weight.device)
    return _logprobs(model, model(ids, Layout.whole([len(part) for part in parts])).hidden_Td)


def _alone(model: Transformer, parts: list[Tensor]) -> Tensor:
    return torch.cat([_together(model, [part]) for part in reversed(parts)][::-1])


def _chunks(model: Transformer, parts: list[Tensor]) -> Tensor:
    return torch.cat([_in_chunks(model, part) for part in parts])


def _in_chunks(model: Transformer, part: Tensor) -> Tensor:
    device = model.embed.weight.device
    state, done, found = State(model.config, len(part), chunk=CHUNK, device=device), 0, []
    for piece in part.split(CHUNK):
        hidden = model(piece.to(device), Layout((done,), (len(piece),)), state).hidden_Td
        found.append(_logprobs(model, hidden))
        done += len(piece)
    return torch.cat(found)


def _logprobs(model: Transformer, hidden_Td: Tensor) -> Tensor:
    return model.logits(hidden_Td).float().cpu().log_softmax(-1)
