"""The two sides of the CPU benchmark: this project's model and transformers', with the same weights and tokens."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from anychip.checkpoint import convert, save_checkpoint
from anychip.chips import open_chip
from anychip.config import ModelConfig
from anychip.model import Layout, State, Transformer, initialize
from anychip.ops.recorded import RecordedOps
from anychip.record import Kind, Recorder


class Side(Protocol):
    """What is timed. Each call returns seconds."""

    name: str

    def train_step(self, inputs: Tensor, targets: Tensor) -> float: ...

    def prefill(self, ids: Tensor) -> float: ...

    def decode(self, context: int, steps: int) -> list[float]: ...


class Ours:
    """anychip on the chip `cpu`."""

    name = "anychip"
    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self.config = config
        self.model = Transformer(config, open_chip("cpu").ops())
        initialize(self.model, seed)
        self.optimizer = torch.optim.AdamW(self._trained(), lr=1e-4, fused=True)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [p for name, p in self.model.named_parameters() if not name.startswith("mtp.")]

    def train_step(self, inputs: Tensor, targets: Tensor) -> float:
        """One step on [B, L] tokens: forward, loss, backward, AdamW. No MTP loss, as the peer has none."""
        start = self.clock()
        hidden = self.model(inputs.flatten(), Layout.whole([inputs.shape[1]] * inputs.shape[0])).hidden_Td
        self.model.ops.cross_entropy(hidden, self.model.head.weight, targets.flatten()).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.clock() - start

    def prefill(self, ids: Tensor) -> float:
        """Fill an empty state with the ids, in chunks, and compute the last token's logits."""
        start = self.clock()
        with torch.inference_mode():
            hidden, _ = self._fill(ids, len(ids))
            self.model.logits(hidden[-1:])
        return self.clock() - start

    def decode(self, context: int, steps: int) -> list[float]:
        """Times of single-token steps after a real context."""
        ids = random_ids(self.config, context)
        times = []
        with torch.inference_mode():
            hidden, state = self._fill(ids, context + steps)
            for i in range(steps):
                start = self.clock()
                token = self.model.logits(hidden[-1:]).argmax(-1)
                hidden = self.model(token, Layout((context + i,), (1,)), state).hidden_Td
                times.append(self.clock() - start)
        return times

    def _fill(self, ids: Tensor, max_tokens: int) -> tuple[Tensor, State]:
        state, at = State(self.config, max_tokens), 0
        for part in ids.split(state.chunk):
            hidden = self.model(part, Layout((at,), (len(part),)), state).hidden_Td
            at += len(part)
        return hidden, state

    def train_flops(self, inputs: Tensor) -> float:
        """FLOPs of a training step that must be done: three times the forward ops' own cost, nothing repeated."""
        recorder, ops = Recorder(), self.model.ops
        self.model.ops = RecordedOps(ops, recorder, Kind.MEASURED)
        with torch.no_grad():
            hidden = self.model(inputs.flatten(), Layout.whole([inputs.shape[1]] * inputs.shape[0])).hidden_Td
            self.model.ops.cross_entropy(hidden, self.model.head.weight, inputs.flatten())
        self.model.ops = ops
        return 3.0 * sum(event.flops for event in recorder.events)


class Peer:
    """transformers' model of the family, fp32, as it comes."""

    name = "transformers"
    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(self, model: Transformer) -> None:
        from transformers import AutoModelForCausalLM

        self.config = model.config
        with tempfile.TemporaryDirectory() as folder:
            place = f"{folder}/ours"
            save_checkpoint(model, model.config, place, format="fp32")
            if model.config.family == "v4":  # of the others, the publishers' names are transformers'
                convert(place, place := f"{folder}/theirs", to="transformers")
            self.model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def train_step(self, inputs: Tensor, targets: Tensor) -> float:
        """The same step on the same tokens."""
        start = self.clock()
        logits = self.model(input_ids=inputs, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.clock() - start

    def prefill(self, ids: Tensor) -> float:
        """One pass over the ids that fills its cache; last token's logits."""
        start = self.clock()
        with torch.inference_mode():
            self.model(input_ids=ids[None], use_cache=True, logits_to_keep=1)
        return self.clock() - start

    def decode(self, context: int, steps: int) -> list[float]:
        """Times of single-token steps after a real context."""
        times = []
        with torch.inference_mode():
            out: Any = self.model(input_ids=random_ids(self.config, context)[None], use_cache=True, logits_to_keep=1)
            for _ in range(steps):
                start = self.clock()
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                out = self.model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
                times.append(self.clock() - start)
        return times


def random_ids(config: ModelConfig, count: int) -> Tensor:
    """Return token ids drawn from a fixed seed: speed does not depend on what they say."""
    return torch.randint(0, config.vocab_size, (count,), generator=torch.Generator().manual_seed(1))
