"""Whole blocks of a few tokens in one kernel call: decode spends its time on weights, not on calls.

What the kernel needs is handed over as three structs of addresses (block.h): a block's weights and a state's
buffers, packed once, and the pass's plan, packed once for all layers of a kind.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...model.compressed import Compressed
from ...model.grouped import Grouped
from ...model.latent import Latent
from ...model.moe import FeedForward
from ...model.plan import LayerPlan, Plan
from ...model.state import State
from .attention import index_copies
from .bind import bind
from .kernels import load_library
from .norm import FIRST, HALVES
from .route import SCORES

_F32 = torch.float32
_ADDRESS, _FORMAT = Tensor.data_ptr, attrgetter("dtype")
_FEW = 8  # tokens that the kernel takes at once
_MAX_STREAMS, _MAX_ITERS = 4, 64  # what its mHC is built for

# Addresses of weights in the order of block.h: None where a block has no such part; `|` where kinds name it otherwise.
_WEIGHTS = (
    "hc_attn_fn", "hc_attn_base", "hc_attn_scale", "attn_norm.weight",
    "hc_ffn_fn", "hc_ffn_base", "hc_ffn_scale", "ffn_norm.weight",
    "attn.wq_a.weight", "attn.q_norm.weight", "attn.wq_b.weight|attn.wq.weight",
    "attn.wkv.weight|attn.wkv_a.weight|attn.wk.weight", "attn.kv_norm.weight|attn.k_norm.weight", "attn.wo_a.weight",
    "attn.wo_b.weight|attn.wo.weight", "attn.attn_sink",
    *(f"attn.compressor.{name}" for name in ("wkv.weight", "wgate.weight", "norm.weight", "ape")),
    "attn.indexer.wq_b.weight", "attn.indexer.weights_proj.weight",
    "attn.indexer.compressor.wkv.weight|attn.indexer.wk.weight", "attn.indexer.compressor.wgate.weight",
    "attn.indexer.compressor.norm.weight|attn.indexer.k_norm.weight", "attn.indexer.compressor.ape",
    "ffn.gate.weight", "ffn.gate.bias", "ffn.gate.tid2eid", "ffn.experts.w13", "ffn.experts.w2",
    *(f"ffn.shared_experts.{name}.weight|ffn.{name}.weight" for name in ("w1", "w3", "w2")),
    "attn.wv.weight", "attn.wkv_b.weight", "attn.indexer.k_norm.bias",
)  # fmt: skip
_SIZES = ("d", "streams", "iters", "heads", "channels", "latent", "groups", "group_out", "ratio", "experts", "topk",
          "width", "vocab", "index_heads", "index_channels", "index_topk", "kind", "kv_heads", "nope", "value", "rank",
          "shared_width", "index_form", "score", "route_groups", "kept_groups", "normalize")
_CONSTANTS = ("eps", "hc_eps", "limit", "route_scale", "index_scale", "scale", "latent_eps")
_KEYS = "indexer.entry|indexer.key"
_BUFFERS = ("window", "compressor.value", "compressor.gate", "compressor.entry|entry|key", "indexer.value",
            "indexer.gate", _KEYS, "value")
_KINDS = (Compressed, Grouped, Latent)  # as in block.h
_PLAN = ("tokens", "half", "entries", "most", "cos", "sin", "window_start", "window_count", "first", "previous",
         "entry_cos", "entry_sin", "visible_start", "visible_count", "window_rows", "window_first", "token_rows",
         "token_first", "entry_rows", "entry_first")


class _Weights(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in _SIZES), *((name, ctypes.c_double) for name in _CONSTANTS),
                ("addresses", ctypes.c_int64 * len(_WEIGHTS))]


_Buffers = ctypes.c_int64 * (len(_BUFFERS) + 2)  # and the copies of the indexer's keys, and how many are made
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
    return bind(load_library(), {"blocks": "lpppp"}).blocks


class Blocks:
    """Runs blocks, and keeps what was packed for them as long as the blocks and states live."""

    def __init__(self) -> None:
        self._slots: WeakKeyDictionary[nn.Module, list[_Slot]] = WeakKeyDictionary()
        self._weights: WeakKeyDictionary[nn.Module, tuple[list[Any], _Packed | None]] = WeakKeyDictionary()
        self._buffers: WeakKeyDictionary[State, dict[int, _Packed | None]] = WeakKeyDictionary()
        self._plans: dict[int, tuple[LayerPlan, _Packed | None]] = {}

    def __reduce__(self) -> tuple[type[Blocks], tuple[()]]:
        return Blocks, ()  # a copy packs for itself

    def run(self, blocks: Sequence[Any], streams_Tnd: Tensor, ids_T: Tensor, plan: Plan) -> Tensor | None:
        """Return the last block's streams [T, n, d], or None where this is not a pass that the kernel can do.

        It takes up to eight tokens with a state and without gradients, all in contiguous fp32. Raises IndexError for
        a token or expert id out of range.
        """
        state = plan.state
        if type(state) is not State or not 0 < streams_Tnd.shape[0] <= _FEW or torch.is_grad_enabled():
            return None
        if streams_Tnd.dtype is not _F32 or ids_T.dtype is not torch.int64 or not streams_Tnd.is_contiguous():
            return None
        addresses: list[int] = []
        for block in blocks:
            layer = plan.layer(block.ratio)
            structs = (self._weights_of(block), self._buffers_of(state, block.index),
                       self._plan_of(layer, state, block.ratio))
            if None in structs or _is_watched(block) or _passes_rows_on(block, layer):
                return None
            addresses += [struct.address for struct in structs if struct is not None]
        if state.moving:
            for block in blocks:
                for name in state.buffers(block.index):
                    state.make_room(block.index, name)
        out, ids = torch.empty(2, *streams_Tnd.shape), ids_T.contiguous()
        wrong = _kernel()(len(blocks), (ctypes.c_int64 * len(addresses))(*addresses), streams_Tnd.data_ptr(),
                          ids.data_ptr(), out.data_ptr())
        if wrong:
            raise IndexError(f"token ids {ids.tolist()}: {_WRONG[wrong]}")
        return out[0]

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
            named = [next((tensors[name] for name in names.split("|") if name in tensors), None) for names in _BUFFERS]
            copies, known_rows = _key_copies(state, named[_BUFFERS.index(_KEYS)]), ctypes.c_int64(0)
            addresses = _Buffers(*(0 if t is None else t.data_ptr() for t in (*named, copies)),
                                 ctypes.addressof(known_rows))
            known[layer] = _Packed(ctypes.addressof(addresses), (addresses, copies, known_rows)) if usable else None
        return known[layer]

    def _plan_of(self, plan: LayerPlan, state: State, ratio: int) -> _Packed | None:
        known = self._plans.get(ratio)
        if known is None or known[0] is not plan:
            known = self._plans[ratio] = (plan, _pack_plan(plan, state, ratio))
        return known[1]


_WRONG = {1: "one is outside the vocabulary of the table of experts", 2: "their experts in the table do not all exist"}


def _is_watched(block: Any) -> bool:
    """Tell whether somebody looks at what goes into or out of the block, or changes it."""
    return bool(block._forward_hooks or block._forward_pre_hooks)


def _passes_rows_on(block: Any, plan: LayerPlan) -> bool:
    """Tell whether an indexer's choice goes from layer to layer: the kernel keeps it to itself."""
    spec = block.attn.spec.indexer if isinstance(block.attn, Latent) else None
    if spec is None or plan.visible is None or not (spec.shared or spec.reused):
        return False
    if spec.reused:
        plan.chosen[block.index] = plan.visible  # what the layer chooses, unless it is said to choose here
    return plan.visible.max_count > spec.topk


def _find(block: nn.Module, paths: str) -> _Slot:
    """Return where the block keeps what one of `paths` names; an owner that holds None where it has no such part."""
    for path in paths.split("|"):
        module: Any = block
        *parents, name = path.split(".")
        for parent in parents:
            module = getattr(module, parent, None)
        if module is not None and (name in module._parameters or name in module._buffers):
            return _Slot(module._parameters if name in module._parameters else module._buffers, name)
    return _Slot({name: None}, name)


def _key_copies(state: State, keys: Tensor | None) -> Tensor | None:
    """Return memory for copies of one sequence's keys: what lies in rows that were written stays as it is."""
    return index_copies(*keys.shape) if keys is not None and len(state.num_tokens) == 1 else None


def _usable(tensor: Tensor, dtype: torch.dtype = _F32) -> bool:
    return tensor.dtype is dtype and tensor.is_contiguous() and tensor.device.type == "cpu"


def pack_weights(block: Any) -> _Packed | None:
    """Return the block's struct of addresses, or None where the kernels cannot read its weights."""
    return _pack_weights(block, [owner[name] for owner, name in (_find(block, path) for path in _WEIGHTS)])


def _pack_weights(block: Any, tensors: list[Tensor | None]) -> _Packed | None:
    found = dict(zip(_WEIGHTS, tensors, strict=True))
    table = found["ffn.gate.tid2eid"]
    floats = [t for name, t in found.items() if t is not None and name != "ffn.gate.tid2eid"]
    if type(block.attn) not in _KINDS or not all(_usable(t) for t in floats):
        return None
    if not (table is None or _usable(table, torch.int64)):
        return None
    sizes: dict[str, Any] = dict.fromkeys((*_SIZES, *_CONSTANTS), 0)
    sizes |= _block_sizes(block) | _attention_sizes(block.attn) | _ffn_sizes(block.ffn, table)
    widths = [sizes[name] for name in ("d", "channels", "width", "index_channels", "nope", "rank", "shared_width")]
    if sizes["streams"] > _MAX_STREAMS or sizes["iters"] > _MAX_ITERS or any(width % 8 for width in widths):
        return None  # the ops one by one say what is wrong
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    packed = _Weights(**sizes, addresses=(ctypes.c_int64 * len(addresses))(*addresses))
    return _Packed(ctypes.addressof(packed), packed)


def _block_sizes(block: Any) -> dict[str, Any]:
    d, rule = block.attn_norm.weight.shape[0], block.rule
    sizes = {"d": d, "streams": 1, "ratio": block.ratio, "eps": block.eps}
    if rule is None:
        return sizes
    return sizes | {"streams": block.hc_attn_fn.shape[1] // d, "iters": rule.sinkhorn_iters, "hc_eps": rule.eps}


def _attention_sizes(attn: Any) -> dict[str, Any]:
    indexer, kind = attn.indexer, _KINDS.index(type(attn))
    sizes: dict[str, Any] = {"kind": kind, "kv_heads": 1}
    if isinstance(attn, Compressed):
        sizes |= {"heads": attn.heads, "channels": attn.kv_norm.weight.shape[0], "latent": attn.q_norm.weight.shape[0],
                  "groups": attn.groups, "group_out": attn.wo_a.weight.shape[0] // attn.groups}
    elif isinstance(attn, Grouped):
        sizes |= {"heads": attn.wq.weight.shape[0] // attn.channels, "channels": attn.channels,
                  "kv_heads": attn.wk.weight.shape[0] // attn.channels}
    else:
        spec = attn.spec
        sizes |= {"heads": spec.heads, "channels": spec.kv_lora_rank + spec.rope.channels, "nope": spec.nope,
                  "latent": spec.q_lora_rank or 0, "value": spec.value, "rank": spec.kv_lora_rank, "scale": spec.scale,
                  "latent_eps": attn.eps}
    if indexer is None:
        return sizes
    keys = indexer.compressor.norm if isinstance(attn, Compressed) else indexer.k_norm
    form = 0 if isinstance(attn, Compressed) else FIRST | HALVES * indexer.turn["half"]
    return sizes | {"index_heads": indexer.heads, "index_channels": keys.weight.shape[0], "index_topk": indexer.topk,
                    "index_scale": indexer.scale, "index_form": form}


def _ffn_sizes(ffn: Any, table: Tensor | None) -> dict[str, Any]:
    if isinstance(ffn, FeedForward):
        return {"shared_width": ffn.w1.weight.shape[0], "limit": ffn.limit}
    shared, rule = ffn.shared_experts, ffn.rule
    return {"experts": ffn.gate.weight.shape[0], "topk": ffn.topk, "width": ffn.experts.w2.shape[2],
            "vocab": 0 if table is None else table.shape[0], "limit": ffn.limit, "route_scale": ffn.scale,
            "shared_width": 0 if shared is None else shared.w1.weight.shape[0], "score": SCORES.index(rule.score),
            "route_groups": rule.groups, "kept_groups": rule.kept_groups, "normalize": int(rule.normalize)}


def _pack_plan(plan: LayerPlan, state: State, ratio: int) -> _Packed | None:
    pooling, visible, none = plan.pooling, plan.visible, None
    tensors = [plan.cos_TR, plan.sin_TR, plan.window.start, plan.window.count,
               *((pooling.first_E, pooling.previous_E, pooling.cos_ER, pooling.sin_ER) if pooling else (none,) * 4),
               *((visible.start, visible.count) if visible else (none,) * 2)]
    if not all(t is None or t.is_contiguous() for t in tensors):
        return None
    books = ("window", f"tokens{ratio}", f"entries{ratio}") if pooling else ("window",)
    targets = [state.targets(book) for book in books] if pooling or not ratio else [
        slice(0, 0), slice(0, 0), state.targets(f"entries{ratio}")]
    numbers = [*plan.cos_TR.shape, pooling.first_E.shape[0] if pooling else 0, visible.max_count if visible else 0,
               *(0 if t is None else t.data_ptr() for t in tensors)]
    for target in targets:
        numbers += (0, target.start) if isinstance(target, slice) else (target.data_ptr(), 0)
    packed = _Plan(*numbers)
    return _Packed(ctypes.addressof(packed), (packed, tensors, targets))
