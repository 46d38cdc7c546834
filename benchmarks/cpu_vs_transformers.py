"""How fast is the CPU chip, against transformers, llama.cpp and this machine's own limit?

`tiny` (25M parameters, 7.5M active), fp32, all threads of torch; both sides in one process, in turn; llama.cpp,
where it is installed, as a subprocess in between. Held to: training >= 4x transformers and >= 55 % of the GEMM
rate measured in the same run, prefill of 8,192 tokens >= 20x, decode at 1K >= 8x, decode at 64K <= 1.5x of 1K,
peak memory of an 8K prefill <= 1 GiB.

    python -m benchmarks.cpu_vs_transformers [--quick]

`--quick` leaves out the long transformers runs (8K prefill); its last line then has no `prefill_8k`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from anychip.chips.cpu.limits import gemm_flops_per_s
from anychip.config import load_config

from .rows import append, row
from .sides import Ours, Peer, random_ids

BATCH, LENGTH, ROUNDS = 2, 512, 5
LLAMA_CONTEXTS = [1024, 4096, 16384]
Samples = dict[tuple[str, str], list[float]]


def train(ours: Ours, peer: Peer, found: Samples) -> None:
    """Interleave training steps of both sides and the GEMM limit."""
    ids = random_ids(ours.config, BATCH * (LENGTH + 1)).view(BATCH, LENGTH + 1)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    flops, tokens = ours.train_flops(inputs), BATCH * LENGTH
    for side in (ours, peer):
        side.train_step(inputs, targets)
    for _ in range(ROUNDS):
        limit = gemm_flops_per_s(1024)
        rates = [tokens / ours.train_step(inputs, targets) for _ in range(3)]
        limit = max(limit, gemm_flops_per_s(1024))
        found["train", ours.name].append(statistics.median(rates))
        found["train_share_of_limit", ours.name].append(statistics.median(rates) * flops / tokens / limit)
        found["gemm_limit", "machine"].append(limit)
        found["train", peer.name].append(tokens / peer.train_step(inputs, targets))


def prefill(ours: Ours, peer: Peer, found: Samples, lengths: list[int], rounds: int) -> None:
    """Interleave prefills, tokens/s. The peer's long ones take minutes and are run once."""
    for length in lengths:
        ids = random_ids(ours.config, length)
        ours.prefill(ids)
        for i in range(rounds):
            found[f"prefill_{length}", ours.name].append(length / ours.prefill(ids))
            if i == 0 or length <= 1024:
                found[f"prefill_{length}", peer.name].append(length / peer.prefill(ids))


def decode(ours: Ours, peer: Peer, found: Samples) -> None:
    """Interleave decode runs, ms a token; 64K is ours alone."""
    for _ in range(ROUNDS):
        for side in (ours, peer):
            steps = 60 if side is ours else 8
            found["decode_1024", side.name].append(1e3 * statistics.median(side.decode(1024, steps)[2:]))
    for context in (4096, 16384, 65536):
        found[f"decode_{context}", ours.name].append(1e3 * statistics.median(ours.decode(context, 60)[2:]))
        found["decode_1024", ours.name].append(1e3 * statistics.median(ours.decode(1024, 60)[2:]))


def peak_memory_gib() -> float:
    """Return the peak resident memory of a fresh process that fills 8,192 tokens, weights and torch included."""
    code = ("import torch\nfrom pathlib import Path\nfrom anychip.config import load_config\n"
            "from benchmarks.sides import Ours, random_ids\n"
            "side = Ours.__new__(Ours)\nside.config = load_config('tiny')\n"
            "from anychip.model import Transformer, initialize\nfrom anychip.chips import open_chip\n"
            "side.model = Transformer(side.config, open_chip('cpu').ops())\ninitialize(side.model, 0)\n"
            "side.prefill(random_ids(side.config, 8192))\n"
            "lines = Path('/proc/self/status').read_text().splitlines()\n"  # ru_maxrss would include this parent's
            "print(next(line.split()[1] for line in lines if line.startswith('VmHWM')))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 2**20


def summary(found: Samples) -> dict[str, float]:
    """Return the ratios that the benchmark is held to, from medians."""
    def ratio(what: str) -> float | None:
        pair = [found.get((what, name)) for name in ("anychip", "transformers")]
        return statistics.median(pair[0]) / statistics.median(pair[1]) if pair[0] and pair[1] else None

    def median(what: str) -> float:
        return statistics.median(found[what, "anychip"])

    decode_ratio = ratio("decode_1024")
    result: dict[str, float | None] = {
        "train": ratio("train"), "prefill_8k": ratio("prefill_8192"), "decode_1k": decode_ratio and 1 / decode_ratio,
        "decode_64k_over_1k": median("decode_65536") / median("decode_1024"),
        "train_share_of_limit": median("train_share_of_limit"), "prefill_8k_peak_gib": median("prefill_8k_memory"),
    }
    for (what, name), values in found.items():
        if name == "llama.cpp":
            ours = median(what)
            theirs = statistics.median(values)
            result[f"{what}_over_llama_cpp"] = theirs / ours if what.startswith("decode") else ours / theirs
    return {name: round(value, 4) for name, value in result.items() if value is not None}


def show(found: Samples) -> None:
    """Print every figure: one line a question, one column a side, median and range."""
    table = Table("figure", "unit", *(names := ["anychip", "transformers", "llama.cpp", "machine"]))
    for what in dict.fromkeys(key[0] for key in found):
        cells = []
        for name in names:
            values = found.get((what, name))
            cells.append(f"{statistics.median(values):.4g} [{min(values):.4g}, {max(values):.4g}]" if values else "")
        table.add_row(what, unit_of(what), *cells)
    Console(width=120).print(table)


def unit_of(what: str) -> str:
    """Return the unit of a figure by its name."""
    if what.startswith("decode"):
        return "ms/token"
    return {"gemm_limit": "FLOP/s", "train_share_of_limit": "share", "prefill_8k_memory": "GiB"}.get(what, "tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="leave out transformers' long prefills")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    config, found = load_config("tiny"), defaultdict(list)
    ours = Ours(config)
    peer = Peer(ours.model)
    gc.freeze()  # both sides: what is imported need not be searched for garbage at every step
    stages: list[Callable[[], Any]] = [
        lambda: train(ours, peer, found),
        lambda: decode(ours, peer, found),
        lambda: prefill(ours, peer, found, [1024] if quick else [1024, 4096, 8192], 3),
        lambda: found["prefill_8k_memory", "anychip"].append(peak_memory_gib()),
        lambda: beside_llama_cpp(ours, found),
    ]
    for stage in stages:
        stage()
    show(found)
    shape = f"tiny, batch {BATCH}x{LENGTH} for training, one sequence otherwise"
    append([row("cpu_vs_transformers", f"{name} {what}", values, unit_of(what), shape)
            for (what, name), values in found.items()])
    print(json.dumps(summary(found)))


def beside_llama_cpp(ours: Ours, found: Samples) -> None:
    """Time llama.cpp on the same weights (fp32; its default fp16 cache), where it is installed, in turn with ours."""
    from .gguf_export import export_gguf
    from .llama_cpp import available, speed

    reason = available()
    if reason:
        print(f"llama.cpp left out: {reason}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny.gguf")
        export_gguf(path, ours.config, ours.model.state_dict().items())
        for _ in range(3):
            theirs = speed(path, LLAMA_CONTEXTS)
            for context in LLAMA_CONTEXTS:
                found[f"prefill_{context}", "llama.cpp"].append(theirs.prefill_tokens_per_s[context])
                found[f"decode_{context}", "llama.cpp"].append(statistics.median(theirs.decode_ms[context]))
                ids = random_ids(ours.config, context)
                found[f"prefill_{context}", ours.name].append(context / ours.prefill(ids))
                found[f"decode_{context}", ours.name].append(1e3 * statistics.median(ours.decode(context, 60)[2:]))


if __name__ == "__main__":
    main()
