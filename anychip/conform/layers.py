"""Golden vectors of single layers: an input that any machine makes alike, and the reference's output of each kind.

An input is not stored: its streams are the embeddings of the tokens, each stream with a factor of its own, plus whole
numbers drawn by a linear rule and scaled by a power of two, so they are the same bit for bit everywhere. An error
in a layer then shows alone, with nothing before it and nothing after.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import BundleError
from ..gap.op_level import relative
from ..gap.proof import EXPLAINED
from ..model import Layout, Transformer
from .judge import Row
from .weights import WeightSet

FORMAT, VERSION = "anychip-conform-layers", "1"
ASKS = "layer(index, streams, ids) -> [T, n, d]: one layer's new residual streams, of one whole sequence"
KINDS = {0: "window only", 4: "CSA with its indexer", 128: "HCA"}
PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_CALLS = 20  # op calls of a layer, whose roundings add up as independent ones


@dataclass(frozen=True)
class LayerCase:
    """One layer on one sequence: its `index`, the token ids, and the output's rows [P, n, d] at `positions` [P]."""

    index: int
    kind: str
    ids: tuple[int, ...]
    positions: Tensor
    output: Tensor


def layer_input(embed_Vd: Tensor, ids: Sequence[int], num_streams: int) -> Tensor:
    """Return the residual streams [T, n, d], fp32, that a layer is given: the same bit for bit on every machine."""
    x_Td = embed_Vd.float()[torch.tensor(ids)]
    steps = torch.arange(num_streams * x_Td.numel()).view(len(ids), num_streams, -1)
    drawn = (steps * 48271 + 11) % 2047 - 1023  # whole numbers from -1023 to 1023
    factor = 2.0 ** (torch.arange(num_streams) % 3 - 1)
    return x_Td[:, None] * factor[:, None] + drawn * 2.0**-15


def run_layer(model: Transformer, index: int, streams_Tnd: Tensor, ids: Sequence[int]) -> Tensor:
    """Return layer `index` of a model on one whole sequence, [T, n, d]."""
    block: Any = model.layers[index]
    with torch.no_grad():
        out: Tensor = block(streams_Tnd, torch.tensor(ids), model._plan(Layout.whole([len(ids)]), None), model.ops)
    return out


def shipped_layers(chosen: WeightSet) -> tuple[LayerCase, ...]:
    """Return the layer vectors that installed with anychip for a weight set.

    Raises BundleError where the file is damaged, of another version or made with other weights.
    """
    path = Path(str(files("anychip"))) / "conform" / "golden_layers.safetensors"
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if (about.get("format"), about.get("version")) != (FORMAT, VERSION):
                raise BundleError(f"{path} holds no layer vectors of version {VERSION}; install anychip again")
            if json.loads(about["digests"])[chosen.name] != chosen.digest:
                raise BundleError(f"the layer vectors of {chosen.name} were made with other weights: run "
                                  "tools/make_conform.py, or install anychip again")
            parts = ("positions", "output")
            return tuple(LayerCase(row["index"], row["kind"], tuple(row["ids"]),
                                   *(file.get_tensor(f"{chosen.name}/{row['index']}/{part}") for part in parts))
                         for row in json.loads(about["cases"])[chosen.name])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise BundleError(f"{path} does not hold layer vectors: {error}; install anychip again") from error


def write_layers(path: Path, sets: Sequence[tuple[WeightSet, Sequence[LayerCase]]]) -> None:
    """Write the vectors of all weight sets as one safetensors file."""
    from safetensors.torch import save_file

    tensors = {f"{chosen.name}/{case.index}/{part}": getattr(case, part).contiguous() for chosen, cases in sets
               for case in cases for part in ("positions", "output")}
    rows = {chosen.name: [{"index": case.index, "kind": case.kind, "ids": case.ids} for case in cases]
            for chosen, cases in sets}
    save_file(tensors, path, metadata={
        "format": FORMAT, "version": VERSION, "cases": json.dumps(rows, separators=(",", ":")),
        "digests": json.dumps({chosen.name: chosen.digest for chosen, _ in sets})})


def judge_layers(layer: Callable[..., Any], chosen: WeightSet, dtype: str,
                 tell: Callable[[str], None] = lambda case: None) -> list[Row]:
    """Return a verdict on each kind of layer of a user's `layer` function.

    The error is of the rows at the golden positions, relative rms; allowed is what the format explains of one op times
    the root of a layer's op calls.
    """
    allowed = EXPLAINED[PRECISIONS[dtype]] * _CALLS**0.5
    embed, rows = chosen.weights["embed.weight"], []
    for case in shipped_layers(chosen):
        name = f"layer {case.index}, {len(case.ids)} tokens"
        tell(name)
        streams = layer_input(embed, case.ids, chosen.config.num_streams)
        part, seen = f"one layer: {case.kind}", len(case.positions)
        try:
            given = torch.as_tensor(layer(case.index, streams, list(case.ids))).detach().cpu()
        except Exception as error:  # whatever a user's function raises is its verdict
            rows.append(Row(chosen.name, part, name, "FAIL", note=f"layer(...) raised {type(error).__name__}: {error}"))
            continue
        if given.shape != streams.shape:
            rows.append(Row(chosen.name, part, name, "FAIL", note=f"layer(...) returned shape {tuple(given.shape)}; "
                            f"{list(streams.shape)} is wanted"))
            continue
        size = relative(given[case.positions], case.output)
        rows.append(Row(chosen.name, part, name, "pass" if size <= allowed else "FAIL", size, allowed,
                        positions=seen, unit="relative rms"))
    return rows
