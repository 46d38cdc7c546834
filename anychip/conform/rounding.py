"""Where a transformers model rounds when it runs in bf16: every line that does, how much, and what each part costs.

First the bf16 model runs one text, and every torch call in transformers' V4 file is done again on the same inputs in
fp32: the difference is what this line rounds. Then the fp32 model runs the text once for each part with this part's
lines rounded to bf16 and all else in fp32: what the log-probabilities move by then is the part's own doing.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..ops.trees import map_tensors
from .cases import Case, picked
from .peer import opened
from .weights import WeightSet

_FILE = "modeling_deepseek_v4.py"
_WEIGHTS = "weights"
# Class or function of transformers' file (without "DeepseekV4") -> part.
_PARTS = {"RotaryEmbedding": "RoPE tables", "apply_rotary_pos_emb": "RoPE rotation", "rotate_half": "RoPE rotation",
          "TopKRouter": "router", "HashRouter": "router", "HyperConnection": "mHC", "DecoderLayer": "mHC",
          "HyperHead": "mHC", "HCACompressor": "compressor", "CSACompressor": "compressor", "HCACache": "compressor",
          "CSACache": "compressor", "Indexer": "indexer", "IndexerScorer": "indexer", "Attention": "attention",
          "eager_attention_forward": "attention", "GroupedLinear": "attention", "repeat_kv": "attention",
          "Experts": "experts", "MLP": "experts", "SparseMoeBlock": "experts", "RMSNorm": "norms",
          "UnweightedRMSNorm": "norms"}
_REST = "embedding and head"


@dataclass(frozen=True)
class Rounding:
    """One line that rounds: its part, place and source, how often it ran, and its largest relative rms rounding.

    On a part's first line `effect` is the mean movement of the log-probabilities (nats) when only this part rounds,
    `experts` and `entries` the shares of tokens whose routed experts, or chosen entries, are then others.
    """

    part: str
    where: str
    count: int
    size: float
    effect: float | None = None
    experts: float | None = None
    entries: float | None = None


@dataclass(frozen=True)
class _Line:
    owner: str
    number: int
    text: str

    @property
    def part(self) -> str:
        return _PARTS.get(self.owner.partition(".")[0], _REST)


@torch.no_grad()
def roundings(chosen: WeightSet, case: Case) -> list[Rounding]:
    """Return every line that rounds on the case's text, the part that moves the result most first.

    Raises NotSupported as `peer.version` does.
    """
    ids = torch.tensor([case.tokens])
    with opened(chosen, "bfloat16") as model:
        watch = _Watch()
        with watch:
            model(ids)
        rounded = {name for name, p in model.named_parameters() if p.dtype is torch.bfloat16}
    with opened(chosen, "float32") as model:
        exact = _choices(model, ids, case)
        effects = {part: _Effect.of(_choices(model, ids, case, _Round(lines)), exact)
                   for part, lines in _by_part(watch.sizes).items()}
        stored = [_store(parameter) for name, parameter in model.named_parameters() if name in rounded]
        effects[_WEIGHTS] = _Effect.of(_choices(model, ids, case), exact)
    return _rows(watch, effects, stored)


def _store(parameter: Tensor) -> float:
    """Round a parameter to bf16 in place; return the relative rms of what that changed."""
    before = parameter.clone()
    return _relative(parameter.copy_(parameter.bfloat16()), before)


def _rows(watch: _Watch, effects: dict[str, _Effect], stored: list[float]) -> list[Rounding]:
    rows = [Rounding(_WEIGHTS, f"{len(stored)} tensors stored in bf16", len(stored), max(stored),
                     **vars(effects[_WEIGHTS]))]
    for part, lines in _by_part(watch.sizes).items():
        ordered = sorted(lines, key=lambda line: -watch.sizes[line])
        rows += [Rounding(part, f"{line.owner}, line {line.number}: {line.text}", watch.counts[line],
                          watch.sizes[line], **(vars(effects[part]) if line is ordered[0] else {})) for line in ordered]
    return sorted(rows, key=lambda row: (-effects[row.part].effect, row.part, -row.size))


def _by_part(lines: dict[_Line, float]) -> dict[str, set[_Line]]:
    found: dict[str, set[_Line]] = {}
    for line in lines:
        found.setdefault(line.part, set()).add(line)
    return found


@dataclass(frozen=True)
class _Effect:
    effect: float
    experts: float
    entries: float

    @classmethod
    def of(cls, got: _Run, wanted: _Run) -> _Effect:
        return cls(float((got.logprobs - wanted.logprobs).abs().mean()), _changed(got.experts, wanted.experts),
                   _changed(got.entries, wanted.entries))


@dataclass(frozen=True)
class _Run:
    logprobs: Tensor
    experts: list[Tensor]
    entries: list[Tensor]


def _changed(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Share of rows whose sets of choices differ."""
    other = [(a.sort(-1).values != b.sort(-1).values).any(-1).double().flatten()
             for a, b in zip(got, wanted, strict=True)]
    return float(torch.cat(other).mean()) if other else 0.0


def _choices(model: Any, ids: Tensor, case: Case, mode: TorchFunctionMode | None = None) -> _Run:
    """Run the model, within a mode, and keep the experts and entries that it chooses."""
    experts: list[Tensor] = []
    entries: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda _m, _i, out: experts.append(out[2]) if isinstance(out, tuple)
                                          else entries.append(out))
             for name, module in model.named_modules() if name.endswith((".mlp.gate", ".indexer"))]
    try:
        if mode is None:
            logits = model(ids).logits[0]
        else:
            with mode:
                logits = model(ids).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return _Run(picked(logits.float(), case), experts, entries)


def _line() -> _Line | None:
    """The line of transformers' V4 file that is running: the innermost one; None outside of it."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.endswith(_FILE):
        frame = frame.f_back
    if frame is None:
        return None
    owner = frame.f_code.co_name
    if "self" in frame.f_locals:
        owner = f"{type(frame.f_locals['self']).__name__.removeprefix('DeepseekV4')}.{owner}"
    return _Line(owner, frame.f_lineno, linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip())


class _Watch(TorchFunctionMode):
    """Does every call that gives bf16 again in fp32, and keeps the largest relative difference of each line."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[_Line, float] = {}
        self.counts: dict[_Line, int] = {}

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        named, line = kwargs or {}, _line()
        exact = None if line is None else _in_fp32(function, args, named)
        result = function(*args, **named)
        if line is not None and isinstance(exact, Tensor) and isinstance(result, Tensor) and (
                result.dtype is torch.bfloat16 and result.shape == exact.shape and result.numel()):
            size = _relative(result, exact)
            if size > 0:
                self.sizes[line] = max(size, self.sizes.get(line, 0.0))
                self.counts[line] = self.counts.get(line, 0) + 1
        return result


def _in_fp32(function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The call's result on fp32 copies of its inputs; of a cast, its input; None where there is none."""
    name = getattr(function, "__name__", "")
    first = args[0] if args and isinstance(args[0], Tensor) else None
    in_place = name.endswith("_") and not name.endswith("__")
    narrow = first is not None and first.dtype is torch.bfloat16
    if name in ("__get__", "__set__", "__setitem__") or (in_place and not narrow):
        return None
    if first is not None and name in ("to", "type", "bfloat16"):
        return first.float().clone()
    try:
        widen: Callable[[Tensor], Tensor] = lambda t: t.float() if t.dtype is torch.bfloat16 else t  # noqa: E731
        result = function(*map_tensors(args, widen), **map_tensors(named, widen))
    except (RuntimeError, TypeError):  # a call that wants equal types elsewhere: its own result is no rounding of ours
        return None
    return result if isinstance(result, Tensor) and result.dtype is torch.float32 else None


def _relative(got: Tensor, wanted: Tensor) -> float:
    finite = torch.isfinite(wanted) & (wanted.abs() < 1e30)
    a, b = got.float()[finite], wanted[finite]
    scale = b.square().mean().sqrt() if b.numel() else b.new_zeros(())
    return float((a - b).square().mean().sqrt() / scale) if scale > 0 else 0.0


class _Round(TorchFunctionMode):
    """Rounds the fp32 result of these lines to bf16."""

    def __init__(self, lines: set[_Line]) -> None:
        super().__init__()
        self._lines = lines

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if not isinstance(result, Tensor) or result.dtype is not torch.float32 or name in ("__get__", "float"):
            return result
        if _line() not in self._lines:
            return result
        return result.copy_(result.bfloat16()) if name.endswith("_") and not name.endswith("__") else (
            result.bfloat16().float())
