"""Silent data corruption: what should be the same bits twice is held against itself.

Weights are fingerprinted after each update and again before the next one: what changed in between was no update. Every
few steps a step's gradients are computed twice, and tensors that several ranks hold are held against each other.
All comparisons are of bits, so in deterministic arithmetic there are no false alarms and no thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Fingerprints = dict[str, int]
ODD = 0x1E3779B97F4A7C15  # any odd number


def fingerprint(tensors: Mapping[str, Tensor], *, quick: bool = False) -> Fingerprints:
    """Return a number for each tensor's local bits: ODD times the sum of its 64-bit words plus that of their squares.

    Modulo 2**64, any single flipped bit changes it, and two flips change it alike only where the words agree too (a
    plain sum, `quick`, takes the same bit in two words for one). Costs two reads of the tensors, one where quick, and
    waits for the chip once.
    """
    if not tensors:
        return {}
    sums = torch.stack([_mix(local(tensor), quick) for tensor in tensors.values()])
    return dict(zip(tensors, sums.cpu().tolist(), strict=True))


def local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def _mix(tensor: Tensor, quick: bool) -> Tensor:
    data = tensor.detach().contiguous().view(-1)
    if data.storage_offset() * data.element_size() % 8:
        data = data.clone()
    data = data.view(torch.uint8)
    whole = data.numel() // 8 * 8
    words = data[:whole].view(torch.int64)
    total = words.sum() * ODD
    if not quick:
        total = total + (torch.dot(words, words) if words.device.type == "cpu" else (words * words).sum())
    if whole != data.numel():
        places = torch.arange(0, 8 * (data.numel() - whole), 8, device=data.device)
        last = (data[whole:].long() << places).sum()
        total = total + last * ODD + last * last
    return total


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return this rank's gradients by parameter."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return this rank's parameters and buffers by name."""
    return model.state_dict(keep_vars=True)


def differing(before: Fingerprints, after: Fingerprints) -> list[str]:
    """Return the names whose fingerprints are not the same, those that one side lacks included."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def copies(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return fingerprints by `name` and, for a part of a tensor, where in the whole it lies.

    Two ranks that have the same key hold the same numbers, or should.
    """
    places = {name: name + _place(tensor) for name, tensor in tensors.items()}
    return {places[name]: value for name, value in fingerprint(tensors).items()}


def _place(tensor: Tensor) -> str:
    if not isinstance(tensor, DTensor) or all(placement.is_replicate() for placement in tensor.placements):
        return ""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return f"[{','.join(f'{at}:{at + size}' for at, size in zip(offset, shape, strict=True))}]"


def gather(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """Return every rank's value, in rank order, on all ranks."""
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group)
    return values


def outvoted(of_ranks: Iterable[Mapping[str, int]]) -> dict[str, list[int]]:
    """Return, for each key whose copies differ, the ranks that are wrong: the minority, or all where none is."""
    holders: dict[str, dict[int, list[int]]] = {}
    for rank, of_rank in enumerate(of_ranks):
        for key, value in of_rank.items():
            holders.setdefault(key, {}).setdefault(value, []).append(rank)
    found = {}
    for key, by_value in holders.items():
        if len(by_value) > 1:
            groups = sorted(by_value.values(), key=len)
            majority = groups.pop() if len(groups[-1]) > len(groups[-2]) else []
            found[key] = sorted(rank for group in groups for rank in group if rank not in majority)
    return found
