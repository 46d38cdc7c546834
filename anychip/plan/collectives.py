"""Seconds of a collective among a group of devices of a cluster, from latency and bandwidth, level by level.

A group is `size` devices, `stride` apart: tensor-parallel ranks are neighbours (stride 1), data-parallel ones are far
apart. At each level the devices below a common parent share their links, so hierarchical algorithms apply: what
leaves a node is spread over all of its devices' ports.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .cluster import Cluster


class Group(NamedTuple):
    """`size` devices, each `stride` away from the next."""

    size: int
    stride: int = 1


def levels_of(cluster: Cluster, group: Group) -> list[tuple[int, float, float]]:
    """Return, for each level the group crosses, (members joined by it, bytes/s, latency): inner first.

    The product of the members is the group's size.
    """
    found, inside = [], 1
    for level in cluster.levels:
        members = min(max(level.size // group.stride, 1), group.size)
        members = math.gcd(members, group.size) if group.size % members else members
        if members > inside:
            found.append((members // inside, level.bytes_per_s, level.latency_s))
            inside = members
        if inside >= group.size:
            break
    if inside < group.size:
        level = cluster.levels[-1]
        found.append((math.ceil(group.size / inside), level.bytes_per_s, level.latency_s))
    return found


def all_gather_s(cluster: Cluster, group: Group, nbytes: float) -> float:
    """Seconds until every device has all `nbytes`, of which each began with its share. A reduce-scatter is the same.

    Inner devices fetch different shares from outside and pass them on inside.
    """
    seconds, inside = 0.0, 1
    levels = levels_of(cluster, group)
    for members, _, _ in levels:
        inside *= members
    for members, rate, latency in reversed(levels):  # outermost first: its traffic is spread over those inside
        inside //= members
        steps = members - 1 if members <= 8 else 2 * math.log2(members)
        seconds += nbytes / max(inside, 1) * (members - 1) / members / rate + latency * steps
    return seconds


def all_reduce_s(cluster: Cluster, group: Group, nbytes: float) -> float:
    """Seconds of a reduce-scatter and an all-gather of `nbytes`."""
    return 2 * all_gather_s(cluster, group, nbytes)


def all_to_all_s(cluster: Cluster, group: Group, nbytes: float, copies: float = 0.0) -> float:
    """Seconds until each device has sent `nbytes` spread evenly over the group.

    Levels work at the same time, so the slowest decides. `copies` is how many of a token's destinations there are
    (0: they do not share anything): with more than one in the same node the token crosses the fabric once only.
    """
    slowest, latency_s, outside = 0.0, 0.0, group.size
    for members, rate, latency in reversed(levels_of(cluster, group)):
        inside = outside // members
        volume = nbytes * (outside - inside) / group.size
        if copies and inside > 1:
            nodes = group.size / inside
            distinct = nodes * (1 - (1 - 1 / nodes) ** copies)  # nodes that a token's destinations touch
            volume *= min(distinct / copies, 1.0)
        slowest = max(slowest, volume / rate)
        latency_s += latency * min(members - 1, 8)
        outside = inside
    return slowest + latency_s


def send_s(cluster: Cluster, distance: int, nbytes: float) -> float:
    """Seconds to send `nbytes` to the device `distance` away."""
    level = cluster.level_of(distance + 1)
    return level.latency_s + nbytes / level.bytes_per_s
