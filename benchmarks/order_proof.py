"""A second opinion about races: an explicit graph of what must happen before what, and a search for a path.

The checker in C++ keeps vector clocks over 32-byte blocks. This proof shares no code and no idea with it: it builds
the graph of starts and ends of all instructions of a block, and asks of every two that touch a common byte, one of them
writing, whether a path leads from the end of the first to the start of the second.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from anychip.ascend.steps import Step, Touched

PIPES = ("S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX")


@dataclass
class Graph:
    """Nodes in an order in which every edge leads forward; `before[n]` are the nodes with an edge to n."""

    before: list[list[int]] = field(default_factory=list)

    def node(self, *before: int | None) -> int:
        """Add a node after others (None is no node)."""
        self.before.append([b for b in before if b is not None])
        return len(self.before) - 1

    def reaches(self) -> list[int]:
        """Return for each node the set of nodes that lead to it, itself included, as bits of an integer."""
        found: list[int] = []
        for node, before in enumerate(self.before):
            bits = 1 << node
            for b in before:
                bits |= found[b]
            found.append(bits)
        return found


@dataclass
class _Pipe:
    last_start: int | None = None  # instructions of a pipe start in order
    gate: int | None = None        # what the next instruction must wait for
    ends: list[int] = field(default_factory=list)


def unordered_pairs(steps: list[Step]) -> list[tuple[Step, Step]]:
    """Return the pairs of steps of one block that touch a common byte, one writing, and that nothing orders."""
    graph, started, ended = Graph(), {}, {}
    pipes = {(core, pipe): _Pipe() for core in range(3) for pipe in PIPES}
    flags: dict[tuple[int, str, str, int], int] = {}
    sent: dict[tuple[int, int], list[int]] = defaultdict(list)
    taken: dict[tuple[int, int, int], int] = defaultdict(int)
    for number, step in enumerate(steps):
        pipe, scalar = pipes.get((step.core, step.pipe)), pipes[step.core, "S"]
        if step.kind == "set_flag":
            assert pipe is not None
            flags.setdefault((step.core, step.pipe, step.peer, step.event), _complete(graph, pipe, scalar))
        elif step.kind == "wait_flag":
            key = (step.core, step.pipe, step.peer, step.event)
            if key in flags:
                _hold(graph, pipes[step.core, step.peer], flags.pop(key))
        elif step.kind == "barrier":
            drained = PIPES if step.pipe == "ALL" else (step.pipe,)
            _barrier(graph, [pipes[step.core, name] for name in drained])
        elif step.kind == "sync_set":
            assert pipe is not None
            sent[step.core, step.event].append(_complete(graph, pipe, scalar))
        elif step.kind == "sync_wait":
            for other in (1, 2) if step.core == 0 else (0,):
                at = taken[step.core, other, step.event]
                if at < len(sent[other, step.event]):
                    taken[step.core, other, step.event] += 1
                    _hold(graph, pipes[step.core, step.peer], sent[other, step.event][at])
        else:
            assert pipe is not None
            gate = scalar.gate if step.pipe != "S" else None
            earlier = pipe.ends if step.ordered or step.pipe == "S" else []
            started[number] = graph.node(pipe.last_start, pipe.gate, gate, *earlier)
            ended[number] = graph.node(started[number])
            pipe.last_start = started[number]
            pipe.ends.append(ended[number])
    return _unordered(steps, graph, started, ended)


def _complete(graph: Graph, pipe: _Pipe, scalar: _Pipe) -> int:
    return graph.node(pipe.gate, scalar.gate, *pipe.ends)


def _hold(graph: Graph, pipe: _Pipe, node: int) -> None:
    pipe.gate = graph.node(pipe.gate, node)


def _barrier(graph: Graph, pipes: list[_Pipe]) -> None:
    node = graph.node(*(end for pipe in pipes for end in pipe.ends), *(pipe.gate for pipe in pipes))
    for pipe in pipes:
        pipe.gate = node


def _unordered(steps: list[Step], graph: Graph, started: dict[int, int], ended: dict[int, int]) -> list[
        tuple[Step, Step]]:
    before = graph.reaches()
    uses: dict[int, list[tuple[int, Touched]]] = defaultdict(list)
    for number in started:
        for touched in steps[number].touched:
            uses[touched.buffer].append((number, touched))
    found = []
    for listed in uses.values():
        for i, (late, b) in enumerate(listed):
            for early, a in listed[:i]:
                if early == late or not (a.write or b.write):
                    continue
                same = (steps[early].core, steps[early].pipe) == (steps[late].core, steps[late].pipe)
                if same and not a.write:
                    continue  # a pipe takes its inputs in order: a later write of the same pipe comes after the read
                if not before[started[late]] >> ended[early] & 1 and _overlap(a, b):
                    found.append((steps[early], steps[late]))
    return found


def _overlap(a: Touched, b: Touched) -> bool:
    i = j = 0
    while i < len(a.intervals) and j < len(b.intervals):
        (low, high), (other_low, other_high) = a.intervals[i], b.intervals[j]
        if low < other_high and other_low < high:
            return True
        if high <= other_high:
            i += 1
        else:
            j += 1
    return False
