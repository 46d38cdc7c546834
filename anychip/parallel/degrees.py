"""How many ranks share each axis of the work, and whether a model and a step can be cut that way."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

from ..config import DeepseekV4Config, ModelConfig
from ..config.specs import CSA, HCA
from ..errors import ConfigError
from .stage import layers_of


class StepShape(Protocol):
    """What a layout needs to know of a step (`train.TrainSettings` has it)."""

    @property
    def batch(self) -> int:
        """Sequences a step."""
        ...

    @property
    def length(self) -> int:
        """Tokens a sequence."""
        ...

    @property
    def micro_batches(self) -> int:
        """Equal parts of a step whose gradients are worked out one by one."""
        ...

    @property
    def context_blocks(self) -> int:
        """Equal parts of a sequence that are worked out apart (1: a sequence is whole)."""
        ...


@dataclass(frozen=True)
class Degrees:
    """Ranks along each axis; their product is the number of ranks.

    `shard`: each holds a slice of every parameter and its own data (FSDP). `expert`: each owns some of the experts, and
    has its own data. `pipeline`: each holds some layers. `context`: each has a run of every sequence's tokens.
    """

    shard: int = 1
    expert: int = 1
    pipeline: int = 1
    context: int = 1

    @property
    def num_ranks(self) -> int:
        """Ranks in all."""
        return self.shard * self.expert * self.pipeline * self.context

    @property
    def num_data(self) -> int:
        """Ranks that hold other sequences."""
        return self.shard * self.expert

    def describe(self) -> str:
        """Name the axes that are used."""
        used = [f"{field.name} {getattr(self, field.name)}" for field in fields(self) if getattr(self, field.name) > 1]
        return " x ".join(used) or "one rank"

    def check(self, config: ModelConfig, settings: StepShape) -> None:
        """Raise ConfigError, with all reasons and choices, where model or step cannot be cut this way."""
        negative = [f"{field.name}={getattr(self, field.name)} must be at least 1"
                    for field in fields(self) if getattr(self, field.name) < 1]
        problems = negative or [*self._model_problems(config), *self._step_problems(settings),
                                *_block_problems(self.context, config, settings)]
        if problems:
            raise ConfigError("this layout cannot be used:\n  " + "\n  ".join(problems))

    def check_ranks(self, num_ranks: int) -> None:
        """Raise ConfigError where another number of processes was started than the layout has."""
        if num_ranks != self.num_ranks:
            raise ConfigError(
                f"{num_ranks} processes were started, but shard={self.shard} x expert={self.expert} x "
                f"pipeline={self.pipeline} x context={self.context} needs {self.num_ranks}: start that many, or change "
                "an axis")

    def _model_problems(self, config: ModelConfig) -> list[str]:
        problems = []
        experts = config.mixture.num_experts if config.mixture else 1
        if experts % self.expert:
            problems.append(f"expert={self.expert} does not divide n_routed_experts={experts}; "
                            f"use {_divisors(experts)}")
        if self.pipeline > config.num_hidden_layers:
            problems.append(f"pipeline={self.pipeline} exceeds num_hidden_layers={config.num_hidden_layers}; use 1 to "
                            f"{config.num_hidden_layers}")
        elif self.pipeline > 1:
            problems += _stage_problems(self.pipeline, config)
        return problems

    def _step_problems(self, settings: StepShape) -> list[str]:
        problems, parts = [], settings.micro_batches
        if settings.batch % parts:
            problems.append(f"micro_batches={parts} does not divide batch={settings.batch}; "
                            f"use {_divisors(settings.batch)}")
        if parts % self.num_data:
            problems.append(f"micro_batches={parts} cannot be dealt to shard={self.shard} x expert={self.expert} = "
                            f"{self.num_data} ranks evenly; use {self.num_data}, {2 * self.num_data}, ...")
        elif parts // self.num_data < self.pipeline:
            problems.append(f"micro_batches={parts} leaves {parts // self.num_data} for a pipeline of {self.pipeline} "
                            f"stages; use at least {self.pipeline * self.num_data}")
        return problems


def _stage_problems(stages: int, config: ModelConfig) -> list[str]:
    """Say what layers would read from another stage's."""
    problems = []
    if config.tie_word_embeddings:
        problems.append(f"pipeline={stages}: the first stage's embedding is the last one's head (tie_word_embeddings); "
                        "use 1")
    stage_of = {layer: stage for stage in range(stages) for layer in layers_of(config.num_hidden_layers, stage, stages)}
    for layer in range(config.num_blocks):
        indexer = getattr(config.layer(layer).attention, "indexer", None)
        if indexer and indexer.shared and stage_of.get(layer, stages - 1) != stage_of[indexer.source]:
            problems.append(f"pipeline={stages}: layer {layer} takes the rows that the indexer of layer "
                            f"{indexer.source} picks, which lies on another stage; use 1")
    return problems


def _block_problems(context: int, config: ModelConfig, settings: StepShape) -> list[str]:
    blocks, length = settings.context_blocks, settings.length
    if blocks % context:
        return [f"context_blocks={blocks} cannot be dealt to context={context} ranks; "
                f"use {context}, {2 * context}, ..."]
    if blocks == 1:
        return []
    if not isinstance(config, DeepseekV4Config):
        return [f"context_blocks={blocks} is built for DeepSeek-V4 models, this is a {config.family} model; use 1"]
    unit = max([1, *(ratio for ratio in config.compress_ratios if ratio in (CSA, HCA))])
    least = -(-config.sliding_window // unit) * unit
    if length % blocks or length // blocks % unit or length // blocks < least:
        return [f"length={length} in context_blocks={blocks} gives blocks of {length / blocks:g} tokens; a block must "
                f"be a multiple of {unit} (compress_ratios) and at least sliding_window={config.sliding_window}: "
                f"use a length that is a multiple of {blocks * unit}, at least {blocks * least}"]
    return []


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
