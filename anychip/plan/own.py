"""Memory of this project's own trainer and decode state in one process, in fp32: what a real run here takes.

    forward's end   weights + optimizer state + what the ops keep + the heads' gradients + a chunk of logits
    backward        weights + optimizer state + inputs of the layers before + one layer's activations and gradients
                    + the gradients of the layers after

The larger of the two is the peak. Gradients do not exist at the forward's end (they are dropped before a step).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import ModelConfig
from ..model import State
from .cut import Share, cut
from .traced import traced_work
from .work import Batch, Work

LOGITS_CHUNKS = 2 * 16 * 2**20  # bytes of logits that the CPU chip's loss has at once: one chunk, and the one before
LAYER_GRADIENTS = 1.15  # what is alive in one layer's backward beside what it kept, over that (one run, nano 4 x 1024)


@dataclass(frozen=True)
class OwnMemory:
    """Bytes at the two moments that can be the peak, and the parts."""

    weights: float
    states: float
    kept: float
    forward_end: float
    backward: float

    @property
    def peak(self) -> float:
        """The larger moment."""
        return max(self.forward_end, self.backward)


def own_train_memory(config: ModelConfig, batch: int, length: int, *, recompute: bool = False,
                     optimizer: str = "muon", micro_batches: int = 1, shard: int = 1, expert: int = 1) -> OwnMemory:
    """Return the memory of one training process with `batch` sequences a step, all tensors of it in fp32.

    One of `shard` x `expert` ranks (`parallel.Degrees`) has its part of the batch in one micro-batch, its slice of
    every parameter, or its experts whole; the rows that travel are kept where they arrive and where they come back.
    """
    ranks = shard * expert
    work = traced_work(config, Batch(max(batch // max(micro_batches, ranks), 1), length, training=True), "own",
                       torch.float32)
    owned = sum(work.parts[name].num_parameters("expert") * n for name, n in work.count.items()) if expert > 1 else 0
    every = work.num_parameters(mtp=True)
    share = ((every - owned) / ranks + owned / expert) / every
    parameters = 4.0 * every * share
    states = 4.0 * state_elements(work, optimizer) * share
    gathered = 4.0 * _gathered(work, apart=expert > 1) if ranks > 1 else 0.0
    rows = work.batch.tokens * max(work.shape.topk, 1)
    travelled = 2 * 4.0 * rows * work.shape.hidden if expert > 1 else 0.0  # as they arrived, and as they came back
    blocks = {name: part.kept + (travelled if part.moe else 0.0) for name, part in work.parts.items()
              if name not in ("embed", "head")}
    stream = 4.0 * work.batch.tokens * work.shape.hidden * work.shape.streams
    inputs = stream if recompute else 0.0
    held = sum((inputs if recompute else blocks[name]) * n for name, n in work.count.items() if name in blocks)
    ends = work.parts["head"].kept
    logits = min(LOGITS_CHUNKS, 4.0 * work.batch.tokens * work.shape.vocab)
    heads = 4.0 * (1 + work.shape.mtp) * work.shape.vocab * work.shape.hidden + logits
    forward_end = parameters + states + held + ends + heads + gathered
    largest = max(kept for name, kept in blocks.items() if name != "mtp")
    if recompute:  # half-way: half of the inputs, half of the gradients, one layer made again
        backward = parameters * 1.5 + states + held / 2 + largest * (1 + LAYER_GRADIENTS) + gathered
    else:  # layers give back what they kept as they go: the last one begins beside all the others
        backward = parameters + states + held + ends + max(blocks.values()) * LAYER_GRADIENTS * 0.4 + gathered
    return OwnMemory(parameters, states, held, forward_end, backward)


def _gathered(work: Work, *, apart: bool) -> float:
    """Elements of parameters that are whole on a rank as backward begins; `apart`: experts are never gathered.

    What lies outside of the layers and layers with an indexer stay gathered from forward to backward; the layer that
    backward begins with is gathered too, and is there twice: as it arrives, and as parameters.
    """
    sizes = {name: part.num_parameters() - (part.num_parameters("expert") if apart else 0)
             for name, part in work.parts.items()}
    stays = {name for name, part in work.parts.items() if name not in work.layers
             or any(".indexer." in weight.name for weight in part.weights)}
    return sum(sizes[name] * work.count[name] for name in stays) + 2.0 * max(sizes[name] for name in work.layers)


def state_elements(work: Work, optimizer: str) -> float:
    """Return elements of optimizer state: one momentum a matrix with Muon, two moments for the rest; AdamW two."""
    total = 0.0
    for name, times in work.count.items():
        for weight in work.parts[name].weights:
            matrix = optimizer == "muon" and weight.kind in ("linear", "plain", "expert") and len(weight.shape) > 1
            total += times * weight.numel * (1 if matrix else 2)
    return total


def own_state_bytes(config: ModelConfig, max_tokens: int, sequences: int, chunk: int) -> int:
    """Return the bytes of a decode state: those of its tensors, on the meta device."""
    return State(config, max_tokens, num_sequences=sequences, chunk=chunk, device="meta", dtype=torch.float32).nbytes()


def own_pass_memory(config: ModelConfig, max_tokens: int, sequences: int, chunk: int) -> float:
    """Return the peak bytes of serving: weights, the decode state, and a pass of `chunk` tokens of each sequence.

    A pass holds the residual streams before and after an op, and the tensors of its largest call.
    """
    work = traced_work(config, Batch(sequences, chunk, max_tokens - chunk), "own", torch.float32)
    largest = max(float(cut(part, Share()).moved.max()) for part in work.parts.values() if part.calls)
    streams = 4.0 * work.batch.tokens * work.shape.hidden * work.shape.streams
    weights = 4.0 * work.num_parameters(mtp=True)
    return weights + own_state_bytes(config, max_tokens, sequences, chunk) + 2 * streams + largest
