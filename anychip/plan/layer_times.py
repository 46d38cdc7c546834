"""Seconds of one layer of each kind on one rank of a layout: its calls, and what its ranks send each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .cluster import Cluster
from .collectives import Group, all_gather_s, all_to_all_s
from .constants import Constants
from .cut import Share, cut
from .parallel import Parallel
from .times import EXPERTS, VECTOR, Rates, backward_s, forward_s
from .work import Part, Work


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one micro-batch in one part: compute forward and backward, and transfers in each, by kind.

    `experts_*` is the routed experts' share of the compute: what an uneven load makes longer.
    """

    forward_s: float
    backward_s: float
    experts_forward_s: float = 0.0
    experts_backward_s: float = 0.0
    tensor_s: float = 0.0  # forward; backward counts half as much again (inputs are gathered again)
    expert_s: float = 0.0  # forward; the same backward
    context_s: float = 0.0  # forward; twice backward
    far: bool = False  # the experts' transfers leave the innermost network
    overlapped: bool = True  # products are cut into pieces that overlap with tensor-parallel transfers

    def exposed(self, c: Constants, load: float, *, hidden: bool = False) -> tuple[float, float]:
        """Return (forward, backward) with the transfers that nothing hides; `load` is the fullest rank over the mean.

        `hidden`: a forward and a backward run together, which hides the experts' transfers.
        """
        tensor = c["train.exposed_tensor" if self.overlapped else "train.exposed_plain_tensor"]
        context = c["train.exposed_context"]
        moved = self.expert_s * load * (0.0 if hidden else c["train.exposed_far" if self.far else "train.exposed_near"])
        forward = self.forward_s + self.experts_forward_s * (load - 1) + moved
        backward = self.backward_s + self.experts_backward_s * (load - 1) + moved
        forward += self.tensor_s * tensor + self.context_s * context
        return forward, backward + self.tensor_s * 1.5 * tensor + self.context_s * 2 * context


def layer_times(work: Work, cluster: Cluster, p: Parallel, rated: tuple[Rates, Constants], *, overlapped: bool = True
                ) -> dict[str, LayerTime]:
    """Return the times of every part of one micro-batch of this layout. `overlapped`: see LayerTime."""
    return {name: replace(_layer_time(work, part, cluster, p, rated), overlapped=overlapped)
            for name, part in work.parts.items()}


def _layer_time(work: Work, part: Part, cluster: Cluster, p: Parallel, rated: tuple[Rates, Constants]) -> LayerTime:
    r, c = rated
    cuts = cut(part, Share(p.tensor, p.context, p.expert if part.moe else 1))
    forward, backward = forward_s(cuts, r), backward_s(cuts, r)
    experts = cuts.kind == EXPERTS
    again = float(forward.sum()) if p.recompute == "full" and part.name not in ("embed", "head") else 0.0
    if p.recompute == "selective":
        again = float(forward[cuts.kind == VECTOR].sum())
    found = LayerTime(float(forward.sum()), float(backward.sum()) + again, float(forward[experts].sum()),
                      float(backward[experts].sum()) + (float(forward[experts].sum()) if again else 0.0))
    if part.name == "embed":
        return found
    if part.name == "head":
        return found
    return replace(found, tensor_s=_tensor_s(work, cluster, p, c), expert_s=_expert_s(work, part, cluster, p, c),
                   context_s=_context_s(work, cluster, p, c), far=p.expert > fast_network(cluster))


def fast_network(cluster: Cluster) -> int:
    """Return how many devices exchange at nearly the innermost level's bandwidth: a node, a rack, a supernode."""
    near = [level.size for level in cluster.levels if level.bytes_per_s > cluster.levels[0].bytes_per_s / 2]
    return max(near)


def _tensor_s(work: Work, cluster: Cluster, p: Parallel, c: Constants) -> float:
    """Two gathers and two scatters of the hidden rows a layer (sequence parallelism)."""
    if p.tensor == 1:
        return 0.0
    nbytes = work.batch.tokens / p.context * work.shape.hidden * 2.0
    return 4 * all_gather_s(cluster, Group(p.tensor), nbytes) / c["train.link"]


def _expert_s(work: Work, part: Part, cluster: Cluster, p: Parallel, c: Constants) -> float:
    """Every routed row goes to its expert's rank and comes back, in bf16."""
    if not part.moe or p.expert == 1:
        return 0.0
    width = work.shape.expert_width or work.shape.hidden
    rows = work.batch.tokens / (p.context * p.tensor) * work.shape.topk
    once = all_to_all_s(cluster, Group(p.expert), rows * width * 2.0, copies=work.shape.topk)
    return 2 * once / c["train.link"]


def _context_s(work: Work, cluster: Cluster, p: Parallel, c: Constants) -> float:
    """Every rank of a context group needs the keys of the others."""
    if p.context == 1:
        return 0.0
    heads = max(work.shape.kv_heads // p.tensor, 1)
    width = 2 * heads * max(work.shape.hidden // max(work.shape.heads, 1), 64)
    return all_gather_s(cluster, Group(p.context, p.tensor), work.batch.tokens * width * 2.0) / c["train.link"]

