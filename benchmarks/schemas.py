"""Random JSON schemas whose every document is finite, for the benchmark and the tests of structured output."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]


def random_schema(draw: random.Random, depth: int = 3) -> Schema:
    """Return a schema of objects, arrays, strings, numbers, enums, constants and unions, at most `depth` deep."""
    kinds = _LEAVES if depth == 0 else (*_LEAVES, _object, _object, _array, _union)
    made: Schema = draw.choice(kinds)(draw, depth)
    return made


def _string(draw: random.Random, _: int) -> Schema:
    return {"type": "string", "maxLength": draw.randrange(1, 12)}


def _pattern(draw: random.Random, _: int) -> Schema:
    patterns = [r"^[A-Z]{2}-[0-9]{3}$", r"^[a-z]{1,6}@[a-z]{1,6}\.com$", "^(yes|no)$"]
    return {"type": "string", "pattern": draw.choice(patterns)}


def _date(draw: random.Random, _: int) -> Schema:
    return {"type": "string", "format": "date"}


def _integer(draw: random.Random, _: int) -> Schema:
    low = draw.randrange(-100, 100)
    return {"type": "integer", "minimum": low, "maximum": low + draw.randrange(1, 1000)}


def _boolean(draw: random.Random, _: int) -> Schema:
    return {"type": draw.choice(["boolean", "null"])}


def _enum(draw: random.Random, _: int) -> Schema:
    values = ["red", "green", "blue", 1, 2.5, True, None, "世界", 'a "quoted" word']
    return {"enum": draw.sample(values, draw.randrange(1, 5))}


def _constant(draw: random.Random, _: int) -> Schema:
    return {"const": draw.choice(["fixed", 7, False])}


def _object(draw: random.Random, depth: int) -> Schema:
    names = draw.sample(["name", "age", "tags", "city", "id", "note", "price"], draw.randrange(1, 5))
    return {"type": "object", "properties": {name: random_schema(draw, depth - 1) for name in names},
            "required": draw.sample(names, draw.randrange(len(names) + 1)), "additionalProperties": False}


def _array(draw: random.Random, depth: int) -> Schema:
    least = draw.randrange(3)
    return {"type": "array", "items": random_schema(draw, depth - 1), "minItems": least,
            "maxItems": least + draw.randrange(3)}


def _union(draw: random.Random, depth: int) -> Schema:
    return {"anyOf": [random_schema(draw, depth - 1) for _ in range(2)]}


_LEAVES: tuple[Callable[[random.Random, int], Schema], ...] = (
    _string, _pattern, _date, _integer, _boolean, _enum, _constant)
