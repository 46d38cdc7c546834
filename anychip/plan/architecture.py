"""Published models that `model/` does not run, described: attention, feed-forward, expert and scan layers.

They are in `architectures.toml`; every figure there is the publisher's. They exist so that the planner can be held to
published runs of those models.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from ..config import PRESETS
from ..errors import ConfigError, nearest


@dataclass(frozen=True)
class Architecture:
    """A decoder-only model. Sizes are counts of channels, layers, heads or experts; 0 means the model has none.

    `pattern` names each layer: A attention and feed-forward (dense for the first `dense_layers` in a model with
    experts), `*` attention only, M scan only, E experts only; empty means A throughout. `window` tokens are seen by
    `window_layers` of the layers. `q_lora` or `kv_lora` make attention MLA with `nope` + `rope` and `value` channels
    a head; `index_*` add a sparse indexer. `latent` is the width that experts work in, where it is not hidden.
    `attentions` and `ffn_per_layer` count them in a layer (LongCat has two of each beside its experts).
    """

    source: str
    layers: int
    hidden: int
    vocab: int
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    ffn: int = 0
    gated: bool = True
    tied: bool = False
    experts: int = 0
    topk: int = 0
    moe_ffn: int = 0
    shared_ffn: int = 0
    dense_layers: int = 0
    latent: int = 0
    pattern: str = ""
    window: int = 0
    window_layers: int = 0
    q_lora: int = 0
    kv_lora: int = 0
    nope: int = 0
    rope: int = 0
    value: int = 0
    index_heads: int = 0
    index_dim: int = 0
    index_topk: int = 0
    scan_heads: int = 0
    scan_dim: int = 0
    scan_state: int = 0
    scan_groups: int = 0
    mtp: int = 0
    attentions: int = 1
    ffn_per_layer: int = 0
    max_context: int = 131072
    aliases: tuple[str, ...] = ()

    @property
    def is_mla(self) -> bool:
        """Tell whether keys and values come from one latent."""
        return self.kv_lora > 0

    def kinds(self) -> list[str]:
        """Return the kind of every layer: dense, moe, attention, scan or experts, with `-window`."""
        if self.pattern:
            return [{"*": "attention", "M": "scan", "E": "experts", "-": "mlp"}[letter] for letter in self.pattern]
        kinds = ["moe" if self.experts and i >= self.dense_layers else "dense" for i in range(self.layers)]
        return [kind + ("-window" if i < self.window_layers else "") for i, kind in enumerate(kinds)]


@lru_cache(maxsize=1)
def architectures() -> dict[str, Architecture]:
    """Return every description by name."""
    text = (files("anychip.plan") / "architectures.toml").read_text(encoding="utf-8")
    found = {}
    for name, fields in tomllib.loads(text).items():
        fields["aliases"] = tuple(fields.get("aliases", ()))
        found[name] = Architecture(**fields)
    return found


def find_architecture(name: str) -> tuple[str, Architecture]:
    """Return (name, description) of a model by name or alias, whatever the case and the punctuation.

    Raises ConfigError with the nearest and all names.
    """
    known = architectures()
    wanted = plain(name)
    for key, architecture in known.items():
        if wanted in (plain(key), *map(plain, architecture.aliases)):
            return key, architecture
    names = [*PRESETS, *known]
    raise ConfigError(f"no model is called {name!r}.{nearest(name.lower(), names)} Models: {', '.join(names)}; or a "
                      "config.json")


def plain(name: str) -> str:
    """Return a name without case, spaces and punctuation (`Qwen3_235B_a22B` is `qwen3-235b-a22b`)."""
    return "".join(c for c in name.lower() if c.isalnum())
