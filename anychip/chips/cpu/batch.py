"""A pass of the whole model over many sequences' new tokens in one call of the CPU's kernel (batch.cpp).

What the kernel gets are structs of addresses: the model's and the cache's, packed once, and the batch's.
"""

from __future__ import annotations

import ctypes
from functools import cache as cached
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...config import DeepseekV4Config
from ...config.specs import CSA
from ...model import Transformer
from ...model.paged import PagedBatch, PagedCache
from .attention import index_copies
from .bind import bind
from .block import pack_weights
from .kernels import load_library

_MODEL = ("layers", "window", "half", "blocks", "embed", "head", "norm", "hc_fn", "hc_base", "hc_scale",
          "e_proj", "h_proj", "enorm", "hnorm", "mtp_norm", "mtp_fn", "mtp_base", "mtp_scale", "near_cos", "near_sin",
          "far_cos", "far_sin")
_STATE = ("slots", "blocks", "slot_step", "format", "layers")
_LAYER = ("window", "compressor.value", "compressor.gate", "indexer.value", "indexer.gate", "compressor.entry",
          "indexer.entry")
_BATCH = ("tokens", "sequences", "wanted", "vocab", "table_step", "ids", "starts", "lengths", "slots", "tables", "rows",
          "streams", "logits")
_Model, _State, _Batch = (ctypes.c_int64 * len(names) for names in (_MODEL, _STATE, _BATCH))


@cached
def _kernel() -> Any:
    return bind(load_library(), {"batch": "pppi"}).batch


class Batches:
    """Runs passes. What was packed for a model is kept as long as its cache: its weights must stay in place."""

    def __init__(self) -> None:
        self._packed: WeakKeyDictionary[PagedCache, tuple[Transformer, _Packed | None]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[Batches], tuple[()]]:
        return Batches, ()  # a copy packs for itself

    def run(self, model: Transformer, cache: PagedCache, batch: PagedBatch,
            streams: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """As `Ops.batch_pass`. None where a weight is not contiguous fp32 or a size is not the kernel's."""
        packed = self._pack(model, cache)
        if packed is None:
            return None
        tokens, config, mtp = len(batch.ids), model.config, streams is not None
        if streams is None:
            streams = torch.empty(tokens, config.num_streams, config.hidden_size)
        logits = torch.empty(len(batch.wanted), batch.vocab or config.vocab_size)
        arrays = (batch.ids, batch.starts, batch.lengths, batch.slots, batch.tables, batch.wanted)
        given = _Batch(tokens, len(batch.slots), *logits.shape, batch.tables.shape[1],
                       *(array.__array_interface__["data"][0] for array in arrays),
                       streams.data_ptr(), logits.data_ptr())
        _kernel()(packed.model, packed.state, ctypes.addressof(given), int(mtp))
        return logits, streams

    def _pack(self, model: Transformer, cache: PagedCache) -> _Packed | None:
        known = self._packed.get(cache)
        if known is None or known[0] is not model:
            known = self._packed[cache] = (model, _pack(model, cache))
        return known[1]


class _Packed:
    """Addresses of the structs, and what they point to."""

    def __init__(self, model: Any, state: Any, kept: Any) -> None:
        self.model, self.state, self._kept = ctypes.addressof(model), ctypes.addressof(state), (model, state, kept)


def _own(model: Transformer) -> list[Tensor]:
    """The weights outside the blocks, in the struct's order; none for an absent MTP block."""
    main: list[Tensor] = [model.embed.weight, model.head.weight, model.norm.weight,
                          model.hc_head_fn, model.hc_head_base, model.hc_head_scale]  # type: ignore[list-item]
    for mtp in model.mtp:
        main += [mtp.e_proj.weight, mtp.h_proj.weight, mtp.enorm.weight, mtp.hnorm.weight,  # type: ignore[union-attr,list-item]
                 mtp.norm.weight, mtp.hc_head_fn, mtp.hc_head_base, mtp.hc_head_scale]  # type: ignore[union-attr,list-item]
    return main


def _pack(model: Transformer, cache: PagedCache) -> _Packed | None:
    if not isinstance(model.config, DeepseekV4Config):
        return None
    config, own = model.config, _own(model)
    blocks = [pack_weights(block) for block in (*model.layers, *model.mtp)]
    if any(t.dtype is not torch.float32 or not t.is_contiguous() or t.device.type != "cpu" for t in own):
        return None
    if any(block is None for block in blocks) or config.hidden_size % 8 or config.sliding_window < 1:
        return None
    pointers = (ctypes.c_int64 * len(blocks))(*(block.address for block in blocks if block is not None))
    step = len(_LAYER) + 1  # and the copies of the indexer's keys
    places = (ctypes.c_int64 * (len(blocks) * step))()
    offsets = {key: place.offset for key, place in cache.rings.items()}
    offsets |= {key: place.offset * cache.num_blocks for key, place in cache.entries.items()}
    for layer in range(len(blocks)):
        for i, name in enumerate(_LAYER):
            places[layer * step + i] = offsets.get((layer, name), -1)
        if (copies := _key_copies(cache, layer)) is not None:
            places[layer * step + len(_LAYER)] = copies.data_ptr()
    angles = [turned for ratio in (0, CSA) for turned in cache.turns(config.rope(ratio))]
    addresses = [t.data_ptr() for t in own] + [0] * (0 if model.mtp else 8)
    packed = _Model(config.num_hidden_layers, config.sliding_window, config.qk_rope_head_dim // 2,
                    ctypes.addressof(pointers), *addresses, *(t.data_ptr() for t in angles))
    state = _State(cache.slots.data_ptr(), cache.blocks.data_ptr(), cache.slots.shape[1],
                   int(cache.format == "fp8"), ctypes.addressof(places))
    return _Packed(packed, state, (blocks, pointers, places, angles, own))


def _key_copies(cache: PagedCache, layer: int) -> Tensor | None:
    """Return memory for copies of the indexer's keys, kept with the cache; None where there is no use for them."""
    place, name = cache.entries.get((layer, "indexer.entry")), f"{layer}.indexer"
    if name not in cache.beside and place is not None:
        made = index_copies(cache.num_blocks * place.rows, place.width)
        if made is not None:
            cache.beside[name] = made.view(cache.num_blocks, -1)
    return cache.beside.get(name)
