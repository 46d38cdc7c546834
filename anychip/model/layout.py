"""How the sequences of a batch lie in the token dimension: one after the other, without padding.

Packed samples, a batch of unequal prompts, a chunk of a long prompt and one decoded token for each of many
sequences are all the same thing: for each sequence, how many tokens are already cached and how many are new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..ops import Ranges


@dataclass(frozen=True)
class Layout:
    """`starts[s]` tokens of sequence s are in the cache, `lengths[s]` tokens of it are new in this call."""

    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.starts) != len(self.lengths):
            raise InputError(f"{len(self.starts)} starts for {len(self.lengths)} sequences")
        if not self.lengths or min(self.lengths) < 1 or min(self.starts) < 0:
            raise InputError(f"every sequence needs at least one new token; lengths are {self.lengths}")

    @classmethod
    def whole(cls, lengths: Sequence[int]) -> Layout:
        """Sequences that begin here: nothing is cached."""
        return cls((0,) * len(lengths), tuple(lengths))

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens of each sequence after this call."""
        return tuple(start + length for start, length in zip(self.starts, self.lengths, strict=True))

    @property
    def num_tokens(self) -> int:
        """New tokens of all sequences together: T."""
        return sum(self.lengths)

    def last_rows(self) -> Tensor:
        """Return the row of each sequence's last new token, int64 [num sequences]."""
        return torch.tensor(self.lengths).cumsum(0) - 1

    def positions(self) -> Tensor:
        """Return each token's position in its own sequence, int64 [T]."""
        return torch.cat([torch.arange(a, b) for a, b in zip(self.starts, self.ends, strict=True)])

    def offsets(self) -> Tensor:
        """Return the token row of each sequence's first new token, int64 [num sequences]."""
        return torch.tensor((0, *self.lengths[:-1])).cumsum(0)

    def spread(self, per_sequence: Sequence[int] | Tensor) -> Tensor:
        """Repeat one number of each sequence for each of its new tokens, int64 [T]."""
        values = torch.as_tensor(per_sequence)
        return values.expand(self.num_tokens) if len(self.lengths) == 1 else values.repeat_interleave(
            torch.tensor(self.lengths)
        )


def window_ranges(layout: Layout, positions_T: Tensor, row_of_zero: Tensor, window: int) -> Ranges:
    """Rows of the last `window` tokens up to each token. Position p of sequence s is row `row_of_zero[s] + p`."""
    if layout.num_tokens == 1:  # a decode step: numbers are quicker than tensors of one
        end = layout.ends[0]
        seen = min(end, window)
        return _one_range(int(row_of_zero) + end - seen, seen)
    first = (positions_T - (window - 1)).clamp_min(0)
    pairs = sum(_sum_clipped(end, window) - _sum_clipped(start, window)
                for start, end in zip(layout.starts, layout.ends, strict=True))
    start = layout.spread(row_of_zero) + first
    return Ranges(start.int(), (positions_T - first + 1).int(), pairs, min(window, max(layout.ends)))


def visible_ranges(layout: Layout, positions_T: Tensor, row_of_zero: Tensor, ratio: int) -> Ranges:
    """Rows of the compressed entries whose window closed at or before each token: i < floor((t+1)/ratio)."""
    if layout.num_tokens == 1:
        return _one_range(int(row_of_zero), layout.ends[0] // ratio)
    pairs = sum(_sum_floor(end, ratio) - _sum_floor(start, ratio)
                for start, end in zip(layout.starts, layout.ends, strict=True))
    count = (positions_T + 1) // ratio
    return Ranges(layout.spread(row_of_zero).int(), count.int(), pairs, max(layout.ends) // ratio)


def _one_range(start: int, count: int) -> Ranges:
    return Ranges(torch.tensor([start], dtype=torch.int32), torch.tensor([count], dtype=torch.int32), count, count)


def _sum_clipped(end: int, window: int) -> int:
    """Sum of min(window, p + 1) for p in 0..end-1."""
    short = min(end, window)
    return short * (short + 1) // 2 + (end - short) * window


def _sum_floor(end: int, ratio: int) -> int:
    """Sum of floor((p + 1) / ratio) for p in 0..end-1."""
    full, rest = divmod(end + 1, ratio)
    return ratio * full * (full - 1) // 2 + rest * full
