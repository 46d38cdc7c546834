"""Time and memory of the published model on a chip: its op calls from the meta device, timed by a model of time.

Simulated: one chip, all weights in its memory, no communication, no optimizer, one kernel a call and no overlap.
Backward counts twice the forward's FLOPs and bytes, op by op.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch

from ..chips import Chip
from ..chips.facts import ChipFacts
from ..config import ModelConfig, load_config
from ..config.specs import Mixture
from ..model import Layout, State, count_parameters
from ..ops.recorded import RecordedOps
from ..plan.cost import price_of
from ..record import Event, Kind, Recorder
from .bundle import Bundle
from .meta_calls import TRAIN_LENGTH, TRAIN_SEQUENCES, Calls, decode_calls, prefill_calls, train_calls
from .shortfall import grouped
from .subject import Subject

DECODE_CONTEXTS = (4096, 131072)  # tokens before the decoded one


def decode_contexts(config: ModelConfig) -> list[int]:
    """Return the contexts at which a model's decode is timed; of a shorter one its largest power of two instead."""
    most = 1 << (config.max_position_embeddings.bit_length() - 1)
    return sorted({min(context, most if most < config.max_position_embeddings else most // 2)
                   for context in DECODE_CONTEXTS})


def record_speed(published: str, subject: Subject, chip: Chip, bundle: Bundle) -> None:
    """Put simulated train-step and decode times of the published model, by op and shape, and memory needs into the
    bundle; on a real chip also the measured times of the subject's own ops, in one pass and in a decoded token."""
    config = load_config(published)
    tables: dict[str, Any] = {
        **dict.fromkeys(("facts", "train", "prefill", "measured", "own", "price")), "model": published, "decode": [],
        "memory": memory_needs(config, chip)}
    limits = chip.limits()
    if limits is not None:
        calls = _published_calls(published)
        train, *decode = [chip.simulate(*one) for one in calls]
        forward = [e for e in train if not e.op.endswith(" backward") and e.op != "cross_entropy"]
        tables["train"] = _summary(train, TRAIN_SEQUENCES * TRAIN_LENGTH, limits, chip.precision)
        tables["prefill"] = {"tokens": TRAIN_SEQUENCES * TRAIN_LENGTH, "time_s": sum(e.time_s or 0.0 for e in forward)}
        tables["decode"] = [{"context": context, **_summary(events, 1, limits, chip.precision)}
                            for context, events in zip(decode_contexts(config), decode, strict=True)]
        price = price_of(limits)
        tables["own"], tables["price"] = _own_times(subject, chip), None if price is None else asdict(price)
        tables["facts"] = {"name": limits.name, "device": limits.device, "guesses": list(limits.guesses),
                           "ops": chip.sources(), "times": _sources([*train, *(e for row in decode for e in row)])}
        if chip.timing is Kind.MEASURED:
            tables["measured"] = {name: _summary(events, tokens, limits, chip.precision)
                                  for name, events, tokens in _measured(subject, chip)}
    bundle.tables["speed"] = tables


@lru_cache(maxsize=4)
def _published_calls(published: str) -> tuple[Calls, ...]:
    """The calls of a training step and of the decode steps: the same whatever the chip."""
    config = load_config(published)
    return train_calls(config), *(decode_calls(config, context) for context in decode_contexts(config))


def _own_times(subject: Subject, chip: Chip) -> dict[str, Any]:
    """Simulated seconds of the subject's own prefill, decoded token and training step, at the sizes that are timed
    where the chip is here (see `matrix.timing`)."""
    settings, config = subject.settings, subject.config
    steps = {"prefill": (prefill_calls(config, settings.probe_tokens), settings.probe_tokens),
             "decode": (decode_calls(config, settings.probe_tokens), 1),
             "training": (train_calls(config, settings.train_batch, settings.train_length),
                          settings.train_batch * settings.train_length)}
    return {name: {"tokens": tokens, "time_s": sum(event.time_s or 0.0 for event in chip.simulate(*calls))}
            for name, (calls, tokens) in steps.items()}


def _measured(subject: Subject, chip: Chip) -> Iterator[tuple[str, list[Event], int]]:
    """One pass over the probe and one decoded token after it, op by op, each waited for; the run before warms up."""
    model, probe = subject.model(chip), subject.probe().to(chip.device)
    plain = model.ops
    for name in ("warm-up", "pass", "decode"):
        recorder = Recorder()
        state = State(model.config, len(probe) + 1, chunk=len(probe), device=chip.device)
        with torch.no_grad():
            model.ops = RecordedOps(plain, recorder, Kind.MEASURED, chip.clock)
            model.logits(model(probe, Layout.whole([len(probe)]), state).hidden_Td)
            if name == "decode":
                recorder.events.clear()
                model.logits(model(probe[:1], Layout((len(probe),), (1,)), state).hidden_Td)
        if name != "warm-up":
            yield name, recorder.events, 1 if name == "decode" else len(probe)


def _sources(events: Sequence[Event]) -> dict[str, str]:
    """What each op's simulated times come from: `kernels`, `roofline` (and why), or both."""
    found: dict[str, set[str]] = defaultdict(set)
    for event in events:
        found[event.op].add(event.source or "roofline")
    return {op: " and ".join(sorted(sources)) for op, sources in found.items()}


def _summary(events: Sequence[Event], tokens: int, facts: ChipFacts, precision: str) -> dict[str, Any]:
    """Total time, and the (op, shapes) groups with their share and what is possible, costliest first."""
    groups = grouped(events, facts, precision)
    return {"time_s": sum(g["time_s"] for g in groups), "tokens": tokens, "calls": len(events),
            "flops": sum(g["flops"] for g in groups), "bytes": sum(g["bytes"] for g in groups), "groups": groups}


def memory_needs(config: ModelConfig, chip: Chip) -> dict[str, Any]:
    """Bytes of weights and of the cache at some contexts, as the chip stores them, against its memory."""
    counted = count_parameters(config)
    width = {"fp32": 4.0, "tf32": 4.0, "hf32": 4.0, "fp8": 1.0}.get(chip.precision, 2.0)
    if chip.precision == "fp4":
        mixtures = [ffn for i in range(config.num_hidden_layers) if isinstance(ffn := config.layer(i).ffn, Mixture)]
        routed = sum(3 * config.hidden_size * ffn.width * ffn.num_experts for ffn in mixtures)
        weights = routed * (0.5 + 1 / 32) + (counted.total - routed) * 1.0
    else:
        weights = counted.total * width
    dtype = torch.float32 if width == 4.0 else torch.bfloat16
    caches = {str(context): State(config, context, chunk=1, device="meta", dtype=dtype).nbytes()
              for context in sorted({*decode_contexts(config), config.max_position_embeddings})}
    capacity = _capacity(chip.limits())
    return {"weights_bytes": weights, "cache_bytes": caches, "chip_bytes": capacity,
            "chips_for_weights": None if capacity is None else int(-(-weights // capacity))}


def _capacity(facts: ChipFacts | None) -> int | None:
    return None if facts is None else facts.memory_bytes
