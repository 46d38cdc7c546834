"""Which model is meant: a preset or config.json of the V4 family (its own code), or a described published model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import PRESETS, DeepseekV4Config, ModelConfig, load_config, only
from .architecture import find_architecture, plain
from .counts import CacheBytes, described_cache_bytes, v4_cache_bytes
from .describe import described_work
from .v4 import v4_work
from .work import Batch, Work

_V4_NAMES = {"deepseekv4flash": "v4-flash", "deepseekv4pro": "v4-pro", "v4flash": "v4-flash", "v4pro": "v4-pro"}


@dataclass(frozen=True)
class Model:
    """A model that can be planned: its work for any batch, and its cache. `config` is None for described models."""

    name: str
    work: Callable[[Batch], Work]
    cache: Callable[[str], CacheBytes]
    config: ModelConfig | None


def find_model(name: str) -> Model:
    """Return the model of that name, preset or path. Raises ConfigError with the choices."""
    name = _V4_NAMES.get(plain(name), name)
    if name in PRESETS or Path(name).exists():
        config = load_config(name)
        return v4_model(config, name)
    key, a = find_architecture(name)
    keyed = [kind for kind in a.kinds() if not kind.startswith(("scan", "experts", "mlp"))]
    fields = {"kv_lora": a.kv_lora, "rope": a.rope, "index_dim": a.index_dim, "kv_heads": a.kv_heads,
              "head_dim": a.head_dim, "layers": len(keyed) * a.attentions}
    return Model(key, lambda batch: described_work(key, batch), lambda fmt: described_cache_bytes(fields, fmt), None)


def v4_model(config: ModelConfig, name: str) -> Model:
    """Return a model of the V4 family by its configuration. Raises NotSupported for one of another family."""
    v4 = only(config, DeepseekV4Config, "this plan")
    return Model(name, lambda batch: v4_work(v4, batch, name), lambda fmt: v4_cache_bytes(v4, fmt), v4)
