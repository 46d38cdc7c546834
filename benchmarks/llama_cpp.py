"""How fast is llama.cpp on the same fp32 weights, and what logits does it give?

Each call runs in a process of its own, so that its OpenMP threads and ours do not meet. One pass over random ids
gives the prefill rate at every length asked for (tokens / seconds since the empty cache, in ubatches) and, at each
of these contexts, single-token steps with the argmax fed back. Loading and a warm-up of 64 tokens are not timed.

Two settings matter. llama.cpp's own, an fp16 KV cache with flash attention, are its fastest (decode 4.4 against
7.2 ms with an fp32 cache) and round: logits differ by up to a tenth of their range. With an fp32 cache and without
flash attention it computes in fp32 and agrees with the reference to 1e-5.

    python -m benchmarks.llama_cpp speed model.gguf --contexts 1024 4096 --steps 32
    python -m benchmarks.llama_cpp logits model.gguf --ids ids.npy --out logits.npy
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .llama_library import KV_TYPES, FloatArray, IntArray, Llama, missing

WARM_UP = 64


@dataclass(frozen=True)
class Speed:
    """What one run measured, by context in tokens, and how: the command line, build and settings."""

    prefill_tokens_per_s: dict[int, float]
    decode_ms: dict[int, list[float]]
    command: str
    version: str
    settings: str


def available() -> str | None:
    """Return why llama.cpp cannot be run here, and what to do; None where it can."""
    if importlib.util.find_spec("gguf") is None:
        return "gguf is not installed: pip install gguf"
    return missing()


def speed(path: str | Path, contexts: Sequence[int], *, steps: int = 32, threads: int = 2,
          kv: str = "f16") -> Speed:
    """Time prefill up to each context and `steps` decode steps there (0: none), in one pass of one process.

    Flash attention is on. `kv` is "f16" or "f32" (faster only in prefill, up to about 4,096 tokens). The contexts
    must lie more than `steps` apart. Raises RuntimeError with llama.cpp's words where it fails.
    """
    arguments = ["speed", str(path), "--contexts", *map(str, contexts), "--steps", str(steps),
                 "--threads", str(threads), "--kv", kv]
    lines = _run(arguments)
    found = json.loads(lines[-1])
    return Speed(
        {int(length): rate for length, rate in found["prefill_tokens_per_s"].items()},
        {int(context): times for context, times in found["decode_ms"].items()},
        "python -m benchmarks.llama_cpp " + " ".join(arguments), found["version"], found["settings"],
    )


def parallel(path: str | Path, streams: int, context: int, *, steps: int = 32, threads: int = 2) -> float:
    """Return tokens/s of `streams` sequences decoded together at a context, from the median step, fp16 cache.

    Raises RuntimeError with llama.cpp's words where it fails.
    """
    found = _run(["parallel", str(path), "--contexts", str(context), "--streams", str(streams), "--steps", str(steps),
                  "--threads", str(threads)])
    return streams / float(json.loads(found[-1])["step_s"])


def logits(path: str | Path, ids: Sequence[int], *, threads: int = 2, kv: str = "f32",
           flash_attention: bool = False) -> FloatArray:
    """Return llama.cpp's logits [T, V] for one sequence of token ids: computed in fp32, unless asked otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder, "ids.npy"), Path(folder, "logits.npy")
        np.save(asked, np.asarray(ids, np.int32))
        _run(["logits", str(path), "--ids", str(asked), "--out", str(answer), "--threads", str(threads), "--kv", kv,
              *([] if flash_attention else ["--no-flash-attention"])])
        return np.asarray(np.load(answer), np.float32)


def _run(arguments: list[str]) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.llama_cpp", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    if done.returncode != 0:
        raise RuntimeError(f"llama.cpp failed with exit code {done.returncode}: {' '.join(command)}\n"
                           + "\n".join(done.stderr.splitlines()[-8:]))
    return done.stdout.splitlines()


def _time(llama: Llama, contexts: Sequence[int], steps: int) -> tuple[dict[int, float], dict[int, list[float]]]:
    ids = np.random.default_rng(1).integers(0, llama.vocab_size, max(contexts), dtype=np.int32)
    llama.append(ids[:WARM_UP])
    llama.append(ids[:1])
    llama.clear()
    rates: dict[int, float] = {}
    decode_ms: dict[int, list[float]] = {}
    at, filled, seconds = 0, 0, 0.0
    for context in sorted(contexts):
        start = time.perf_counter()
        last = llama.append(ids[at:context])
        seconds, filled = seconds + time.perf_counter() - start, filled + context - at
        rates[context] = filled / seconds
        decode_ms[context] = [_step(llama, last) for _ in range(steps)]
        at = context + steps
    return rates, decode_ms


def _step(llama: Llama, logits: FloatArray) -> float:
    """Choose the next token, run it, leave its logits in `logits`; return milliseconds."""
    start = time.perf_counter()
    logits[:] = llama.append(np.array([logits[-1].argmax()], np.int32))
    return 1e3 * (time.perf_counter() - start)


def _time_parallel(llama: Llama, streams: int, context: int, steps: int) -> float:
    """Median seconds of a step of one token for each sequence, the argmax fed back."""
    draw, times = np.random.default_rng(1), list[float]()
    for sequence in range(streams):
        llama.fill(draw.integers(0, llama.vocab_size, context, dtype=np.int32), sequence)
    ids, sequences = np.zeros(streams, np.int32), np.arange(streams, dtype=np.int32)
    for i in range(steps):
        start = time.perf_counter()
        ids = llama.step(ids, context + i, sequences).argmax(-1).astype(np.int32)
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]))


def _check_contexts(contexts: Sequence[int], steps: int) -> None:
    ordered = sorted(contexts)
    if ordered[0] < WARM_UP or any(b - a <= steps for a, b in zip(ordered, ordered[1:], strict=False)):
        sys.exit(f"contexts {ordered}: each must be at least {WARM_UP} and more than {steps} above the one before")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["speed", "parallel", "logits"])
    parser.add_argument("model", type=Path, help="a GGUF written by benchmarks.gguf_export")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024], help="speed: tokens")
    parser.add_argument("--streams", type=int, default=8, help="parallel: sequences")
    parser.add_argument("--steps", type=int, default=32, help="speed: decode steps at each context")
    parser.add_argument("--ids", type=Path, help="logits: a .npy of token ids")
    parser.add_argument("--out", type=Path, help="logits: the .npy to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ubatch", type=int, default=512, help="tokens a prefill step takes")
    parser.add_argument("--kv", choices=KV_TYPES, default="f16", help="the cache's format")
    parser.add_argument("--no-flash-attention", dest="flash_attention", action="store_false")
    return parser.parse_args()


def main() -> None:
    asked = _parse()
    if reason := available():
        sys.exit(reason)
    options = {"threads": asked.threads, "ubatch": asked.ubatch, "kv": asked.kv,
               "flash_attention": asked.flash_attention}
    if asked.what == "logits":
        ids: IntArray = np.load(asked.ids)
        llama = Llama(asked.model, len(ids), all_logits=True, **options)
        np.save(asked.out, llama.append(ids))
    elif asked.what == "parallel":
        (context,) = asked.contexts
        room = context + asked.steps + 1
        llama = Llama(asked.model, -(-room // 256) * 256, sequences=asked.streams, **options)
        print(json.dumps({"step_s": _time_parallel(llama, asked.streams, context, asked.steps)}))
    else:
        _check_contexts(asked.contexts, asked.steps)
        llama = Llama(asked.model, max(asked.contexts) + asked.steps, **options)
        rates, decode_ms = _time(llama, asked.contexts, asked.steps)
        settings = "fp32 weights, " + ", ".join(f"{name} {value}" for name, value in options.items())
        print(json.dumps({"prefill_tokens_per_s": rates, "decode_ms": decode_ms, "version": llama.version,
                          "settings": settings}))
    llama.close()


if __name__ == "__main__":
    main()
