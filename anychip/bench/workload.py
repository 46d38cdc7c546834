"""What load is made of: lengths of prompts and answers, and when requests arrive."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

_WORDS = ("the", "of", "and", "to", "in", "that", "was", "he", "it", "his", "with", "as", "for", "had", "you", "not",
          "be", "her", "on", "at", "by", "which", "have", "or", "from", "this", "him", "but", "all", "she", "they",
          "were")


@dataclass(frozen=True)
class Ask:
    """One request to be made: so many words of prompt, at most so many tokens of answer."""

    prompt_words: int
    new_tokens: int


@dataclass(frozen=True)
class Workload:
    """Requests in order, and how they arrive: Poisson at a rate, or closed-loop (a new one when one has ended)."""

    asks: tuple[Ask, ...]
    rate_per_s: float | None
    concurrency: int
    seed: int

    def arrivals_s(self) -> list[float]:
        """Seconds from the start at which each request is sent; zeros for closed-loop."""
        draw, now, found = random.Random(self.seed + 1), 0.0, list[float]()
        for _ in self.asks:
            now += draw.expovariate(self.rate_per_s) if self.rate_per_s else 0.0
            found.append(now)
        return found


def like_sharegpt(count: int, seed: int, longest: int) -> list[Ask]:
    """Log-normal lengths of the shape of shared chats: prompts of median 40 words, answers of median 150 tokens.

    Synthetic: drawn, not taken from any dataset. `longest` cuts both.
    """
    draw = random.Random(seed)
    return [Ask(_length(draw, 40, 1.3, longest), _length(draw, 150, 0.9, longest)) for _ in range(count)]


def _length(draw: random.Random, median: float, sigma: float, longest: int) -> int:
    return max(1, min(longest, round(draw.lognormvariate(math.log(median), sigma))))


def read_mix(path: Path, count: int, seed: int) -> list[Ask]:
    """Draw requests from a file of JSON lines {"prompt_words": N, "new_tokens": N}. Raises InputError for others."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        choices = [Ask(int(line["prompt_words"]), int(line["new_tokens"])) for line in lines]
    except OSError as error:
        raise InputError(f"cannot read the mix {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path} must have lines like {{"prompt_words": 100, "new_tokens": 50}}: {error!r}') from error
    if not choices or min(min(each.prompt_words, each.new_tokens) for each in choices) < 1:
        raise InputError(f"{path} must have at least one line, and lengths of 1 or more")
    return random.Random(seed).choices(choices, k=count)


def prompt_of(ask: Ask, number: int, seed: int) -> str:
    """Return a prompt of that many words, its own for each request: no cache can help by accident."""
    draw = random.Random(f"{seed} {number}")
    return " ".join([f"{number}:", *draw.choices(_WORDS, k=ask.prompt_words)])


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return mean and percentiles; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    at = {f"p{p}": ordered[min(len(ordered) - 1, math.ceil(p / 100 * len(ordered)) - 1)] for p in (50, 90, 95, 99)}
    return {"mean": sum(ordered) / len(ordered), **at, "max": ordered[-1]}
