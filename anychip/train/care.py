"""How a run looks after itself, and the processes that it runs in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch.distributed as dist

from ..errors import AnychipError, InputError
from ..model import Transformer
from ..parallel import Placement, Single
from ..parallel.ranks import Ranks as Spread
from ..parallel.world import join_alone
from .inject import Injection
from .integrity import gather
from .pulse import Pulse
from .settings import TrainSettings

T = TypeVar("T")


@dataclass(frozen=True)
class Care:
    """What is done against faults. None of it changes the losses of a run that meets none.

    A save every `save_every` steps, of which `keep` stay; corruption checks every `check_every` steps (0: none); a
    loss `spike_nats` above the median of the last ones is a fault (0: never). Where a spike comes back, routing is
    anticipatory for `anticipate_steps` steps (0: never; the batch is skipped at once), by the weights of
    `anticipate_delay` steps before. `inject` makes faults on purpose.
    `measure_limit` gives metrics the share of the chip's limit, `tensorboard` writes its files too.
    """

    save_every: int = 200
    keep: int = 2
    check_every: int = 100
    spike_nats: float = 1.0
    anticipate_steps: int = 100
    anticipate_delay: int = 4
    inject: tuple[Injection, ...] = ()
    measure_limit: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        problems = [f"{name}={value} must be at least {least}" for name, value, least in
                    (("save_every", self.save_every, 1), ("keep", self.keep, 1), ("check_every", self.check_every, 0),
                     ("spike_nats", self.spike_nats, 0), ("anticipate_steps", self.anticipate_steps, 0),
                     ("anticipate_delay", self.anticipate_delay, 1)) if value < least]
        if problems:
            raise InputError("; ".join(problems))


class Place(Protocol):
    """Spreads a model over this run's ranks."""

    def __call__(self, model: Transformer, settings: TrainSettings) -> Placement:
        """Return this rank's placement. All ranks call it."""
        ...


def alone(model: Transformer, settings: TrainSettings) -> Placement:
    """Place the whole model in this process. Sequences in blocks are a rank's work, if the only one's."""
    blocks, device = settings.context_blocks > 1, model.embed.weight.device
    placed: Any = Spread(model, join_alone(device), settings) if blocks else Single(model, settings.micro_batches)
    return placed  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Ranks:
    """The processes of a run: this one's number, and a group of its own with a CPU backend (None: one process).

    `pulse` is this rank's heartbeat where somebody listens.
    """

    rank: int = 0
    group: dist.ProcessGroup | None = None
    place: Place = alone
    pulse: Pulse | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.group is not None:
            dist.barrier(self.group)

    def first(self, act: Callable[[], T]) -> T:
        """Let the first rank act; return what it got on all ranks, or raise its AnychipError on all ranks."""
        if self.group is None:
            return act()
        box: list[object] = [None, None]
        if self.is_first:
            try:
                box[0] = act()
            except AnychipError as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self.group)
        if isinstance(box[1], AnychipError):
            raise box[1]
        return box[0]  # type: ignore[return-value]

    def all(self, holds: bool) -> bool:
        """Tell whether something holds on every rank."""
        return all(gather(holds, self.group))
