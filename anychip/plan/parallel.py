"""How a training job is laid over devices, and every reason why a layout is impossible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from ..errors import ConfigError
from .work import Shape

SHARDS = ("none", "optimizer", "full")  # replicated, ZeRO-1, FSDP
RECOMPUTES = ("none", "selective", "full")
SCHEDULES = ("1f1b", "interleaved", "zero-bubble", "dualpipe")


@dataclass(frozen=True)
class Parallel:
    """Degrees of parallelism. `data * tensor * pipeline * context` devices; experts are spread over `expert` of them.

    `virtual` is how many chunks of layers a pipeline rank holds, `micro_batch` the sequences of one micro-batch,
    `shard` what data-parallel ranks share (`none`, `optimizer` = ZeRO-1, `full` = FSDP), `recompute` what is computed
    again in backward (`selective`: all but products and attention).
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    virtual: int = 1
    micro_batch: int = 1
    shard: str = "optimizer"
    recompute: str = "none"
    schedule: str = "1f1b"

    @property
    def devices(self) -> int:
        """Devices that the layout fills."""
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def dense_group(self) -> int:
        """Devices that hold the same dense weights."""
        return self.data * self.context

    @property
    def expert_group(self) -> int:
        """Devices that hold the same experts."""
        return max(self.data * self.context * self.tensor // self.expert, 1)

    def micro_batches(self, sequences: int) -> int:
        """Micro-batches of a step of `sequences` on one pipeline."""
        return sequences // (self.data * self.micro_batch)

    def describe(self) -> str:
        """Return the layout in the field's shorthand, e.g. `DP8 TP2 PP4 EP32 MBS1`."""
        names = {"data": "DP", "tensor": "TP", "pipeline": "PP", "virtual": "VP", "context": "CP", "expert": "EP"}
        degrees = [f"{short}{getattr(self, name)}" for name, short in names.items()
                   if getattr(self, name) > 1 or name == "data"]
        shard = {"none": "", "optimizer": " ZeRO-1", "full": " FSDP"}[self.shard]
        again = "" if self.recompute == "none" else f" recompute={self.recompute}"
        schedule = f" {self.schedule}" if self.pipeline > 1 else ""
        return f"{' '.join(degrees)} MBS{self.micro_batch}{shard}{again}{schedule}"

    def check(self, shape: Shape, layers: int, devices: int, sequences: int) -> None:
        """Raise ConfigError with every reason why this layout cannot run this model on these devices."""
        reasons = list(self.reasons(shape, layers, devices, sequences))
        if reasons:
            raise ConfigError(f"{self.describe()} cannot run {shape.name} on {devices} devices:\n  "
                              + "\n  ".join(reasons))

    def reasons(self, shape: Shape, layers: int, devices: int, sequences: int) -> Iterator[str]:
        """Yield every reason why this layout is impossible, with the choices."""
        small = [f.name for f in fields(self) if f.type == "int" and getattr(self, f.name) < 1]
        if small:
            yield f"{', '.join(small)} must be at least 1"
            return
        if self.devices != devices:
            yield (f"data={self.data} x tensor={self.tensor} x pipeline={self.pipeline} x context={self.context} is "
                   f"{self.devices} devices, not {devices}")
        if shape.experts and shape.experts % self.expert:
            yield (f"expert={self.expert} does not divide n_routed_experts={shape.experts}; use "
                   f"{divisors(shape.experts)}")
        if not shape.experts and self.expert > 1:
            yield f"expert={self.expert}: {shape.name} has no routed experts; use 1"
        ranks = self.data * self.context * self.tensor
        if ranks % self.expert:
            yield (f"expert={self.expert} does not divide the {ranks} devices of a pipeline stage "
                   f"(data x context x tensor); use {divisors(ranks)}")
        if shape.heads and shape.heads % self.tensor:
            yield f"tensor={self.tensor} does not divide num_attention_heads={shape.heads}; use {divisors(shape.heads)}"
        if self.pipeline * self.virtual > layers + 2:  # embedding and head may be chunks of their own
            yield f"pipeline={self.pipeline} x virtual={self.virtual} is more than {layers} layers and the two ends"
        if sequences % (self.data * self.micro_batch):
            yield (f"data={self.data} x micro_batch={self.micro_batch} does not divide the batch of {sequences} "
                   "sequences")
        yield from self._schedule_reasons(sequences)

    def _schedule_reasons(self, sequences: int) -> Iterator[str]:
        for name, value, choices in (("shard", self.shard, SHARDS), ("recompute", self.recompute, RECOMPUTES),
                                     ("schedule", self.schedule, SCHEDULES)):
            if value not in choices:
                yield f"{name}={value!r}: choose one of {', '.join(choices)}"
        count = max(self.micro_batches(sequences), 1)
        if self.schedule == "interleaved" and (self.virtual < 2 or count % self.pipeline):
            yield (f"interleaved needs virtual >= 2 and micro-batches ({count}) in multiples of pipeline="
                   f"{self.pipeline}")
        if self.schedule != "interleaved" and self.virtual > 1 and self.schedule != "dualpipe":
            yield f"virtual={self.virtual} needs schedule=interleaved, not {self.schedule}"
        if self.schedule == "dualpipe" and (self.pipeline % 2 or count % 2 or count < 2 * self.pipeline):
            yield (f"dualpipe needs an even pipeline and an even number of micro-batches, at least "
                   f"{2 * self.pipeline}; here pipeline={self.pipeline}, micro-batches {count}")


def divisors(number: int) -> str:
    """Return the divisors of a number for a reader."""
    found = [str(i) for i in range(1, number + 1) if number % i == 0]
    return ", ".join(found if len(found) <= 12 else [*found[:11], "..."])
