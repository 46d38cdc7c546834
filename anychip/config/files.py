"""Configurations by name or path: the presets that ship with the package, and anyone's `config.json`."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from ..errors import ConfigError, nearest
from .base import ModelConfig

PRESETS = (
    "nano", "tiny", "mini", "v4-flash", "v4-pro", "v3-nano", "v3-mini", "v32-nano", "v32-mini", "glm5-nano",
    "glm5-mini", "qwen3-moe-nano", "qwen3-moe-mini", "deepseek-v3", "deepseek-v3.2", "glm-5.1", "glm-5.2",
    "qwen3-30b-a3b", "qwen3-235b-a22b", "qwen3-nano", "qwen3-mini", "qwen3-0.6b", "qwen3-8b", "qwen3-32b",
)  # fmt: skip


def load_config(where: str | Path) -> ModelConfig:
    """Return the preset of that name, or read a `config.json` file or a folder that holds one."""
    if str(where) in PRESETS:
        text = resources.files("anychip.presets").joinpath(f"{where}.json").read_text()
        return ModelConfig.from_dict(json.loads(text))
    path = Path(where)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(
            f"no preset and no config.json at {str(where)!r}; presets are {', '.join(PRESETS)}."
            + nearest(str(where), PRESETS)
        )
    try:
        fields = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}; write the publisher's config.json there") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} holds a {type(fields).__name__}, not the fields of a config.json")
    return ModelConfig.from_dict(fields)
