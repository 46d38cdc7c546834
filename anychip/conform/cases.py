"""The golden vectors that ship: token sequences of real text with the reference's log-probabilities, and their file.

One case is one way of running a text: whole, in chunks with a cache, packed with others, or through the MTP block.
Of every case some positions are kept; at each, the 20 likeliest tokens and the text's own next token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import BundleError
from ..model import Layout, State, Transformer

FORMAT, VERSION = "anychip-conform", "1"
TOP = 20
KINDS = {"whole": "logits", "chunked": "chunked", "packed": "packed", "mtp": "mtp"}  # kind -> a user's function


@dataclass(frozen=True)
class Case:
    """One way of running a text.

    `pieces` are token ids: of the one sequence (whole, mtp), of its chunks, or of each packed sample. `positions` [P]
    are rows of the result over all tokens; `ids` [P, 21] are the 20 likeliest tokens there, likeliest first, and the
    text's next; `logprobs` [P, 21] their natural logarithms of probability and `logsumexp` [P] that of the logits.
    """

    name: str
    part: str
    kind: str
    pieces: tuple[tuple[int, ...], ...]
    positions: Tensor
    ids: Tensor
    logprobs: Tensor
    logsumexp: Tensor

    @property
    def tokens(self) -> tuple[int, ...]:
        """All token ids, one piece after the other."""
        return tuple(token for piece in self.pieces for token in piece)


@dataclass(frozen=True)
class Suite:
    """The cases of one weight set, and the sha256 of its weights."""

    weights: str
    digest: str
    cases: tuple[Case, ...]


def shipped(weights: str) -> Suite:
    """Return the golden vectors that installed with anychip for a weight set."""
    return read(Path(str(files("anychip"))) / "conform" / "golden.safetensors", weights)


def read(path: Path, weights: str) -> Suite:
    """Read a file that `write` made. Raises BundleError where it is not one, or of another version."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            _check(path, about)
            described = json.loads(about["cases"])[weights]
            cases = tuple(_case(row, {name: file.get_tensor(f"{weights}/{row['name']}/{name}")
                                      for name in ("positions", "ids", "logprobs", "logsumexp")}) for row in described)
            return Suite(weights, json.loads(about["digests"])[weights], cases)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise BundleError(f"{path} does not hold golden vectors: {error}; install anychip again") from error


def write(path: Path, suites: list[Suite]) -> None:
    """Write the suites as one safetensors file: small integers as int16, values in fp32."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    described: dict[str, list[dict[str, object]]] = {}
    for suite in suites:
        described[suite.weights] = [{"name": c.name, "part": c.part, "kind": c.kind, "pieces": c.pieces}
                                    for c in suite.cases]
        for case in suite.cases:
            start = f"{suite.weights}/{case.name}"
            tensors |= {f"{start}/positions": case.positions.short(), f"{start}/ids": case.ids.short(),
                        f"{start}/logprobs": case.logprobs.float(), f"{start}/logsumexp": case.logsumexp.float()}
    about = {"format": FORMAT, "version": VERSION, "cases": json.dumps(described, separators=(",", ":")),
             "digests": json.dumps({suite.weights: suite.digest for suite in suites})}
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata=about)


def _check(path: Path, about: dict[str, str]) -> None:
    if about.get("format") != FORMAT:
        raise BundleError(f"{path} is no file of golden vectors (its format is {about.get('format')!r})")
    if about.get("version") != VERSION:
        raise BundleError(f"{path} is of version {about.get('version')}; this anychip reads {VERSION}")


def _case(row: dict[str, object], tensors: dict[str, Tensor]) -> Case:
    pieces = tuple(tuple(piece) for piece in row["pieces"])  # type: ignore[attr-defined]
    return Case(str(row["name"]), str(row["part"]), str(row["kind"]), pieces, tensors["positions"].long(),
                tensors["ids"].long(), tensors["logprobs"].double(), tensors["logsumexp"].double())


@torch.no_grad()
def run(model: Transformer, kind: str, pieces: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return a model's logits [T, V] for one way of running a text; of `mtp` one row fewer than tokens."""
    ids = torch.tensor([token for piece in pieces for token in piece])
    if kind == "chunked":
        state, parts, done = State(model.config, len(ids), chunk=max(map(len, pieces))), [], 0
        for piece in pieces:
            parts.append(model(torch.tensor(piece), Layout((done,), (len(piece),)), state).hidden_Td)
            done += len(piece)
        return model.logits(torch.cat(parts))
    if kind == "mtp":
        layout = Layout.whole([len(ids) - 1])
        return model.logits(model.predict_next(model(ids[:-1], layout).streams_Tnd, ids[1:], layout))
    return model.logits(model(ids, Layout.whole([len(piece) for piece in pieces])).hidden_Td)


def picked(logits_TV: Tensor, case: Case) -> Tensor:
    """Return the log-probabilities [P, 21] of the case's tokens at its positions, from logits or log-probabilities."""
    rows = logits_TV[case.positions].double().log_softmax(-1)
    return rows.gather(1, case.ids)
