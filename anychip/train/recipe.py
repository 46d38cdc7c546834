"""Recipes: a preset's settings, and a user's own as a TOML file of TrainSettings' fields."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import InputError, nearest
from .settings import TrainSettings

_OF_STEPS = ("warmup_steps", "dense_steps", "indexer_steps")
_FIELDS = {field.name: field for field in dataclasses.fields(TrainSettings)}


def make_settings(preset: str, recipe: str | Path | None, given: Mapping[str, Any], *, family: str = "v4",
                  sft: bool = False) -> TrainSettings:
    """Return the settings of a run: the preset's (or fine-tuning's) and its family's, then the recipe file's, then what
    is `given` (None: not given). Of another number of steps, warm-up and stages of the preset keep their share. Raises
    InputError with all reasons."""
    table = tomllib.loads(resources.files(__package__).joinpath("recipes.toml").read_text(encoding="utf-8"))
    size = preset.rpartition("-")[2] if preset.startswith(f"{family}-") else preset
    base = table["sft"] if sft else table.get(size, table["other"])
    base = base | table["family"].get(family, {})
    said = read_recipe(recipe) if recipe is not None else {}
    said |= {name: value for name, value in given.items() if value is not None}
    share = said.get("steps", base["steps"]) / base["steps"]
    scaled = {name: round(value * share) for name, value in base.items() if name in _OF_STEPS}
    return TrainSettings(**(base | scaled | said))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Return the fields of a TOML file. Raises InputError with every field that is unknown or of another type."""
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give the path of a recipe") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    problems = [problem for name, value in found.items() if (problem := _problem(name, value))]
    if problems:
        raise InputError(f"{path} is no recipe:\n  " + "\n  ".join(problems))
    return {name: _value(value) for name, value in found.items()}


def _problem(name: str, value: Any) -> str:
    if name not in _FIELDS:
        return f"{name}: no such setting.{nearest(name, _FIELDS)}"
    kind = str(_FIELDS[name].type)
    fits = {"int": type(value) is int, "bool": type(value) is bool, "str": isinstance(value, str),
            "float": type(value) in (int, float)}.get(kind, isinstance(value, list))
    return "" if fits else f"{name}={value!r}: expected {kind}"


def _value(value: Any) -> Any:
    return tuple(_value(item) for item in value) if isinstance(value, list) else value
