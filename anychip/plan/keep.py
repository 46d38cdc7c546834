"""Bytes that a training pass keeps for its backward: each tensor once, however many ops keep it.

What each op keeps is what the CPU chip's ops and the Triton kernels save: inputs, the attention's output, the experts'
gate and up products. Recomputing in backward replaces all of a layer's by its input.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ..ops import Keys
from ..ops.trees import flat_tensors
from .work import Call

# op -> positions of the arguments that it keeps. What is not here keeps nothing (rope, embed).
_KEPT = {"linear": (0,), "grouped_linear": (0,), "rms_norm": (0,), "norm_rope": (0,), "attention": (0, 1),
         "compress": (0, 1), "mlp": (0,), "experts": (0, 2), "hc_pre": (0,), "hc_post": (0, 1, 2, 3), "hc_head": (0,),
         "cross_entropy": (0,), "route": (0,), "dense_attention": (0, 1, 2), "grouped_attention": (0, 1, 2),
         "layer_norm": (0,), "scan": (0,)}


def kept_bytes(calls: Iterable[Call]) -> float:
    """Return the bytes kept by these calls together, in the widths that their tensors have."""
    storages: dict[int, int] = {}
    extra = 0.0
    for call in calls:
        kept = (call.arguments[i] for i in _KEPT.get(call.op, ()) if i < len(call.arguments))
        for tensor in flat_tensors(tuple(kept)):
            storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        extra += own_results_bytes(call)
    return sum(storages.values()) + extra


def own_results_bytes(call: Call) -> float:
    """Return the bytes that one call keeps besides its inputs: results, products, row statistics (fp32)."""
    first = call.arguments[0]
    width, rows = first.element_size(), first.numel() / max(first.shape[-1], 1)
    if call.op in ("attention", "dense_attention", "grouped_attention"):
        values = call.named.get("value_width") or (
            call.arguments[2].shape[2] if call.op == "grouped_attention" else first.shape[2])
        return rows * values * width + 4.0 * rows
    if call.op == "mlp":
        return 2.0 * first.shape[0] * call.arguments[1].shape[0] * width
    if call.op == "experts":
        w13: Tensor = call.arguments[3][0]
        return float(call.arguments[1].numel() * w13.shape[1] * width)
    if call.op == "compress":
        overlapping = len(call.arguments) > 4 and call.arguments[4] is not None
        return 3.0 * call.arguments[3].shape[0] * first.shape[1] / (2 if overlapping else 1) * width
    if call.op == "hc_pre":
        return 4.0 * first.shape[0] * (call.arguments[1].fn.shape[0] + 1)
    if call.op == "route":
        return 4.0 * first.shape[0] * call.arguments[1].shape[0] + 12.0 * first.shape[0] * call.arguments[2]
    if call.op == "cross_entropy":
        return float(first.numel() * width)
    return 4.0 * rows if call.op in ("rms_norm", "layer_norm", "norm_rope") else 0.0


def cache_elements(call: Call) -> float:
    """Return the elements of cached keys that a call may read, 0 where it reads none."""
    if not call.cached:
        return 0.0
    grouped = call.op == "grouped_attention"
    keys = call.arguments[1] if call.op == "attention" else call.arguments[1:3] if grouped else call.arguments[2:3]
    tensors = (keys.window_NC, keys.compressed_MC) if isinstance(keys, Keys) else keys
    return float(sum(t.numel() for t in tensors if isinstance(t, Tensor)))
