"""The weights that implementations are judged on: the shipped `nano`, and `outliers`, made from it.

Small trained models lack what real checkpoints have: channels that are far larger than the others, and SwiGLU inputs
beyond the clamp. `outliers` has both. Every change multiplies by a power of two, so that the weights are the same bit
for bit on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import convert, save_checkpoint
from ..config import DeepseekV4Config, ModelConfig, only
from ..errors import InputError, nearest
from ..model import Transformer
from ..ops import Ops
from ..serve.models import model_folder, open_model
from ..text.tokenizer import Tokenizer

SETS = ("nano", "outliers")
NAMINGS = ("publisher", "transformers")
_SEED = 4
_LOUD_CHANNELS, _LOUD = 3, 32.0  # per norm: channels of the hidden state, and how much louder they are
_CLAMPED_ROWS, _STEEP = 2, 16.0  # per expert matrix: rows whose products pass the clamp's limit, and their factor


@dataclass(frozen=True)
class WeightSet:
    """A model's configuration, weights (fp32, by the publisher's names, experts stacked) and tokenizer."""

    name: str
    config: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer

    @property
    def digest(self) -> str:
        """The sha256 of the weights, by name."""
        found = hashlib.sha256()
        for name in sorted(self.weights):
            found.update(name.encode())
            found.update(self.weights[name].contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def model(self, ops: Ops | None = None) -> Transformer:
        """Return a new model with these weights on the host; `ops` None: the plain-torch definition."""
        model = Transformer(self.config, ops or Ops())
        model.load_state_dict(self.weights)
        return model.eval()


def weight_set(name: str) -> WeightSet:
    """Return a set by name. Raises InputError for an unknown one."""
    if name not in SETS:
        raise InputError(f"there are no conformance weights {name!r}.{nearest(name, SETS)} Choices: {', '.join(SETS)}")
    from ..chips import open_chip

    model, tokenizer = open_model(model_folder("nano"), open_chip("cpu:reference"))
    if name == "outliers":
        with torch.no_grad():
            _add_outliers(model)
    return WeightSet(name, model.config, {n: t.detach().float() if t.is_floating_point() else t.detach()
                                          for n, t in model.state_dict().items()}, tokenizer)


def export(chosen: WeightSet, folder: Path, naming: str = "transformers") -> None:
    """Write the weights in fp32 with config and tokenizer to a folder that does not exist yet, or is empty.

    Raises InputError for an unknown naming or an occupied folder.
    """
    if naming not in NAMINGS:
        raise InputError(f"there is no naming {naming!r}.{nearest(naming, NAMINGS)} Choices: {', '.join(NAMINGS)}")
    model = chosen.model()
    if naming == "publisher":
        save_checkpoint(model, model.config, folder, tokenizer=chosen.tokenizer, format="fp32")
        return
    import tempfile

    with tempfile.TemporaryDirectory() as ours:
        save_checkpoint(model, model.config, Path(ours, "ours"), tokenizer=chosen.tokenizer, format="fp32")
        convert(Path(ours, "ours"), folder, to="transformers")


def widened(chosen: WeightSet, index_head_dim: int) -> WeightSet:
    """Return the same function with a wider indexer, for runtimes that cannot run a narrow one (llama.cpp: 128).

    The new channels are zero. The norm over more channels is undone by its weight, so scores keep their order; its
    epsilon counts for more by the ratio of the widths. Raises InputError where the new width is not a power of four
    times the old one (2^n is exact in the weight).
    """
    config = only(chosen.config, DeepseekV4Config, "a wider indexer")
    old, ratio = config.index_head_dim, index_head_dim // config.index_head_dim
    if index_head_dim != old * ratio or ratio not in (1, 4, 16, 64):
        raise InputError(f"index_head_dim={index_head_dim} must be {old} times 1, 4, 16 or 64")
    weights = {name: _widen(name, tensor, old, ratio) for name, tensor in chosen.weights.items()}
    return replace(chosen, config=replace(config, index_head_dim=index_head_dim), weights=weights)


def _widen(name: str, tensor: Tensor, old: int, ratio: int) -> Tensor:
    """Put zeros before every head's channels; the rotated ones stay last."""
    _, found, part = name.partition(".indexer.")
    if not found or part == "weights_proj.weight":
        return tensor
    axis = 1 if part == "compressor.ape" else 0
    cut = tensor.unflatten(axis, (-1, old))
    shape = list(cut.shape)
    shape[axis + 1] = old * (ratio - 1)
    wide = torch.cat((cut.new_zeros(shape), cut), axis + 1).flatten(axis, axis + 1)
    return wide / ratio**0.5 if part == "compressor.norm.weight" else wide


def _add_outliers(model: Transformer) -> None:
    """Make a few channels loud (their readers quieter by as much) and a few SwiGLU rows steep, in place."""
    random = torch.Generator().manual_seed(_SEED)
    for block in (*model.layers, *model.mtp):
        attn, ffn = block.attn, block.ffn  # type: ignore[union-attr]
        readers = [attn.wq_a, attn.wkv]  # type: ignore[union-attr]
        if attn.compressor is not None:  # type: ignore[union-attr]
            readers += [attn.compressor.wkv, attn.compressor.wgate]  # type: ignore[union-attr,list-item]
        if attn.indexer is not None:  # type: ignore[union-attr]
            inner = attn.indexer  # type: ignore[union-attr]
            readers += [inner.weights_proj, inner.compressor.wkv, inner.compressor.wgate]  # type: ignore[union-attr,list-item]
        shared, experts = ffn.shared_experts, ffn.experts  # type: ignore[union-attr]
        loud = torch.randperm(model.config.hidden_size, generator=random)[:_LOUD_CHANNELS]
        block.attn_norm.weight[loud] *= _LOUD  # type: ignore[union-attr,index,operator]
        for reader in readers:
            reader.weight[:, loud] /= _LOUD  # type: ignore[union-attr,index,operator]
        loud = torch.randperm(model.config.hidden_size, generator=random)[:_LOUD_CHANNELS]
        block.ffn_norm.weight[loud] *= _LOUD  # type: ignore[union-attr,index,operator]
        for matrix in (ffn.gate.weight, shared.w1.weight, shared.w3.weight, experts.w13):  # type: ignore[union-attr]
            matrix[..., loud] /= _LOUD  # type: ignore[index,operator]
        for gate_up in _steep_rows(shared, experts):
            rows = torch.randperm(gate_up.shape[0], generator=random)[:_CLAMPED_ROWS]
            gate_up[rows] *= _STEEP


def _steep_rows(shared: torch.nn.Module, experts: torch.nn.Module) -> Iterator[Tensor]:
    yield shared.w1.weight  # type: ignore[union-attr,misc]
    yield shared.w3.weight  # type: ignore[union-attr,misc]
    yield from experts.w13.unbind(0)  # type: ignore[union-attr,operator]
