"""Parameters that checkpoints call `<name>.weight`, and `<name>.bias`."""

from __future__ import annotations

import torch
from torch import nn


class Weight(nn.Module):
    """A named parameter called `weight`, as checkpoints spell it."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))


class Biased(Weight):
    """With a `bias` of the same shape: a LayerNorm's."""

    def __init__(self, *shape: int) -> None:
        super().__init__(*shape)
        self.bias = nn.Parameter(torch.empty(*shape))
