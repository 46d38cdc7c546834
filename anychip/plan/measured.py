"""Seconds of this project's own training step, from its op calls timed one by one on the chip that would run it.

    step = scale * (sum over layers of (forward [+ forward again] + backward of every call) + losses + optimizer)

Each distinct call of a layer kind runs alone, on made-up arguments of its shapes, and so does the loss of each indexer
that selects; nothing is known of the step itself. `scale` is the one thing that the calls cannot tell - what the loop,
the autograd engine and the balance loss take, and warmer caches - and comes from one measured step of any model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..chips.kernel_calls import made_up, num_tokens
from ..config import ModelConfig
from ..model.attention import Watched
from ..ops import Ops
from ..ops.orthogonal import Matrices, MuonRule
from ..ops.trees import flat_tensors, map_tensors
from ..train.indexer_loss import indexer_loss
from ..train.muon import is_muons, logical_matrices
from .traced import traced_work
from .work import Batch, Call, Part, Work

REPEATS = 3
SHORTEST_S = 6e-3  # a shorter call is repeated until it has taken so long
ANGLES = {"rope": (1, 2), "norm_rope": (3, 4)}  # arguments that no gradient is asked for
AGAIN = ("embed", "head")  # parts that recomputation leaves alone


@dataclass(frozen=True)
class StepTime:
    """Processor seconds of a training step by part, before `scale`."""

    forward_s: float
    again_s: float
    backward_s: float
    losses_s: float
    optimizer_s: float

    @property
    def total_s(self) -> float:
        """All of the step."""
        return self.forward_s + self.again_s + self.backward_s + self.losses_s + self.optimizer_s


def step_time(config: ModelConfig, batch: int, length: int, ops: Ops, *, recompute: bool = False,
              optimizer: str = "muon") -> StepTime:
    """Time every distinct call of a step of `batch` sequences on torch's current threads, fp32, with `ops`.

    Takes about as long as training one layer of each kind, a few times.
    """
    work = traced_work(config, Batch(batch, length, training=True), "own", torch.float32)
    known: dict[str, tuple[float, float]] = {}
    forward = again = backward = 0.0
    for name, times in work.count.items():
        for call in work.parts[name].calls:
            if _key(call) not in known:
                known[_key(call)] = _call_s(call, ops)
        seconds = [known[_key(call)] for call in work.parts[name].calls]
        forward += times * sum(one for one, _ in seconds)
        backward += times * sum(two for _, two in seconds)
        again += times * sum(one for one, _ in seconds) if recompute and name not in AGAIN else 0.0
    losses = sum(times * _indexer_loss_s(work.parts[name], batch) for name, times in work.count.items())
    return StepTime(forward, again, backward, losses, _optimizer_s(work, config, ops, optimizer))


def _key(call: Call) -> str:
    """What a call's time depends on: the op, and the shapes of all its arguments."""
    def shape(value: Any) -> Any:
        if isinstance(value, Tensor):
            return tuple(value.shape)
        return [shape(item) for item in value] if isinstance(value, tuple) else value

    return repr((call.op, [tuple(t.shape) for t in flat_tensors(call.arguments)],
                 [shape(value) for value in call.arguments if not isinstance(value, Tensor)], call.named.keys()))


def _call_s(call: Call, ops: Ops) -> tuple[float, float]:
    """Processor seconds of one call forward and of its gradients."""
    made = made_up(call.op, call.arguments, dict(call.named), num_tokens(call.op, call.arguments))
    frozen = {id(made.arguments[place]) for place in ANGLES.get(call.op, ())}
    for tensor in flat_tensors((made.arguments, made.named)):
        if tensor.is_floating_point():
            tensor.uniform_(-0.5, 0.5)
            tensor.requires_grad_(id(tensor) not in frozen)
    run = getattr(ops, call.op)
    result = run(*made.arguments, **made.named)
    outputs = [t for t in flat_tensors(result) if t.requires_grad]
    inputs = [t for t in flat_tensors((made.arguments, made.named)) if t.requires_grad]
    forward_s = _mean_s(lambda: run(*made.arguments, **made.named))
    if not outputs:
        return forward_s * made.share, 0.0
    gradients = [torch.ones_like(t) for t in outputs]
    backward_s = _mean_s(lambda: torch.autograd.grad(outputs, inputs, gradients, retain_graph=True,
                                                       allow_unused=True))
    return forward_s * made.share, backward_s * made.share


def _indexer_loss_s(part: Part, sequences: int) -> float:
    """Processor seconds of the loss of a layer's indexer and of its gradients, 0 where none selects."""
    calls = {call.op: call for call in part.calls if call.op in ("index_topk", "attention")}
    if "index_topk" not in calls:
        return 0.0
    (query, keys, sink, *_), (scores, weights, index_keys, *_) = (
        map_tensors(made_up(call.op, call.arguments, dict(call.named), num_tokens(call.op, call.arguments)).arguments,
                    _random) for call in (calls["attention"], calls["index_topk"]))
    selected = chosen_rows(sequences, query.shape[0], keys.compressed_MC.shape[0], keys.selected.shape[1])
    scale = calls["attention"].named.get("scale") or query.shape[2] ** -0.5
    learned = [t.requires_grad_() for t in (scores, weights, index_keys)]
    watched = Watched(query, replace(keys, selected=selected), sink, scale, *learned)

    def loss_and_gradients() -> None:
        torch.autograd.grad(indexer_loss(watched), learned)

    return _mean_s(loss_and_gradients)


def chosen_rows(sequences: int, tokens: int, rows: int, topk: int) -> Tensor:
    """Return rows that each token chooses [tokens, topk], by chance among earlier ones of its own sequence, then -1.

    The loss works on the run of rows that a block of tokens chose from, which is short early in a sequence.
    """
    length, each = tokens // sequences, rows // sequences
    at = torch.arange(tokens)
    visible_T1 = ((at % length + 1) * each // length)[:, None]
    order = torch.rand(tokens, each).masked_fill_(torch.arange(each) >= visible_T1, 2.0).argsort(1)[:, :topk]
    chosen = torch.where(torch.arange(order.shape[1]) < visible_T1, order + (at // length * each)[:, None], -1)
    return chosen.int()


def _random(tensor: Tensor) -> Tensor:
    return tensor.uniform_(-0.5, 0.5) if tensor.is_floating_point() else tensor


def _optimizer_s(work: Work, config: ModelConfig, ops: Ops, optimizer: str) -> float:
    return sum(times * _update_s(work.parts[name], config, ops, optimizer) for name, times in work.count.items())


@torch.no_grad()
def _update_s(part: Part, config: ModelConfig, ops: Ops, optimizer: str) -> float:
    """Processor seconds of the optimizer's step on one part's parameters."""
    made = {w.name: nn.Parameter(torch.rand(w.shape)) for w in part.weights}
    matrices, others = [], []
    for name, parameter in made.items():
        if optimizer == "muon" and is_muons(name, parameter):
            views = (logical_matrices(name, t, config) for t in (parameter.data, torch.rand_like(parameter),
                                                                 torch.zeros_like(parameter)))
            matrices += [Matrices(*triple) for triple in zip(*views, strict=True)]
        else:
            parameter.grad = torch.rand_like(parameter)
            others.append(parameter)
    seconds = _mean_s(lambda: ops.muon(matrices, MuonRule(0.95, 1e-3, 0.1))) if matrices else 0.0
    return seconds + (_mean_s(torch.optim.AdamW(others, foreach=True).step) if others else 0.0)


def _mean_s(call: Callable[[], object]) -> float:
    """Mean processor seconds of a call, after one that does not count: a busy machine slows calls and steps alike."""
    call()
    count, begin = 0, time.process_time()
    while count < REPEATS or time.process_time() - begin < SHORTEST_S:
        call()
        count += 1
    return (time.process_time() - begin) / count
