"""Make the golden vectors of `anychip conform` (`anychip/conform/golden.safetensors`).

    python tools/make_conform.py

Texts are pieces of the shipped corpus' validation split. The values are the plain-torch definition's in fp32. A
position is kept only where the same definition in float64 gives the same log-probabilities to SURE: where an expert
or a compressed entry is chosen by less than fp32's rounding, no implementation can be held to the choice. Chunks and
packed samples are given the values of the whole pass of each text, not those of the reference's own chunks.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from anychip.conform.cases import TOP, Case, Suite, run, write
from anychip.conform.layers import KINDS as LAYER_KINDS
from anychip.conform.layers import LayerCase, layer_input, run_layer, write_layers
from anychip.conform.weights import SETS, WeightSet, weight_set
from anychip.gap.golden import InDouble
from anychip.model import Transformer
from anychip.text import corpus

OUT = "anychip/conform/golden.safetensors"
OUT_LAYERS = "anychip/conform/golden_layers.safetensors"
LAYER_TOKENS, LAYER_SURE = 270, 2e-6  # relative rms of a row between fp32 and float64
LAYER_POSITIONS = (0, 2, 3, 126, 127, 128, 254, 255, 269)
SURE = 5e-5  # nats: the largest of the 21 values' differences between fp32 and float64
POSITIONS = 24  # of a case, at most
SHORT, EDGE, LIMIT, LONG = "short text", "window and HCA edge (128)", "indexer limit (256)", "long text"
LENGTHS = {1: SHORT, 3: SHORT, 4: SHORT, 5: SHORT, 127: EDGE, 128: EDGE, 129: EDGE, 255: LIMIT, 256: LIMIT,
           257: LIMIT, 320: LONG, 1000: LONG}
STRIDE = 1200  # tokens between the beginnings of texts
CHUNKS = {"chunks across the edges": (3, 1, 122, 2, 129, 30, 11, 1, 1, 1), "decode": (130, *(1,) * 14),
          "long chunks": (300, 257, 1, 1, 1, 140)}
PACKED = (5, 131, 266)
MTP = (6, 140, 330)
EDGES = (0, 2, 3, 4, 7, 126, 127, 128, 130, 131, 254, 255, 256, 257, 258, 259, 260, 300, 383, 384, 511, 512)


def main() -> None:
    """Make both weight sets' cases and write the file."""
    suites = []
    for name in SETS:
        chosen = weight_set(name)
        suites.append(Suite(name, chosen.digest, tuple(_cases(chosen))))
        for case in suites[-1].cases:
            print(f"{name:9} {case.name:28} {len(case.tokens):5} tokens, {len(case.positions):3} positions")
    write(OUT, suites)  # type: ignore[arg-type]
    write_layers(Path(OUT_LAYERS), [(weight_set(name), _layers(weight_set(name))) for name in SETS])


def _layers(chosen: WeightSet) -> list[LayerCase]:
    """The first layer of each kind, on a text that is longer than the indexer's limit."""
    ids = tuple(chosen.tokenizer.encode(corpus.load("validation"))[:LAYER_TOKENS])
    model, double = chosen.model(), chosen.model().double()
    streams = layer_input(chosen.weights["embed.weight"], ids, chosen.config.hc_mult)
    found = []
    for ratio, kind in LAYER_KINDS.items():
        index = chosen.config.compress_ratios.index(ratio)
        output = run_layer(model, index, streams, ids)
        with InDouble():
            exact = run_layer(double, index, streams.double(), ids)
        error = ((output - exact).square().mean((1, 2)) / exact.square().mean((1, 2))).sqrt()
        kept = torch.tensor([p for p in LAYER_POSITIONS if error[p] <= LAYER_SURE])
        print(f"{chosen.name:9} layer {index} ({kind}): {len(kept)} positions, off by {float(error[kept].max()):.1e}")
        found.append(LayerCase(index, kind, ids, kept, output[kept].float()))
    return found


def _cases(chosen: WeightSet) -> list[Case]:
    ids = chosen.tokenizer.encode(corpus.load("validation"))
    maker, texts = _Maker(chosen), iter(range(0, len(ids), STRIDE))
    take = lambda length: tuple(ids[(at := next(texts)) : at + length + 1])  # noqa: E731 (one more: its next token)
    found = [maker.case(f"text of {n}", part, "whole", (take(n),)) for n, part in LENGTHS.items()]
    for name, lengths in CHUNKS.items():
        text, at = take(sum(lengths)), 0
        pieces = [text[(at := at + n) - n : at] for n in lengths]
        found.append(maker.case(name, "chunked prefill and decode", "chunked", (*pieces[:-1], pieces[-1] + text[-1:])))
    found.append(maker.case("packed samples", "packed samples", "packed", tuple(take(n) for n in PACKED)))
    return found + [maker.case(f"MTP, text of {n}", "MTP", "mtp", (take(n),)) for n in MTP]


class _Maker:
    def __init__(self, chosen: WeightSet) -> None:
        self._model, self._double = chosen.model(), chosen.model().double()

    def case(self, name: str, part: str, kind: str, pieces: tuple[tuple[int, ...], ...]) -> Case:
        """Make a case of texts that carry one more token than is run (packed: each of them)."""
        each = pieces if kind == "packed" else (tuple(token for piece in pieces for token in piece),)
        logits = torch.cat([self._logits(self._model, kind, text[:-1]) for text in each])
        with InDouble():
            exact = torch.cat([self._logits(self._double, kind, text[:-1]) for text in each])
        shift = 2 if kind == "mtp" else 1
        following = torch.cat([torch.tensor(text[shift:]) for text in each])
        given = tuple(text[:-1] for text in each) if kind == "packed" else (*pieces[:-1], pieces[-1][:-1])
        return _case(name, part, kind, given, (logits, exact, following))

    def _logits(self, model: Transformer, kind: str, text: tuple[int, ...]) -> Tensor:
        return run(model, "mtp" if kind == "mtp" else "whole", (text,))


def _case(name: str, part: str, kind: str, given: tuple[tuple[int, ...], ...],
          values: tuple[Tensor, Tensor, Tensor]) -> Case:
    logits, exact, following = values
    logprobs = logits.double().log_softmax(-1)
    ids = torch.cat((logprobs.topk(TOP, -1).indices, following[: len(logits), None]), 1)
    sure = (logprobs - exact.log_softmax(-1)).gather(1, ids).abs().amax(-1) <= SURE
    kept = _positions(sure, kind, given)
    return Case(name, part, kind, given, kept, ids[kept], logprobs.gather(1, ids)[kept],
                logits.double().logsumexp(-1)[kept])


def _positions(sure: Tensor, kind: str, given: tuple[tuple[int, ...], ...]) -> Tensor:
    """Edges first, then the last rows of the pieces, then evenly spread ones; only where fp32 is sure."""
    length = len(sure)
    borders = torch.tensor([len(piece) for piece in given]).cumsum(0).tolist() if len(given) > 1 else []
    wished = [length - 1, *(b + k for b in borders for k in (-1, 0)), *EDGES, *range(0, length, max(1, length // 24))]
    kept = list(dict.fromkeys(p for p in wished if 0 <= p < length and sure[p]))
    return torch.tensor(sorted(kept[:POSITIONS]))


if __name__ == "__main__":
    main()
