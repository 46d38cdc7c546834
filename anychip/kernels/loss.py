"""The language-model loss by blocks of the vocabulary, and its gradient: a full logits tensor never exists.

The maximum and the sum of exponentials are kept for each lane of a block and joined at the end: no number goes
from the vector unit to the scalar unit within the loop. Shape suffixes: T tokens, d hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .example import Launch, example
from .grid import TILE, Args, power_of_2, programs
from .launch import Launcher
from .matmul import product

CHUNK = 1024  # tokens whose logits exist at once

# ------------------------------------------------------------------------------------------------ examples


def _inputs(seed: int, tokens: int, vocab: int, dtype: torch.dtype) -> Args:
    """Logits from flat to one-hot, one row far from 0, targets at both ends, one token ignored."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, vocab, generator=g) * torch.logspace(-1, 1.5, tokens)[:, None]
    logits[1] += 1e4
    target = torch.randint(vocab, (tokens,), generator=g, dtype=torch.int32)
    target[0], target[1], target[2] = vocab - 1, 0, -1
    return {"logits": logits.to(dtype), "target": target}


def _forward_launch(seed: int, tokens: int, vocab: int, dtype: torch.dtype, block: int) -> Launch:
    args: Args = {**_inputs(seed, tokens, vocab, dtype), "loss": torch.empty(tokens), "lse": torch.empty(tokens),
                  "tokens": tokens}
    return Launch(args, (2,), {"V": vocab, "BLOCK": block}, ("loss", "lse"))


def _odd_vocabulary(seed: int) -> Launch:
    return _forward_launch(seed, 5, 1237, torch.float32, 256)


def _published_vocabulary(seed: int) -> Launch:
    return _forward_launch(seed, 3, 129280, torch.bfloat16, 4096)


def _forward_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    lse = a["logits"].logsumexp(-1)
    hit = a["logits"].gather(1, a["target"].long().clamp_min(0)[:, None])[:, 0]
    return {"loss": torch.where(a["target"] < 0, 0.0, lse - hit), "lse": lse}


def _backward_launch(seed: int) -> Launch:
    args = _inputs(seed, 5, 1237, torch.float32)
    logits = args["logits"]
    assert isinstance(logits, Tensor)
    args |= {"lse": logits.double().logsumexp(-1).float(), "dloss": torch.tensor([1.0, 0.5, 3.0, 0.0, 1e-3]),
             "tokens": 5}
    return Launch(args, (2,), {"V": 1237, "BLOCK": 256}, ("logits",))


def _backward_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    hot = torch.nn.functional.one_hot(a["target"].long().clamp_min(0), a["V"])
    scale = torch.where(a["target"] < 0, 0.0, a["dloss"])[:, None]
    return {"logits": ((a["logits"] - a["lse"][:, None]).exp() - hot) * scale}


# ------------------------------------------------------------------------------------------------- kernels


@example(_published_vocabulary, _forward_reference)
@example(_odd_vocabulary, _forward_reference)
@triton.jit
def cross_entropy_forward(logits, target, loss, lse, tokens, V: tl.constexpr, BLOCK: tl.constexpr):
    """loss [T] = lse - logits[target] (0 where target < 0) and lse [T] = logsumexp of logits [T, V]."""
    c = tl.arange(0, BLOCK)
    for token in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        peak = tl.full((BLOCK,), -1e30, tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for k in range(0, V, BLOCK):
            x = tl.load(logits + token * V + k + c, mask=c < V - k, other=-float("inf")).to(tl.float32)
            higher = tl.maximum(peak, x)
            total = total * tl.exp(peak - higher) + tl.exp(x - higher)
            peak = higher
        top = tl.max(peak, 0)
        whole = tl.log(tl.sum(total * tl.exp(peak - top), 0)) + top
        wanted = tl.load(target + token)
        x = tl.load(logits + token * V + tl.minimum(tl.maximum(wanted, 0), V - 1)).to(tl.float32)
        tl.store(loss + token, tl.where(wanted >= 0, whole - x, 0.0))
        tl.store(lse + token, whole)


@example(_backward_launch, _backward_reference)
@triton.jit
def cross_entropy_backward(logits, target, lse, dloss, tokens, V: tl.constexpr, BLOCK: tl.constexpr):
    """logits [T, V] = (softmax - one-hot of target) * dloss, in place; 0 where target < 0."""
    c = tl.arange(0, BLOCK)
    for token in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        wanted = tl.load(target + token)
        whole = tl.load(lse + token)
        scale = tl.where(wanted >= 0, tl.load(dloss + token), 0.0)
        for k in range(0, V, BLOCK):
            x = tl.load(logits + token * V + k + c, mask=c < V - k, other=0.0).to(tl.float32)
            # 1 at the target and 0 elsewhere without a comparison: the 950's compiler turns `where(c == label)` into
            # a copy of one element whose place it does not check against the tile
            hit = tl.maximum(1 - tl.abs(c - (wanted - k).to(tl.int32)), 0).to(tl.float32)
            p = (tl.exp(x - whole) - hit) * scale
            tl.store(logits + token * V + k + c, p.to(logits.dtype.element_ty), mask=c < V - k)


# ---------------------------------------------------------------------------------------------------- host


def cross_entropy(launch: Launcher, hidden_Td: Tensor, head_Vd: Tensor, target_T: Tensor) -> Tensor:
    """`ops.cross_entropy`: -log softmax(hidden @ head^T)[target] of each token, fp32 [T]; 0 where target < 0.

    Logits are made CHUNK tokens at a time, and made again for the gradients of hidden and head.
    """
    out: Tensor = _CrossEntropy.apply(launch, hidden_Td, head_Vd, target_T)
    return out


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launcher, hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
        target = target.int().contiguous()
        loss, lse = (torch.empty(hidden.shape[0], device=hidden.device) for _ in range(2))
        head32 = head.float()
        for span in _chunks(hidden):
            args: Args = {"logits": _logits(launch, hidden[span], head32), "target": target[span], "loss": loss[span],
                          "lse": lse[span], "tokens": target[span].shape[0]}
            launch(cross_entropy_forward, programs(launch, target[span].shape[0]), args, _constants(head))
        ctx.launch = launch
        ctx.save_for_backward(hidden, head, target, lse)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None]:
        hidden, head, target, lse = ctx.saved_tensors
        launch, dloss = ctx.launch, grads[0].contiguous()
        head32, dhidden = head.float(), torch.empty_like(hidden, dtype=torch.float32)
        dhead, part = torch.zeros_like(head32), torch.empty_like(head32)
        for span in _chunks(hidden):
            dlogits = _logits(launch, hidden[span], head32)
            args: Args = {"logits": dlogits, "target": target[span], "lse": lse[span], "dloss": dloss[span],
                          "tokens": dlogits.shape[0]}
            launch(cross_entropy_backward, programs(launch, dlogits.shape[0]), args, _constants(head))
            product(launch, dlogits[None], head32[None], dhidden[span][None], "nn")
            dhead += product(launch, dlogits[None], hidden[span].float()[None], part[None], "tn")[0]
        return None, dhidden.to(hidden.dtype), dhead.to(head.dtype), None


def _chunks(hidden: Tensor) -> list[slice]:
    return [slice(at, at + CHUNK) for at in range(0, hidden.shape[0], CHUNK)]


def _logits(launch: Launcher, hidden: Tensor, head32: Tensor) -> Tensor:
    out = head32.new_empty(1, hidden.shape[0], head32.shape[0])
    return product(launch, hidden.float()[None], head32[None], out, "nt")[0]


def _constants(head: Tensor) -> dict[str, Any]:
    return {"V": head.shape[0], "BLOCK": min(power_of_2(head.shape[0]), TILE)}
