"""How the engine is set up, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError

BLOCK = 128  # tokens a cache block: lcm of the compression ratios 4 and 128


@dataclass(frozen=True)
class EngineSettings:
    """Sizes and switches. Raises ConfigError with every reason why they cannot be used.

    A pass takes at most `max_batch` answers and `max_pass_tokens` tokens; prompts are read in chunks that fit beside
    the answers' tokens. The cache holds `cache_tokens` tokens of all sequences together (rounded up to blocks of 128);
    where it is full, the newest answer steps back and is computed again later. At most `max_queue` requests wait.
    `cache_format` fp8 rounds what is cached as the publisher's kernels store it (emulated: it is kept in fp32).
    `speculate` drafts one token a pass with the model's MTP block: never another token, only sooner.
    """

    max_batch: int = 32
    max_pass_tokens: int = 512
    cache_tokens: int = 65536
    max_queue: int = 512
    prefix_cache: bool = True
    speculate: bool = False
    cache_format: Literal["fp32", "fp8"] = "fp32"

    def __post_init__(self) -> None:
        problems = [f"{name}={getattr(self, name)} must be at least {least}" for name, least in
                    (("max_batch", 1), ("max_pass_tokens", 1), ("cache_tokens", BLOCK), ("max_queue", 1))
                    if getattr(self, name) < least]
        if self.cache_format not in ("fp32", "fp8"):
            problems.append(f"cache_format={self.cache_format!r}: choose fp32 or fp8")
        if self.max_pass_tokens < 2 * self.max_batch:
            problems.append(f"max_pass_tokens={self.max_pass_tokens} must hold two tokens of each of the max_batch="
                            f"{self.max_batch} answers: {2 * self.max_batch} or more")
        if problems:
            raise ConfigError("the engine cannot be set up: " + "; ".join(problems))


@dataclass(frozen=True)
class EngineStats:
    """Counts since the start, sizes now, and medians over the last finished answers (None: none yet). All measured.

    Times are seconds: `ttft_s` from submission to the first token, `tpot_s` a token after the first. Rates are over
    the last ten seconds. `failed` says why the engine no longer runs.
    """

    waiting: int
    running: int
    finished: int
    aborted: int
    preempted: int
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    cache_blocks: int
    cache_blocks_used: int
    cache_bytes: int
    tokens_per_s: float
    ttft_s: float | None
    tpot_s: float | None
    uptime_s: float
    failed: str | None = None

    @property
    def cache_hit_rate(self) -> float | None:
        """Share of prompt tokens that the prefix cache held."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None

    @property
    def acceptance(self) -> float | None:
        """Share of drafted tokens that were the very next tokens."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None
