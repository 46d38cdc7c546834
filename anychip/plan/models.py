"""Which model is meant: a preset or config.json (this project's own code), or a described published model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..config import PRESETS, ModelConfig, load_config
from .architecture import find_architecture, plain
from .counts import CacheBytes, cache_bytes, described_cache_bytes
from .describe import described_work
from .traced import traced_work
from .work import Batch, Work

# Names that publishers and tables use, without case and punctuation
_ALIASES = {"v4-flash": ("deepseekv4flash",), "v4-pro": ("deepseekv4pro",),
            "deepseek-v3": ("deepseekr1", "deepseekv3r1", "deepseekv3685b", "deepseekv31", "deepseekmaas"),
            "deepseek-v3.2": ("deepseekv32exp",), "qwen3-235b-a22b": ("qwen3235b",),
            "glm-5.1": ("glm5",)}  # the same shapes


@dataclass(frozen=True)
class Model:
    """A model that can be planned: its work for any batch, and its cache. `config` is None for described models."""

    name: str
    work: Callable[[Batch], Work]
    cache: Callable[[str], CacheBytes]
    config: ModelConfig | None


def find_model(name: str) -> Model:
    """Return the model of that name, preset or path. Raises ConfigError with the choices."""
    name = next((preset for preset in PRESETS if plain(name) in (plain(preset), *_ALIASES.get(preset, ()))), name)
    if name in PRESETS or Path(name).exists():
        return own_model(load_config(name), name)
    key, a = find_architecture(name)
    keyed = [kind for kind in a.kinds() if not kind.startswith(("scan", "experts", "mlp"))]
    fields = {"kv_lora": a.kv_lora, "rope": a.rope, "index_dim": a.index_dim, "kv_heads": a.kv_heads,
              "head_dim": a.head_dim, "layers": len(keyed) * a.attentions}
    return Model(key, lambda batch: described_work(key, batch), lambda fmt: described_cache_bytes(fields, fmt), None)


def own_model(config: ModelConfig, name: str) -> Model:
    """Return a model by its configuration."""
    return Model(name, lambda batch: traced_work(config, batch, name), lambda fmt: cache_bytes(config, fmt), config)
