"""Numerics of a chip: each op fed the reference's inputs, each layer of the chip's own run, and the model's output.

The reference is the plain-torch fp32 definition, run on this machine's processor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..chips import Chip
from ..model import Layout, Transformer
from ..ops.recorded import RecordedOps
from ..ops.trees import flat_tensors, map_tensors
from ..record import Event, Recorder
from .bundle import Bundle
from .subject import Subject

SAMPLE = 2048  # values kept of each op's and layer's output, evenly spaced
DISCRETE = frozenset({"index_topk"})  # ops whose result is a choice: compared by overlap


def record_ops(subject: Subject, reference: Chip, chip: Chip, bundle: Bundle) -> None:
    """Run the reference over the probe; hand each op call's inputs to the chip too; keep error and sample."""
    rows: list[dict[str, Any]] = []
    ops = chip.ops()

    def watch(event: Event, arguments: tuple[object, ...], expected: object) -> None:
        *positional, named = map_tensors(arguments, lambda t: t.to(chip.device))
        got = map_tensors(getattr(ops, event.op)(*positional, **named), lambda t: t.cpu())
        bundle.tensors[f"ops/{len(rows)}"] = sample(_values(event.op, got))
        error = difference(event.op, _values(event.op, got), _values(event.op, expected))
        rows.append({"op": event.op, "layer": event.layer, "error": error})

    _run(subject, reference, watch)
    bundle.tables["ops"] = rows


def record_layers(subject: Subject, chip: Chip, bundle: Bundle) -> None:
    """Keep samples of the residual streams after each layer of the chip's own run over the probe, and count its ops."""
    names: list[str] = []
    calls = 0

    def watch(event: Event, arguments: tuple[object, ...], result: object) -> None:
        nonlocal calls
        calls += 1
        if event.op == "embed" or (event.op in ("hc_post", "add") and event.layer.endswith(".ffn")):
            assert isinstance(result, Tensor)
            names.append(event.layer.removesuffix(".ffn"))
            bundle.tensors[f"layers/{names[-1]}"] = sample(result.cpu().flatten())

    _run(subject, chip, watch)
    bundle.tables["layers"], bundle.tables["num_calls"] = names, calls


def record_model(subject: Subject, chip: Chip, bundle: Bundle, at_once: int | None = None) -> None:
    """Teacher-forced run over real text: each token's loss and best guess, and full logits at some positions.

    `at_once` sequences share a pass (None: all of them); it changes the batch's shape, not what is computed.
    """
    settings = subject.settings
    ids = subject.ids[: settings.text_tokens + 1]
    inputs, targets = ids[:-1], ids[1:]
    lengths = [len(part) for part in inputs.split(settings.text_length)]
    model = subject.model(chip)
    at_once = at_once or len(lengths)
    batches = [lengths[i : i + at_once] for i in range(0, len(lengths), at_once)]
    with torch.no_grad():
        hidden_Td = torch.cat([model(ids.to(chip.device), Layout.whole(batch)).hidden_Td
                               for ids, batch in zip(inputs.split([sum(b) for b in batches]), batches, strict=True)])
        parts = [model.logits(part).cpu().log_softmax(-1) for part in hidden_Td.split(settings.text_length)]
    logprob_TV = torch.cat(parts)
    kept = torch.linspace(0, len(inputs) - 1, min(settings.logit_positions, len(inputs))).long()
    bundle.tensors["model/nll"] = -logprob_TV.gather(1, targets[:, None])[:, 0]
    bundle.tensors["model/top1"] = logprob_TV.argmax(-1).int()
    bundle.tensors["model/logprobs"] = logprob_TV[kept]
    bundle.tensors["model/positions"] = kept.int()


def _run(subject: Subject, chip: Chip, watch: Any) -> None:
    recorder = Recorder(watch=watch)
    model: Transformer = subject.model(chip)
    model.ops = RecordedOps(chip.ops(), recorder, chip.numerics)
    probe = subject.probe().to(chip.device)
    with torch.no_grad():
        hidden = model(probe, Layout.whole([len(probe)]))
        model.logits(hidden.hidden_Td)


def _values(op: str, result: Any) -> Tensor:
    """The part of an op's result that is compared: all floats in one row, or the choice as it is."""
    if op in DISCRETE:
        return flat_tensors(result)[0]
    if op == "route":  # ids beside weights, [T, 2K]: weights are compared where the choice is the same
        return torch.cat([t.float() for t in flat_tensors(result)], -1)
    return torch.cat([t.flatten().float() for t in flat_tensors(result) if t.is_floating_point()])


def sample(values: Tensor) -> Tensor:
    """Return up to SAMPLE evenly spaced values; of a choice [T, K] or a routing [T, 2K] the whole."""
    if not values.is_floating_point() or values.dim() == 2:
        return values
    flat = values.flatten()
    if flat.numel() <= SAMPLE:
        return flat.float().clone()
    return flat[torch.linspace(0, flat.numel() - 1, SAMPLE).long()].float()


def difference(op: str, a: Tensor, b: Tensor) -> float:
    """Return rms(a - b) / rms(b), or for a choice the share of b's rows that a does not have.

    Of a routing: of the weights, over the tokens whose experts are the same on both (a near tie may go either way);
    where that is less than half of them, the share that differs.
    """
    if op in DISCRETE:
        wanted = b >= 0
        found = (a[:, :, None] == b[:, None, :]).any(1) & wanted
        return 1.0 - float(found.sum() / wanted.sum().clamp_min(1))
    if op == "route":
        same = (a[:, : a.shape[1] // 2] == b[:, : b.shape[1] // 2]).all(1)
        if same.double().mean() < 0.5:
            return 1.0 - float(same.double().mean())
        a, b = (x[same, x.shape[1] // 2 :] for x in (a, b))
    a64, b64 = a.double(), b.double()
    scale = b64.square().mean().sqrt()
    return float((a64 - b64).square().mean().sqrt() / scale) if scale > 0 else float((a64 - b64).abs().max())


