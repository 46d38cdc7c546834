"""Gradients of the first training step, tensor by tensor, with every op's forward result taken from the reference.

The tested chip's ops run forward and backward; the value that goes on is the reference's, so a difference is made by
the backward passes of ops and model alone and not by a forward pass that drifted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..model import Layout, Transformer
from ..ops.trees import map_tensors
from .guided import Call, _Lost, _Watched
from .op_level import relative

LENGTHS = (160, 96)
MTP_WEIGHT = 0.3
SCALARS = 4  # values from which a gradient is judged alone


def reference_gradients(model: Transformer, ids: Tensor) -> tuple[list[Call], dict[str, Tensor]]:
    """Return the op calls and the parameters' gradients of one step on the reference."""
    calls: list[Call] = []

    def see(op: str, layer: str, arguments: dict[str, Any], run: Callable[[], Any]) -> Any:
        result = run()
        calls.append(Call(op, layer, {}, map_tensors(result, lambda t: t.detach().clone())))
        return result

    return calls, _gradients(model, ids, see)


def gradient_errors(model: Transformer, device: torch.device, ids: Tensor,
                    reference: tuple[list[Call], dict[str, Tensor]]) -> dict[str, float]:
    """Return the relative difference of every parameter's gradient; infinite where the model calls other ops."""
    calls, wanted = reference
    step = iter(calls)

    def see(op: str, layer: str, arguments: dict[str, Any], run: Callable[[], Any]) -> Any:
        call = next(step, None)
        if call is None or call.op != op:
            raise _Lost
        return _with_values(run(), map_tensors(call.result, lambda t: t.to(device)))

    try:
        got = _gradients(model, ids, see)
    except _Lost:
        return dict.fromkeys(wanted, float("inf"))
    whole = {name: got.get(name, torch.zeros_like(gradient)) for name, gradient in wanted.items()}
    return {name: relative(_joined(whole, name), _joined(wanted, name)) for name in wanted}


def _joined(gradients: dict[str, Tensor], name: str) -> Tensor:
    """A tensor's gradient; of fewer than `SCALARS` values, with those of its site (`hc_attn_fn`, `_base`, `_scale`).

    A scalar's gradient is a sum over all tokens that may cancel to nearly nothing: alone it has no relative error.
    """
    if gradients[name].numel() >= SCALARS:
        return gradients[name]
    site = name.rsplit("_", 1)[0]
    return torch.cat([g.flatten() for other, g in gradients.items() if other.rsplit("_", 1)[0] == site])


def _with_values(result: Any, values: Any) -> Any:
    """The tested op's result with the reference's values: gradients run back through the tested op."""
    if isinstance(result, tuple):
        return tuple(_with_values(a, b) for a, b in zip(result, values, strict=True))
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return values
    return result + (values - result).detach()


def _gradients(model: Transformer, ids: Tensor, see: Any) -> dict[str, Tensor]:
    ops, model.ops = model.ops, _Watched(model.ops, see)
    try:
        with torch.enable_grad():
            loss = _loss(model, ids.to(model.embed.weight.device))
            named = dict(model.named_parameters())
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    finally:
        model.ops = ops
    return {name: g.cpu() for name, g in zip(named, found, strict=True) if g is not None}


def _loss(model: Transformer, ids: Tensor) -> Tensor:
    num, layout = sum(LENGTHS), Layout.whole(LENGTHS)
    inputs, targets = ids[:num], ids[1 : num + 1]
    hidden, head = model(inputs, layout), model.head.weight
    loss = model.ops.at("head").cross_entropy(hidden.hidden_Td, head, targets).mean()
    if not model.mtp:
        return loss
    ahead = model.predict_next(hidden.streams_Tnd, targets, layout)
    return loss + MTP_WEIGHT * model.ops.at("mtp.0").cross_entropy(ahead, head, ids[2 : num + 2]).mean()
