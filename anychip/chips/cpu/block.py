"""A whole block of a few tokens in one kernel call: decode spends its time on weights, not on calls.

What the kernel needs is handed over as three structs of addresses (block.h): a block's weights and a state's
buffers, packed once, and the pass's plan, packed once for all layers of a kind.
"""

from __future__ import annotations

import ctypes
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...model.compressed import Compressed
from ...model.plan import LayerPlan
from ...model.state import LayerCache, State
from .bind import bind
from .kernels import load_library

_F32 = torch.float32
_ADDRESS, _FORMAT = Tensor.data_ptr, attrgetter("dtype")
_FEW = 8  # tokens that the kernel takes at once
_MAX_STREAMS, _MAX_ITERS = 4, 64  # what its mHC is built for

# Addresses of weights in the order of block.h: None where a block has no such part.
_WEIGHTS = (
    "hc_attn_fn", "hc_attn_base", "hc_attn_scale", "attn_norm.weight",
    "hc_ffn_fn", "hc_ffn_base", "hc_ffn_scale", "ffn_norm.weight",
    *(f"attn.{name}.weight" for name in ("wq_a", "q_norm", "wq_b", "wkv", "kv_norm", "wo_a", "wo_b")), "attn.attn_sink",
    *(f"attn.compressor.{name}" for name in ("wkv.weight", "wgate.weight", "norm.weight", "ape")),
    "attn.indexer.wq_b.weight", "attn.indexer.weights_proj.weight",
    *(f"attn.indexer.compressor.{name}" for name in ("wkv.weight", "wgate.weight", "norm.weight", "ape")),
    "ffn.gate.weight", "ffn.gate.bias", "ffn.gate.tid2eid", "ffn.experts.w13", "ffn.experts.w2",
    *(f"ffn.shared_experts.{name}.weight" for name in ("w1", "w3", "w2")),
)  # fmt: skip
_SIZES = ("d", "streams", "iters", "heads", "channels", "latent", "groups", "group_out", "ratio", "experts", "topk",
          "width", "vocab", "index_heads", "index_channels", "index_topk")
_CONSTANTS = ("eps", "hc_eps", "limit", "route_scale", "index_scale")
_BUFFERS = ("window", "compressor.value", "compressor.gate", "compressor.entry", "indexer.value", "indexer.gate",
            "indexer.entry")
_PLAN = ("tokens", "half", "entries", "most", "cos", "sin", "window_start", "window_count", "first", "previous",
         "entry_cos", "entry_sin", "visible_start", "visible_count", "window_rows", "window_first", "token_rows",
         "token_first", "entry_rows", "entry_first")


class _Weights(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in _SIZES), *((name, ctypes.c_double) for name in _CONSTANTS),
                ("addresses", ctypes.c_int64 * len(_WEIGHTS))]


_Buffers = ctypes.c_int64 * len(_BUFFERS)
_Plan = ctypes.c_int64 * len(_PLAN)


class _Packed(NamedTuple):
    """A struct at `address`; `kept` are the tensors and memory that it points to."""

    address: int
    kept: Any


class _Slot(NamedTuple):
    """Where a module keeps a weight: a replaced, moved or converted one is noticed here."""

    owner: dict[str, Tensor | None]
    name: str


@cache
def _kernel() -> Any:
    return bind(load_library(), {"block": "pppppp"}).block


class Blocks:
    """Runs blocks, and keeps what was packed for them as long as the blocks and states live."""

    def __init__(self) -> None:
        self._slots: WeakKeyDictionary[nn.Module, list[_Slot]] = WeakKeyDictionary()
        self._weights: WeakKeyDictionary[nn.Module, tuple[list[Any], _Packed | None]] = WeakKeyDictionary()
        self._buffers: WeakKeyDictionary[State, dict[int, _Packed | None]] = WeakKeyDictionary()
        self._plans: dict[int, tuple[LayerPlan, _Packed | None]] = {}

    def __reduce__(self) -> tuple[type[Blocks], tuple[()]]:
        return Blocks, ()  # a copy packs for itself

    def run(self, block: Any, streams_Tnd: Tensor, ids_T: Tensor, plan: LayerPlan, cache: LayerCache) -> Tensor | None:
        """Return the new streams [T, n, d], or None where this is not a pass that the kernel can do.

        It takes up to eight tokens with a state and without gradients, all in contiguous fp32. Raises IndexError for
        a token or expert id out of range.
        """
        state = cache.state
        if not isinstance(block.attn, Compressed):
            return None
        if type(state) is not State or not 0 < streams_Tnd.shape[0] <= _FEW or torch.is_grad_enabled():
            return None
        if streams_Tnd.dtype is not _F32 or ids_T.dtype is not torch.int64:
            return None
        weights, buffers = self._weights_of(block), self._buffers_of(state, cache.layer)
        packed = self._plan_of(plan, state, block.ratio)
        if weights is None or buffers is None or packed is None or not streams_Tnd.is_contiguous():
            return None
        if state.moving:
            for name in state.buffers(cache.layer):
                state.make_room(cache.layer, name)
        out, ids = torch.empty(streams_Tnd.shape), ids_T.contiguous()
        wrong = _kernel()(weights.address, buffers.address, packed.address, streams_Tnd.data_ptr(), ids.data_ptr(),
                          out.data_ptr())
        if wrong:
            raise IndexError(f"token ids {ids.tolist()}: {_WRONG[wrong]}")
        return out

    def _weights_of(self, block: Any) -> _Packed | None:
        slots = self._slots.get(block)
        if slots is None:
            slots = self._slots[block] = [_find(block, path) for path in _WEIGHTS]
        tensors = [owner[name] for owner, name in slots]
        found = [t for t in tensors if t is not None]
        state = [len(tensors) - len(found), *map(_ADDRESS, found), *map(_FORMAT, found)]
        known = self._weights.get(block)
        if known is None or known[0] != state:
            known = self._weights[block] = (state, _pack_weights(block, tensors))
        return known[1]

    def _buffers_of(self, state: State, layer: int) -> _Packed | None:
        known = self._buffers.get(state)
        if known is None:
            known = self._buffers[state] = {}
        if layer not in known:
            tensors = state.buffers(layer)
            usable = all(_usable(t) for t in tensors.values())
            addresses = _Buffers(*(tensors[name].data_ptr() if name in tensors else 0 for name in _BUFFERS))
            known[layer] = _Packed(ctypes.addressof(addresses), addresses) if usable else None
        return known[layer]

    def _plan_of(self, plan: LayerPlan, state: State, ratio: int) -> _Packed | None:
        known = self._plans.get(ratio)
        if known is None or known[0] is not plan:
            known = self._plans[ratio] = (plan, _pack_plan(plan, state, ratio))
        return known[1]


_WRONG = {1: "one is outside the vocabulary of the table of experts", 2: "their experts in the table do not all exist"}


def _find(block: nn.Module, path: str) -> _Slot:
    """Return where the block keeps what `path` names; an owner that holds None where it has no such part."""
    module: Any = block
    *parents, name = path.split(".")
    for parent in parents:
        module = getattr(module, parent, None)
        if module is None:
            return _Slot({name: None}, name)
    return _Slot(module._parameters if name in module._parameters else module._buffers, name)


def _usable(tensor: Tensor, dtype: torch.dtype = _F32) -> bool:
    return tensor.dtype is dtype and tensor.is_contiguous() and tensor.device.type == "cpu"


def pack_weights(block: Any) -> _Packed | None:
    """Return the block's struct of addresses, or None where the kernels cannot read its weights."""
    return _pack_weights(block, [owner[name] for owner, name in (_find(block, path) for path in _WEIGHTS)])


def _pack_weights(block: Any, tensors: list[Tensor | None]) -> _Packed | None:
    found = dict(zip(_WEIGHTS, tensors, strict=True))
    table = found["ffn.gate.tid2eid"]
    floats = [t for name, t in found.items() if t is not None and name != "ffn.gate.tid2eid"]
    if not all(_usable(t) for t in floats) or not (table is None or _usable(table, torch.int64)):
        return None
    sizes = _sizes(block, found)
    widths = (sizes["d"], sizes["channels"], sizes["width"], sizes["index_channels"])
    if sizes["streams"] > _MAX_STREAMS or sizes["iters"] > _MAX_ITERS or any(width % 8 for width in widths):
        return None  # the ops one by one say what is wrong
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    packed = _Weights(**sizes, **_constants(block), addresses=(ctypes.c_int64 * len(addresses))(*addresses))
    return _Packed(ctypes.addressof(packed), packed)


def _sizes(block: Any, found: dict[str, Tensor | None]) -> dict[str, int]:
    attn, ffn, indexer = block.attn, block.ffn, block.attn.indexer
    d, table = block.attn_norm.weight.shape[0], found["ffn.gate.tid2eid"]
    return {
        "d": d, "streams": block.hc_attn_fn.shape[1] // d, "iters": block.rule.sinkhorn_iters, "heads": attn.heads,
        "channels": attn.kv_norm.weight.shape[0], "latent": attn.q_norm.weight.shape[0], "groups": attn.groups,
        "group_out": attn.wo_a.weight.shape[0] // attn.groups, "ratio": block.ratio,
        "experts": ffn.gate.weight.shape[0], "topk": ffn.topk, "width": ffn.experts.w2.shape[2],
        "vocab": 0 if table is None else table.shape[0], "index_heads": indexer.heads if indexer else 0,
        "index_channels": indexer.compressor.norm.weight.shape[0] if indexer else 0,
        "index_topk": indexer.topk if indexer else 0,
    }  # fmt: skip


def _constants(block: Any) -> dict[str, float]:
    return {"eps": block.eps, "hc_eps": block.rule.eps, "limit": block.ffn.limit, "route_scale": block.ffn.scale,
            "index_scale": block.attn.indexer.scale if block.attn.indexer else 0.0}


def _pack_plan(plan: LayerPlan, state: State, ratio: int) -> _Packed | None:
    pooling, visible, none = plan.pooling, plan.visible, None
    tensors = [plan.cos_TR, plan.sin_TR, plan.window.start, plan.window.count,
               *((pooling.first_E, pooling.previous_E, pooling.cos_ER, pooling.sin_ER) if pooling else (none,) * 4),
               *((visible.start, visible.count) if visible else (none,) * 2)]
    if not all(t is None or t.is_contiguous() for t in tensors):
        return None
    books = ("window", f"tokens{ratio}", f"entries{ratio}") if ratio else ("window",)
    targets = [state.targets(book) for book in books]
    numbers = [*plan.cos_TR.shape, pooling.first_E.shape[0] if pooling else 0, visible.max_count if visible else 0,
               *(0 if t is None else t.data_ptr() for t in tensors)]
    for target in targets:
        numbers += (0, target.start) if isinstance(target, slice) else (target.data_ptr(), 0)
    packed = _Plan(*numbers)
    return _Packed(ctypes.addressof(packed), (packed, tensors, targets))
