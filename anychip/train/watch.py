"""A placement under watch: its steps are timed by phase, checked for corruption, and open to injected faults."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor, nn

from ..model.moe import MoE
from ..parallel import Batch, Losses, Objective, Placement, Routes
from .fault import Fault, FaultKind
from .inject import Injector
from .integrity import Fingerprints, copies, differing, fingerprint, gather, gradients, outvoted, weights
from .pulse import Pulse

SLOW_RATIO, SLOW_WINDOW = 1.5, 10


@dataclass
class Phases:
    """Seconds that each phase of the step under way has taken, by name; `taken` gives them and begins anew."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of a block to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def taken(self) -> dict[str, float]:
        """Return the phases since the last call."""
        seconds, self.seconds = self.seconds, {}
        return seconds


class Watched:
    """A `Placement` that behaves as the one inside it, or raises Fault where that one's numbers are corrupt.

    Every `check_every` steps (0: never) a step's gradients are computed twice, the second time by another rank where
    there is one that can, and compared, and so are the copies of what several ranks hold. Weights and the optimizer's
    `state` (tensors by name) are compared at every step with what the last update left.
    """

    def __init__(self, inner: Placement, *, check_every: int, group: dist.ProcessGroup | None = None,
                 injector: Injector | None = None, pulse: Pulse | None = None) -> None:
        self.inner, self.phases, self.at = inner, Phases(), 0
        self._check_every, self._group, self._injector, self._pulse = check_every, group, injector, pulse
        self._left: Fingerprints = {}
        self.last_loads: list[Tensor] = []
        self._own_before = 0
        self.slow_ranks: list[tuple[int, float]] = []
        self._is_warm = False
        self.state: Callable[[], dict[str, Tensor]] = dict
        self.rank, self.num_ranks = inner.rank, inner.num_ranks

    @property
    def model(self) -> nn.Module:
        """This rank's part of the model."""
        return self.inner.model

    @property
    def is_writer(self) -> bool:
        return self.inner.is_writer

    def begin(self, step: int) -> None:
        """Say which step comes."""
        self.at = step
        self._alive()

    def end(self, *, check_copies: bool) -> None:
        """After a step's update: take the weights' fingerprints; where asked for, compare copies across ranks."""
        self._is_warm = True
        self._alive()
        if self._check_every:
            with self.phases.timed("checks"):
                self._left = fingerprint(self._kept(), quick=True)
                if check_copies or self._due:
                    self.compare_copies(self._kept())

    def _kept(self) -> dict[str, Tensor]:
        """Return what must stay as it is between two updates: weights, and the optimizer's tensors but for counters."""
        return weights(self.model) | {name: tensor for name, tensor in self.state().items() if tensor.dim()}

    def routes(self, batch: Batch, objective: Objective) -> Routes:
        with self.phases.timed("anticipate"):
            routes = self.inner.routes(batch, objective)
        self._alive()
        return routes

    def owns(self, route: str) -> bool:
        return self.inner.owns(route)

    def step(self, batch: Batch, objective: Objective, routes: Routes | None = None) -> Losses:
        """As the inner placement's. Raises Fault where the step is not the same twice."""
        undo = self._injector.before_step(self.at, self.model, self.state()) if self._injector else lambda: None
        started = time.perf_counter()
        with self.phases.timed("forward_backward"):
            losses = self.inner.step(batch, objective, routes)
        undo()
        self._alive()
        if self._injector:
            self._injector.after_gradient(self.at, self.model, time.perf_counter() - started)
        if self._check_every:
            with self.phases.timed("checks"):
                self._check_weights()
                if self._due:
                    self._compute_again((batch, objective, routes), losses)
        return losses

    @property
    def _due(self) -> bool:
        return self._check_every > 0 and self.at % self._check_every == 0

    def _check_weights(self) -> None:
        """Raise Fault where weights are not what the last update left. Only this rank knows, so it ends."""
        if self._left:
            changed = differing(self._left, fingerprint(self._kept(), quick=True))
            if changed:
                raise Fault(FaultKind.WEIGHTS, f"rank {self.rank}: {changed[0]} changed between the update before step "
                            f"{self.at} and its own", step=self.at, ranks=(self.rank,),
                            everywhere=self.num_ranks == 1)

    def _compute_again(self, work: tuple[Batch, Objective, Routes | None], first: Losses) -> None:
        before = fingerprint(gradients(self.model)) | fingerprint(first.named)
        for parameter in self.model.parameters():
            parameter.grad = None
        again = self.inner.again(*work)
        changed = differing(before, fingerprint(gradients(self.model)) | fingerprint(again.named))
        verdicts = gather((changed, self._own_seconds()), self._group)
        wrong = [rank for rank, (names, _) in enumerate(verdicts) if names]
        if wrong:
            where = f"rank {wrong[0]}" if len(wrong) == 1 else f"ranks {', '.join(map(str, wrong))}"
            raise Fault(FaultKind.GRADIENT, f"{where}: the gradient of {verdicts[wrong[0]][0][0]} at step {self.at} "
                        "was another one when it was computed again", step=self.at, ranks=tuple(wrong))
        self.slow_ranks = slow_ranks([own for _, own in verdicts])

    def compare_copies(self, tensors: dict[str, Tensor]) -> None:
        """Raise Fault where ranks that hold the same numbers do not. All ranks call it and come to the same verdict."""
        if self._group is None:
            return
        wrong = outvoted(gather(copies(tensors), self._group))
        if wrong:
            name = min(wrong)
            ranks = tuple(sorted({rank for of_key in wrong.values() for rank in of_key}))
            raise Fault(FaultKind.COPIES, f"after step {self.at} the copies of {name} differ: rank"
                        f"{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}", step=self.at, ranks=ranks)

    def again(self, batch: Batch, objective: Objective, routes: Routes | None = None) -> Losses:
        return self.inner.again(batch, objective, routes)

    def _own_seconds(self) -> float:
        """Return this rank's seconds of own work since the last call."""
        if self._pulse is None:
            return 0.0
        before, self._own_before = self._own_before, self._pulse.own_ns
        return (self._own_before - before) / 1e9

    def _alive(self) -> None:
        if self._pulse is not None:
            self._pulse.progress(self.at if self._is_warm else -1)  # the first step may compile and warm up

    def loads(self) -> list[tuple[MoE, Tensor]]:
        loads = self.inner.loads()
        self.last_loads = [load for _, load in loads]
        return loads

    def grad_norm(self) -> Tensor:
        with self.phases.timed("grad_norm"):
            return self.inner.grad_norm()

    def sum(self, tensor: Tensor) -> Tensor:
        return self.inner.sum(tensor)

    def full(self, tensor: Tensor) -> Tensor:
        return self.inner.full(tensor)

    def local(self, whole: Tensor, like: Tensor) -> Tensor:
        return self.inner.local(whole, like)

    def describe(self) -> str:
        return self.inner.describe()


def slow_ranks(own_s: list[float]) -> list[tuple[int, float]]:
    """Return the ranks that work far longer than the others, with the ratio, from each rank's seconds of own work."""
    found = []
    for rank, own in enumerate(own_s):
        others = sorted(own_s[:rank] + own_s[rank + 1 :])
        usual = others[len(others) // 2] if others else 0.0
        if usual > 0 and own > SLOW_RATIO * usual:
            found.append((rank, own / usual))
    return found
