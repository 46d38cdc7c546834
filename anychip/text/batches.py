"""Training batches cut from a stream of tokens: what a step sees depends only on the seed and the step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch

from anychip.errors import InputError
from anychip.text.tokenizer import Tokenizer


def encode_documents(tokenizer: Tokenizer, documents: Iterable[str]) -> torch.Tensor:
    """One stream of ids [tokens], int64: each document is preceded by the begin token (or end token)."""
    stream: list[int] = []
    for document in documents:
        stream += tokenizer.start or [tokenizer.eos_id]
        stream.extend(tokenizer.encode(document))
    return torch.tensor(stream, dtype=torch.int64)


class TokenBatches:
    """Windows of a token stream, drawn with replacement; step `n` can be made without steps 0 to n-1.

    The positions come from sha256, not from a framework's random generator, so that every chip, torch version
    and operating system draws the same ones, and a resumed run sees what an unbroken one would have seen.
    """

    def __init__(self, ids: Sequence[int] | torch.Tensor, batch: int, length: int, seed: int) -> None:
        """`ids` [tokens]: the stream; `batch`: windows a step; `length`: tokens a window.

        Raises InputError, with all reasons, for a stream of fewer than `length + 1` tokens, a shape, type or
        value that is not a token's, and a batch or length below 1.
        """
        stream = torch.as_tensor(ids)
        reasons = _reasons(stream, batch, length)
        if reasons:
            raise InputError("cannot cut batches: " + "; ".join(reasons))
        self.ids = stream.detach().to("cpu", torch.int64).contiguous()
        self.batch, self.length, self.seed = batch, length, seed

    @property
    def digest(self) -> str:
        """Sha256 (hexadecimal) of the stream as little-endian int64, whatever the batch, length and seed."""
        return hashlib.sha256(self.ids.numpy().astype("<i8").tobytes()).hexdigest()

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The inputs and targets of `step` (0, 1, ...): two int64 tensors [batch, length] on the CPU.

        `targets[b, t]` is the token that follows `inputs[b, t]`. Raises InputError for a negative step.
        """
        if step < 0:
            raise InputError(f"there is no training step {step}; steps count from 0")
        starts = torch.tensor([self._start(step, row) for row in range(self.batch)])
        windows = self.ids[starts[:, None] + torch.arange(self.length + 1)]
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def _start(self, step: int, row: int) -> int:
        """First token of one window. 64 bits modulo a few millions: the bias is below 1e-12."""
        drawn = hashlib.sha256(f"{self.seed}/{step}/{row}".encode()).digest()
        return int.from_bytes(drawn[:8], "little") % (self.ids.numel() - self.length)


def _reasons(stream: torch.Tensor, batch: int, length: int) -> list[str]:
    """Everything that is wrong with the arguments of `TokenBatches`."""
    reasons = []
    if batch < 1:
        reasons.append(f"batch={batch}, at least 1 is needed")
    if length < 1:
        reasons.append(f"length={length}, at least 1 is needed")
    if stream.dim() != 1:
        reasons.append(f"the token stream has shape {list(stream.shape)}, [tokens] is needed")
    elif stream.numel() < length + 1:
        reasons.append(
            f"the text has {stream.numel()} tokens, length={length} needs at least {length + 1}: "
            "give more text or a shorter length"
        )
    if stream.numel() and (stream.is_floating_point() or stream.is_complex() or stream.dtype == torch.bool):
        reasons.append(f"token ids are {stream.dtype}, whole numbers are needed")
    elif stream.numel() and int(stream.min()) < 0:
        reasons.append(f"the smallest token id is {int(stream.min())}, ids count from 0")
    return reasons
