"""The optimizer of a run: Muon for matrices, AdamW for everything else, as one object.

Its state is named by the parameters, so that it can be saved, moved to other ranks, and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from ..config import ModelConfig
from ..errors import CheckpointError
from ..ops import Ops
from ..ops.orthogonal import Matrices, MuonRule
from ..parallel import Placement
from .muon import is_muons, logical_matrices
from .settings import TrainSettings

MOMENTUM = "momentum"


class Optimizer:
    """Muon (Nesterov, decay of all its matrices) and AdamW (decay of embedding, head and position biases only).

    With `settings.optimizer` "adamw" AdamW trains all; matrices decay. Parameters without a gradient stay as they are.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, placement: Placement, ops: Ops) -> None:
        """`model` is this rank's part. AdamW's fused kernels are used where the device has them."""
        assert isinstance(model.config, ModelConfig)
        self.settings, self._placement, self._ops, self._config = settings, placement, ops, model.config
        named = dict(model.named_parameters())
        self._muon = {name: p for name, p in named.items() if settings.optimizer == "muon" and is_muons(name, p)}
        self._adamw_names: dict[Tensor, str] = {p: name for name, p in named.items() if name not in self._muon}
        self._momenta: dict[str, Tensor] = {}
        self.adamw = _adamw([p for name, p in named.items() if name not in self._muon], settings)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in (*self._muon.values(), *self._adamw_names):
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter that has a gradient, at this learning rate."""
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        rule, whole = MuonRule(self.settings.momentum, rate, self.settings.weight_decay), []
        for name, parameter in self._muon.items():
            if parameter.grad is None:
                continue
            parts = parameter, parameter.grad, self._momentum(name, parameter)
            held = [_held(part) for part in parts]
            if any(part is None for part in held):
                self._step_in_parts(name, parts, rule)
            else:
                views = (logical_matrices(name, part, self._config) for part in held if part is not None)
                whole += [Matrices(*matrices) for matrices in zip(*views, strict=True)]
        self._ops.muon(whole, rule)

    def _step_in_parts(self, name: str, parts: tuple[Tensor, Tensor, Tensor], rule: MuonRule) -> None:
        """Muon's step where this rank holds slices: on the whole matrices, so that it has the bits of one process."""
        whole = [self._placement.full(part).contiguous() for part in parts]
        views = (logical_matrices(name, tensor, self._config) for tensor in whole)
        self._ops.muon([Matrices(*matrices) for matrices in zip(*views, strict=True)], rule)
        weight, _, momentum = parts
        for mine, tensor in ((weight, whole[0]), (momentum, whole[2])):
            mine.copy_(self._placement.local(tensor, like=mine))

    def _momentum(self, name: str, parameter: Tensor) -> Tensor:
        if name not in self._momenta:
            self._momenta[name] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        return self._momenta[name]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors by `<parameter>/<part>`: momentum, or AdamW's exp_avg, exp_avg_sq and step.

        They are the optimizer's own, not copies; sharded ones are DTensors. What had no gradient yet is left out.
        """
        found = {f"{name}/{MOMENTUM}": momentum for name, momentum in self._momenta.items()}
        for parameter, state in self.adamw.state.items():
            found |= {f"{self._adamw_names[parameter]}/{part}": value for part, value in state.items()}
        return found

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave. Raises CheckpointError, with all reasons, where it does not fit."""
        named = {name: p for p, name in self._adamw_names.items()}
        problems = []
        for key, tensor in tensors.items():
            name, _, part = key.rpartition("/")
            home = self._muon if part == MOMENTUM else named
            parameter = home.get(name)
            if parameter is None or (tensor.dim() and tensor.shape != parameter.shape):
                problems.append(f"{key} {list(tensor.shape)}")
            elif part == MOMENTUM:
                self._momenta[name] = tensor.to(parameter.device)
            else:
                on_host = part == "step" and not self.adamw.defaults["fused"]
                self.adamw.state[parameter][part] = tensor.to("cpu" if on_host else parameter.device)
        if problems:
            raise CheckpointError(f"the optimizer's state does not belong to this model and optimizer "
                                  f"({self.settings.optimizer}): {', '.join(problems[:10])}")


def _adamw(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.AdamW:
    """Parameters of one mesh of ranks go together. The fused kernel only where a slice of a tensor gets the bits of the
    whole: torch's for CPUs rounds the last elements of a tensor otherwise."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        groups.setdefault((parameter.dim() > 1, mesh), []).append(parameter)
    fused = all(p.device.type == "cuda" for p in parameters)
    decays = [{"params": group, "weight_decay": settings.weight_decay if matrices else 0.0}
              for (matrices, _), group in groups.items()]
    return torch.optim.AdamW(decays, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=fused,
                             foreach=not fused)


def _held(tensor: Tensor) -> Tensor | None:
    """Return the tensor of whole matrices that this rank holds, or None where it holds slices of them."""
    if not isinstance(tensor, DTensor):
        return tensor
    banks = tensor.dim() == 3 and all(p.is_replicate() or p == Shard(0) for p in tensor.placements)
    return tensor.to_local() if banks or all(p.is_replicate() for p in tensor.placements) else None
