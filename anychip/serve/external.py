"""vLLM and vllm-ascend as the engine: how it is started for the named chips, and its process.

Attention is tensor-parallel in groups of chips and data-parallel over the groups, experts are spread over all chips;
`anychip.plan.engine` finds the degrees. The weights must leave a fifth of the memory to cache and workspace.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chips.facts import load_facts
from ..errors import ChipError, InputError, NotSupported

ENGINES = ("vllm", "vllm-ascend")
_INSTALL = {"vllm": "pip install vllm", "vllm-ascend": "pip install vllm vllm-ascend"}
_MODULES = {"vllm": ("vllm",), "vllm-ascend": ("vllm", "vllm_ascend")}
_VENDORS = {"vllm": "NVIDIA", "vllm-ascend": "Huawei"}
_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")  # in config.json, by family
_WEIGHT_SHARE = 0.8  # of a chip's memory, at most; the rest is cache and workspace


@dataclass(frozen=True)
class Degrees:
    """Chips that share a sequence's attention (`tensor`), and how many such groups there are (`data`)."""

    tensor: int = 1
    data: int = 1

    @property
    def num_chips(self) -> int:
        """All chips."""
        return self.tensor * self.data

    def fitted(self, folder: Path) -> Degrees:
        """Return the degrees on as many chips that a checkpoint with fewer heads can have."""
        tensor = math.gcd(self.tensor, int(_config(folder, []).get("num_attention_heads", 1)))
        return Degrees(tensor, self.num_chips // tensor)


@dataclass(frozen=True)
class External:
    """How the engine is started: its command, and the weights' share of each chip's memory (calculated)."""

    command: tuple[str, ...]
    weight_share: float


def plan_engine(engine: str, folder: Path, name: str, chip: str, degrees: Degrees, port: int) -> External:
    """Return how to serve a checkpoint folder on so many chips. Raises with every reason why that cannot be.

    NotSupported says the install line where the engine is missing; InputError what does not fit.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}: choose embedded, {' or '.join(ENGINES)}")
    missing = [module for module in _MODULES[engine] if importlib.util.find_spec(module) is None]
    if missing and shutil.which("vllm") is None:
        raise NotSupported(f"{engine} is not installed here ({', '.join(missing)}): {_INSTALL[engine]}")
    facts, problems, num_chips = load_facts(chip), list[str](), degrees.num_chips
    if facts.vendor != _VENDORS[engine]:
        problems.append(f"{engine} runs on {_VENDORS[engine]}'s chips, and {chip} is {facts.vendor}'s")
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    share = weights / (num_chips * facts.memory_bytes)
    if not weights:
        problems.append(f"{folder} has no *.safetensors: give a checkpoint's folder")
    if share > _WEIGHT_SHARE:
        least = -(-weights // int(_WEIGHT_SHARE * facts.memory_bytes))
        problems.append(f"{weights / 2**30:.0f} GiB of weights are {share:.0%} of the memory of {num_chips} {chip}; at "
                        f"most {_WEIGHT_SHARE:.0%} leaves room for the cache: use {least} or more")
    config = _config(folder, problems)
    heads = int(config.get("num_attention_heads", 1))
    if heads % degrees.tensor:
        fit = [n for n in range(1, heads + 1) if heads % n == 0]
        problems.append(f"{degrees.tensor} chips do not divide num_attention_heads={heads}: use "
                        + ", ".join(map(str, fit)))
    if problems:
        raise InputError(f"{engine} cannot serve {folder} on {num_chips} {chip}: " + "; ".join(problems))
    flags = ["--tensor-parallel-size", str(degrees.tensor)] if degrees.tensor > 1 else []
    flags += ["--data-parallel-size", str(degrees.data)] if degrees.data > 1 else []
    flags += ["--enable-expert-parallel"] if num_chips > 1 and any(config.get(key) for key in _EXPERTS) else []
    start = ("vllm",) if shutil.which("vllm") else (sys.executable, "-m", "vllm.entrypoints.cli.main")
    return External((*start, "serve", str(folder), "--served-model-name", name, "--host", "127.0.0.1", "--port",
                     str(port), *flags), share)


def _config(folder: Path, problems: list[str]) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        int(config["num_attention_heads"])
        return dict(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"{folder}/config.json does not say num_attention_heads ({error})")
        return {}


class EngineProcess:
    """The engine's process: started, awaited, and ended with this one. Use as a context."""

    def __init__(self, external: External, port: int) -> None:
        self._external, self.url = external, f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EngineProcess:
        self._process = subprocess.Popen(self._external.command, stdout=sys.stderr)
        return self

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until it answers. Raises ChipError where it ends first or is not ready in time."""
        assert self._process is not None
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise ChipError(f"the engine ended with {self._process.returncode} before it was ready; its own "
                                f"words are above. It was started as: {' '.join(self._external.command)}")
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).read()
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.2)
        raise ChipError(f"the engine was not ready after {timeout_s:g} s")

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
