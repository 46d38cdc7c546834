"""The decode state: what each layer's attention keeps of the tokens before (`Buffer`s of its spec).

Every sequence owns a run of rows in each buffer. Buffers of tokens keep only the last few (older rows are
dropped when room is needed); buffers of entries keep all. All layers of a kind share one `Book`,
so which row holds which position is worked out once a pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import ModelConfig
from ..config.specs import Buffer
from ..errors import InputError
from .layout import Layout


@dataclass
class Book:
    """Which positions a buffer holds: sequence s has rows [s*capacity, (s+1)*capacity), from position base[s]."""

    capacity: int
    keep: int  # rows before the next token that must survive; -1 keeps all
    base: list[int]
    device: torch.device | str = "cpu"  # of the buffers: row numbers that index them lie there too
    ratio: int = 1  # tokens a row
    moves: list[tuple[int, int, int]] = field(default_factory=list)  # (from row, to row, rows) of this pass
    targets: slice | Tensor | None = None  # rows that this pass's new rows go to

    def begin(self, starts: tuple[int, ...], ends: tuple[int, ...]) -> None:
        """Make room for positions starts..ends and note where they go."""
        self.moves, spans = [], []
        for s, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if end - self.base[s] > self.capacity:
                base = max(start - self.keep, 0)
                origin = s * self.capacity
                self.moves.append((origin + base - self.base[s], origin, start - base))
                self.base[s] = base
            offset = s * self.capacity - self.base[s]
            spans.append((start + offset, end + offset))
        if len(spans) == 1:
            self.targets = slice(*spans[0])
        else:
            self.targets = torch.cat([torch.arange(a, b) for a, b in spans]).to(self.device)

    def row_of_zero(self) -> Tensor:
        """Row at which position 0 of each sequence would lie, int64 [num sequences]."""
        return torch.tensor([s * self.capacity - base for s, base in enumerate(self.base)])


class State:
    """The cache of `num_sequences` sequences of at most `max_tokens` each, fed at most `chunk` tokens a pass.

    Bytes are exactly those of its tensors (`nbytes()`); a pass that fails half-way leaves it unusable.
    """

    def __init__(self, config: ModelConfig, max_tokens: int, *, num_sequences: int = 1, chunk: int = 1024,
                 device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        if max_tokens > config.max_position_embeddings:
            raise InputError(f"{max_tokens} tokens were asked for; this model's context is "
                             f"{config.max_position_embeddings} (max_position_embeddings): shorten the input")
        self.config, self.chunk, self.max_tokens = config, max(1, min(chunk, max_tokens)), max_tokens
        self.num_tokens = [0] * num_sequences
        self._books: dict[str, Book] = {}
        self._tensors: dict[tuple[int, str], Tensor] = {}
        self._book_of: dict[tuple[int, str], Book] = {}
        self._layout: Layout | None = None
        for layer in range(config.num_blocks):
            for buffer in config.layer(layer).attention.buffers:
                book = self._books.setdefault(buffer.book, self._new_book(buffer, num_sequences, device))
                rows = book.capacity * num_sequences
                self._book_of[layer, buffer.name] = book
                self._tensors[layer, buffer.name] = torch.zeros(rows, buffer.width, device=device, dtype=dtype)

    def _new_book(self, buffer: Buffer, num_sequences: int, device: torch.device | str) -> Book:
        base = [0] * num_sequences
        if buffer.keep is None:
            return Book(max(self.max_tokens // buffer.ratio, 1), -1, base, device, buffer.ratio)
        return Book(buffer.keep + max(self.chunk, 64), buffer.keep, base, device)

    def begin(self, layout: Layout) -> None:
        """Make room for a pass. Raises InputError where it does not continue this state or exceeds its room."""
        if list(layout.starts) != self.num_tokens:
            raise InputError(f"the state holds {self.num_tokens} tokens, the layout continues from {layout.starts}")
        if max(layout.ends) > self.max_tokens or max(layout.lengths) > self.chunk:
            raise InputError(f"a pass of {layout.lengths} tokens to {layout.ends} exceeds this state "
                             f"(max_tokens={self.max_tokens}, chunk={self.chunk})")
        self._layout = layout
        for book in self._books.values():
            book.begin(tuple(n // book.ratio for n in layout.starts), tuple(n // book.ratio for n in layout.ends))

    def assume(self, num_tokens: int) -> None:
        """Take `num_tokens` tokens of each sequence as cached, with whatever the buffers hold.

        For costing and timing at a context length without computing the context; logits then mean nothing.
        """
        self.num_tokens = [num_tokens] * len(self.num_tokens)
        for book in self._books.values():
            if book.keep >= 0:
                book.base = [max(num_tokens - book.keep, 0)] * len(self.num_tokens)

    def row_of_zero(self, book: str) -> Tensor:
        """Row of position (or entry) 0 of each sequence in the buffers of this book."""
        return self._books[book].row_of_zero()

    def write(self, layer: int, name: str, rows: Tensor) -> Tensor:
        """Put this pass's rows of one buffer in place and return the whole buffer [rows, width]."""
        tensor = self.make_room(layer, name)
        tensor[self._book_of[layer, name].targets] = rows
        return tensor

    def make_room(self, layer: int, name: str) -> Tensor:
        """Do this pass's moves in one buffer, once a pass, and return the buffer; new rows are not written yet."""
        tensor = self._tensors[layer, name]
        for source, target, count in self._book_of[layer, name].moves:
            tensor[target : target + count] = tensor[source : source + count].clone()
        return tensor

    @property
    def moving(self) -> bool:
        """Tell whether this pass moves rows in any buffer."""
        return any(book.moves for book in self._books.values())

    def targets(self, book: str) -> slice | Tensor:
        """Rows that this pass's new rows go to in the buffers of this book."""
        targets = self._books[book].targets
        assert targets is not None
        return targets

    def buffers(self, layer: int) -> dict[str, Tensor]:
        """Return one layer's buffers by name. They stay the same tensors as long as the state lives."""
        return {name: tensor for (owner, name), tensor in self._tensors.items() if owner == layer}

    def commit(self) -> None:
        """End a pass: its tokens now belong to the state."""
        assert self._layout is not None
        self.num_tokens = list(self._layout.ends)

    def nbytes(self) -> int:
        """Return the bytes of all buffers."""
        return sum(t.numel() * t.element_size() for t in self._tensors.values())


@dataclass(frozen=True)
class LayerCache:
    """One layer's view of the state; without a state (training, one whole pass) rows come back as they are."""

    layer: int
    state: State | None

    def write(self, name: str, rows: Tensor) -> Tensor:
        """Store this pass's rows and return all rows that may be read."""
        return rows if self.state is None else self.state.write(self.layer, name, rows)
