"""The ranks of a run: one DeviceMesh over pipeline x shard x expert x context, and the process group under it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..errors import NotSupported
from .degrees import Degrees

AXES = ("pipeline", "shard", "expert", "context")  # the fastest-changing last: context neighbours are rank neighbours
BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}


@dataclass(frozen=True)
class World:
    """Where this process stands among the ranks of a layout."""

    degrees: Degrees
    mesh: DeviceMesh
    data: DeviceMesh
    """The ranks of this pipeline stage: shard x expert x context, in that order."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return dist.get_rank()

    def at(self, axis: str) -> int:
        """Return this rank's place along an axis."""
        return self.mesh.get_local_rank(axis)

    def group(self, axis: str) -> dist.ProcessGroup:
        """Return the ranks that differ from this one along one axis only."""
        return self.mesh.get_group(axis)

    @property
    def data_index(self) -> int:
        """Which of the ranks with other sequences this is: shard x expert."""
        return self.at("shard") * self.degrees.expert + self.at("expert")

    @property
    def partner(self) -> int:
        """The data index of the rank that could do this one's work with the same bits: its neighbour, or this one.

        Sums are trees with neighbours first, so neighbours may change places; not where their parts lie in several
        branches, as with three experts' or context ranks.
        """
        other = self.data_index ^ 1
        axes = (self.degrees.expert, self.degrees.context)
        swaps = other < self.degrees.num_data and all(axis & (axis - 1) == 0 for axis in axes)
        return other if swaps else self.data_index


def join(device: torch.device, degrees: Degrees, *, timeout_s: float = 600.0) -> World:
    """Join the process group that torchrun (or `launch`) describes, unless this process has, and lay out the mesh.

    gloo serves CPUs, nccl NVIDIA's chips, hccl Huawei's. Raises ConfigError where the number of processes is not the
    layout's, NotSupported for a device without a backend. A collective that waits for longer than `timeout_s` fails.
    """
    if device.type not in BACKENDS:
        raise NotSupported(f"no communication library is known for {device.type!r}; devices with one are "
                           f"{', '.join(BACKENDS)}")
    if not dist.is_initialized():
        dist.init_process_group(BACKENDS[device.type], timeout=timedelta(seconds=timeout_s))
    degrees.check_ranks(dist.get_world_size())
    return lay_out(device.type, degrees)


def join_alone(device: torch.device) -> World:
    """Return the world of this process alone; where there is no process group, this makes one of one rank."""
    if not dist.is_initialized():
        dist.init_process_group(BACKENDS[device.type], store=HashStore(), rank=0, world_size=1)
    return lay_out(device.type, Degrees())


def lay_out(device_type: str, degrees: Degrees) -> World:
    """Return this rank's place in a layout over the process group that exists."""
    mesh = init_device_mesh(device_type, tuple(getattr(degrees, axis) for axis in AXES), mesh_dim_names=AXES)
    return World(degrees, mesh, mesh["shard", "expert", "context"]._flatten("data"))


def leave() -> None:
    """Leave the process group, where one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
