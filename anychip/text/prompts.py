"""Short prompts in the style of the corpus, for showing what two chips generate side by side."""

from __future__ import annotations

import tomllib
from pathlib import Path


def prompts() -> dict[str, str]:
    """Name to prompt, in the order of `prompts.toml`."""
    table = tomllib.loads((Path(__file__).parent / "prompts.toml").read_text(encoding="utf-8"))
    return {entry["name"]: entry["text"] for entry in table["prompt"]}
