"""Small models and folders that the checkpoint tests share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from anychip.config import ModelConfig, load_config
from anychip.model import Transformer, initialize
from anychip.ops import Ops


def small_config(**changes: Any) -> ModelConfig:
    """Nano cut down, with widths that leave cut edge blocks for the 128x128 scales."""
    config = dataclasses.replace(
        load_config("nano"),
        vocab_size=160,
        num_hidden_layers=3,
        compress_ratios=(0, 4, 128, 0),
        n_routed_experts=4,
    )
    return dataclasses.replace(config, hidden_size=160, **changes)


def random_model(config: ModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config, Ops())
    initialize(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not name.endswith(("tid2eid", "weight", "w13", "w2")):
                tensor.normal_(std=0.3, generator=generator)  # sinks, biases and mHC begin at constants
    return model


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same_weights(a: Transformer, b: Transformer) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())
