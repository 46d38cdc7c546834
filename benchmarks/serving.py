"""How fast does the engine serve, against transformers, against llama.cpp, and against itself?

`tiny` (25M parameters, 7.5M active), fp32, random weights and ids, greedy, two threads; sides in turn in one process
(llama.cpp in its own). Held to: one stream >= 8x transformers' generate; 32 streams >= 5x one stream's tokens/s; a
shared prefix of 2,048 tokens >= 10x faster to the first token when cached; a token at 64K context <= 1.5x of one at 1K;
drafts on the trained `nano` >= 1.3x one stream; llama.cpp: one stream at least equal, >= 2x in total at 8 streams and
at 16K.

    python -m benchmarks.serving [--only streams prefix long drafts llama llama_long]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from anychip.chips import open_chip
from anychip.config import load_config
from anychip.model import Transformer, initialize
from anychip.serve.engine import Engine
from anychip.serve.models import open_model
from anychip.serve.request import Request, Sampling
from anychip.serve.settings import EngineSettings
from anychip.text.tokenizer import open_tokenizer

from .rows import append, row
from .sides import Peer

ROUNDS = 3
Found = dict[tuple[str, str], list[float]]
_SEEDS = itertools.count(1)


def fresh_ids(count: int) -> tuple[int, ...]:
    """Return random ids that no prompt before has begun with."""
    drawn = torch.randint(0, 4096, (count,), generator=torch.Generator().manual_seed(next(_SEEDS)))
    return tuple(drawn.tolist())


def tiny() -> Transformer:
    """Return the model that all but the drafts are measured on."""
    model = Transformer(load_config("tiny"), open_chip("cpu").ops())
    initialize(model, 0)
    return model.eval()


def engine(model: Transformer, **fields: int | bool) -> Engine:
    settings = EngineSettings(**fields)  # type: ignore[arg-type]
    return Engine.start(model, open_chip("cpu"), open_tokenizer("anychip-4096"), settings)


def decode_rate(serving: Engine, streams: int, context: int, new: int) -> float:
    """Return tokens/s of all streams together from when all have their first token until all have ended."""
    rule = Sampling(temperature=0, max_tokens=new, ignore_eos=True)
    open_streams = [serving.submit(Request(fresh_ids(context), rule)) for _ in range(streams)]
    for stream in open_streams:
        next(stream)
    start, before = time.perf_counter(), serving.stats().new_tokens
    for stream in open_streams:
        for _ in stream:
            pass
    return (serving.stats().new_tokens - before) / (time.perf_counter() - start)


def peer_rate(peer: Peer, context: int, new: int) -> float:
    """Return tokens/s of transformers' generate after its first token."""
    ids = torch.tensor(fresh_ids(context))[None]

    def seconds(count: int) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            peer.model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return time.perf_counter() - start

    return (new - 1) / max(seconds(new) - seconds(1), 1e-9)


def streams(found: Found) -> None:
    """One stream, many streams, and transformers, in turn."""
    model = tiny()
    peer = Peer(model)
    with engine(model, prefix_cache=False) as serving:
        decode_rate(serving, 2, 64, 16)
        for _ in range(ROUNDS):
            found["1 stream", "anychip"].append(decode_rate(serving, 1, 128, 100))
            found["1 stream", "transformers"].append(peer_rate(peer, 128, 12))
            found["32 streams", "anychip"].append(decode_rate(serving, 32, 128, 64))
            found["1 stream", "anychip"].append(decode_rate(serving, 1, 128, 100))


def prefix(found: Found) -> None:
    """Seconds to the first token of 2,048 shared and 16 own tokens, cold and cached."""
    with engine(tiny()) as serving:
        decode_rate(serving, 1, 64, 4)
        for _ in range(ROUNDS):
            shared = fresh_ids(2048)
            for what in ("prefix cold", "prefix cached"):
                request = Request(shared + fresh_ids(16), Sampling(temperature=0, max_tokens=1))
                start = time.perf_counter()
                next(serving.submit(request))
                found[what, "anychip"].append(time.perf_counter() - start)


def long(found: Found) -> None:
    """Milliseconds a token at 1K and 64K, in turn; the contexts are real and come from the prefix cache."""
    with engine(tiny(), cache_tokens=70_000) as serving:
        prompts = {context: fresh_ids(context) for context in (1024, 65_408)}
        rule = Sampling(temperature=0, max_tokens=64, ignore_eos=True)
        for round_ in range(ROUNDS + 1):
            for context, ids in prompts.items():
                stream = serving.submit(Request(ids, rule))
                next(stream)
                start = time.perf_counter()
                count = sum(1 for _ in stream)
                if round_:
                    found[f"decode {context}", "anychip"].append(1e3 * (time.perf_counter() - start) / count)


def drafts(found: Found) -> None:
    """One stream of the trained `nano` on its own kind of text, with MTP drafts and without, in turn."""
    chip = open_chip("cpu")
    model, tokenizer = open_model("nano", chip)
    texts = ["And it came to pass in those days, that", "In the beginning", "The king said unto him,",
             "She was the youngest of the two daughters of"]
    for temperature in (0.0, 1.0):
        rates: dict[bool, list[float]] = defaultdict(list)
        for _ in range(ROUNDS):
            for speculate in (False, True):
                settings = EngineSettings(speculate=speculate, prefix_cache=False)
                with Engine.start(model, chip, tokenizer, settings) as serving:
                    prompts = [tuple(tokenizer.encode(text)) for text in texts]
                    rates[speculate].append(_text_rate(serving, prompts, temperature))
                    if speculate:
                        found[f"acceptance t={temperature:g}", "anychip"].append(serving.stats().acceptance or 0.0)
        for speculate, what in ((False, "without"), (True, "with")):
            found[f"nano {what} drafts t={temperature:g}", "anychip"] += rates[speculate]


def _text_rate(serving: Engine, prompts: list[tuple[int, ...]], temperature: float) -> float:
    rule = Sampling(temperature=temperature, max_tokens=100, ignore_eos=True)
    list(serving.submit(Request(prompts[0], Sampling(temperature=0, max_tokens=8))))
    start, count = time.perf_counter(), 0
    for ids in prompts:
        count += sum(1 for _ in serving.submit(Request(ids, rule)))
    return count / (time.perf_counter() - start)


def llama(found: Found) -> None:
    """Streams at 128 tokens beside llama.cpp on the same weights (its fp16 cache)."""
    _beside_llama_cpp(found, [(1, 128), (8, 128), (16, 128)], ROUNDS)


def llama_long(found: Found) -> None:
    """One stream at 16K beside llama.cpp, whose prefill of it takes most of the time: once."""
    _beside_llama_cpp(found, [(1, 16_384)], 1)


def _beside_llama_cpp(found: Found, cases: list[tuple[int, int]], rounds: int) -> None:
    from .gguf_export import export_gguf
    from .llama_cpp import available, parallel

    if reason := available():
        print(f"llama.cpp left out: {reason}", file=sys.stderr)
        return
    model = tiny()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny.gguf")
        export_gguf(path, model.config, model.state_dict().items())
        for _ in range(rounds):
            for count, context in cases:
                what = f"{count} x {context}"
                found[what, "llama.cpp"].append(parallel(path, count, context, steps=48))
                with engine(model, prefix_cache=False) as serving:
                    decode_rate(serving, 1, 32, 8)
                    found[what, "anychip"].append(decode_rate(serving, count, context, 64))


STAGES: dict[str, Callable[[Found], None]] = {
    "streams": streams, "prefix": prefix, "long": long, "drafts": drafts, "llama": llama,
    "llama_long": llama_long}


def ratios(found: Found) -> dict[str, float]:
    """Return what the benchmark is held to, from medians."""
    middle = {key: statistics.median(values) for key, values in found.items()}

    def over(a: tuple[str, str], b: tuple[str, str]) -> float | None:
        return middle[a] / middle[b] if a in middle and b in middle else None

    pairs = {
        "one_stream_over_transformers": over(("1 stream", "anychip"), ("1 stream", "transformers")),
        "32_streams_over_one": over(("32 streams", "anychip"), ("1 stream", "anychip")),
        "prefix_cold_over_cached": over(("prefix cold", "anychip"), ("prefix cached", "anychip")),
        "token_at_64k_over_1k": over(("decode 65408", "anychip"), ("decode 1024", "anychip")),
        **{f"drafts_t{t}": over((f"nano with drafts t={t}", "anychip"), (f"nano without drafts t={t}", "anychip"))
           for t in (0, 1)},
        **{f"{what}_over_llama_cpp": over((what, "anychip"), (what, "llama.cpp"))
           for what, side in found if side == "llama.cpp"},
    }
    return {name: round(value, 3) for name, value in pairs.items() if value is not None}


def unit_of(what: str) -> str:
    if what.startswith("acceptance"):
        return "share"
    return {"prefix": "s", "decode": "ms/token"}.get(what.split()[0], "tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES))
    found: Found = defaultdict(list)
    gc.freeze()
    for stage in parser.parse_args().only:
        STAGES[stage](found)
    for (what, side), values in found.items():
        print(f"{what:28} {side:14} {statistics.median(values):10.4g} {unit_of(what)} "
              f"[{min(values):.4g}, {max(values):.4g}] n={len(values)} measured")
    append([row("serving", f"{side} {what}", values, unit_of(what), "tiny, greedy; nano for drafts")
            for (what, side), values in found.items()])
    print(json.dumps(ratios(found)))


if __name__ == "__main__":
    main()
