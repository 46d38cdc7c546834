"""Everything that only a real card can tell, in one file: what `anychip card` runs, section by section.

Each section runs in a process of its own (a driver fault ends one section, not the run) and leaves JSON, bundles and
a log in one folder, which becomes the zip that travels. Sections:

machine    what the doctor finds, versions, device, which operator runs which op
rates      matrix products and copies against the chip's facts; what an empty launch costs
gradients  one training step's gradients against the plain-torch definitions on the processor
waits      where a training step and a decoded token make the host wait (torch_npu's and CUDA's own report)
kernels    the Triton suite on the card: error against the float64 references, and time
record     the gap bundle of the chip, and of its variants; twice, so that noise is known
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..chips import Chip, open_chip
from ..doctor import Probe, examine
from ..serve.generate import generate
from ..serve.request import Sampling
from ..text.batches import TokenBatches
from ..train.settings import TrainSettings
from ..train.trainer import Trainer
from .bundle import write_whole
from .load import load_subject
from .record import record
from .subject import Settings, Subject

VARIANTS = {"npu": ("npu", "npu", "npu:reference", "npu:kernels", "npu:deterministic")}
# Set for every section: an operator that torch_npu lacks fails by name and does not fall back to the host.
STRICT = {"TORCH_NPU_FALLBACK_CPU_DISABLE": "1"}
QUICK = Settings(probe_tokens=140, text_tokens=96, text_length=48, logit_positions=16, new_tokens=4, train_seeds=2,
                 train_steps=2, train_length=32, questions=16)


def plan(chip: str) -> list[tuple[str, str]]:
    """Return (section, chip) for every process of a card's run."""
    records = [("record", variant) for variant in VARIANTS.get(chip.partition(":")[0], (chip, chip))]
    return [(name, chip) for name in SECTIONS if name != "record"] + records


def run_all(chip: str, out: Path, *, quick: bool, report: Callable[[str, bool], None]) -> bool:
    """Run every section in a process of its own and write the zip. Returns whether all of them ended well."""
    folder = out.with_suffix(".parts")
    folder.mkdir(parents=True, exist_ok=True)
    outcome = []
    for number, (section, name) in enumerate(plan(chip)):
        stem = f"{number:02d}-{section}-{name.replace(':', '-')}"
        command = [sys.executable, "-m", "anychip.gap.card", section, name, str(folder / stem), str(int(quick))]
        done = subprocess.run(command, env={**os.environ, **STRICT}, capture_output=True, text=True, check=False)
        (folder / f"{stem}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        outcome.append({"section": section, "chip": name, "exit": done.returncode})
        report(f"{section} {name}", done.returncode == 0)
    about = {"anychip": __version__, "chip": chip, "quick": quick, "sections": outcome}
    (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return all(part["exit"] == 0 for part in outcome)


def run_section(section: str, chip: str, stem: Path, *, quick: bool) -> None:
    """Run one section here and leave its results beside `stem`. Whatever fails raises."""
    settings = QUICK if quick else Settings()
    found = SECTIONS[section](open_chip(chip), load_subject("nano", None, settings), stem)
    write_whole(stem.with_name(stem.name + ".json"), json.dumps(found, indent=1, default=str).encode())


def machine(chip: Chip, subject: Subject, stem: Path) -> dict[str, Any]:
    """What the machine is."""
    limits = chip.limits()
    return {"findings": [asdict(f) for f in examine(Probe.of_this_machine(os.environ))], "versions": chip.versions(),
            "device": chip.description, "facts": None if limits is None else limits.name, "ops": chip.sources(),
            "variables": {name: value for name, value in os.environ.items()
                          if name.startswith(("ASCEND_", "TORCH_NPU", "HCCL_", "CANN", "TASK_QUEUE", "PYTORCH_NPU"))}}


def rates(chip: Chip, subject: Subject, stem: Path) -> dict[str, Any]:
    """Median times of matrix products, a copy and an empty launch; rates in FLOP/s and bytes/s."""
    size = 256 if subject.settings == QUICK else 6144
    found: dict[str, Any] = {"size": size}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.ones(size, size, device=chip.device, dtype=dtype)
        found[f"{dtype} FLOP/s".removeprefix("torch.")] = 2 * size**3 / _median(chip, partial(torch.matmul, a, a))
    a = torch.ones(size, size, 8, device=chip.device)
    found["copy bytes/s"] = 2 * a.numel() * 4 / _median(chip, a.clone)
    small = torch.ones(8, device=chip.device)
    found["launch s"] = _median(chip, small.neg)
    return found


def _median(chip: Chip, call: Callable[[], object], repeats: int = 10) -> float:
    """Seconds of one call, from batches of ten; the first batch warms up."""
    times = []
    for _ in range(repeats + 1):
        begin = chip.clock()
        for _ in range(10):
            call()
        times.append((chip.clock() - begin) / 10)
    return statistics.median(times[1:])


def _trainer(chip: Chip, subject: Subject, steps: int = 4) -> Trainer:
    settings = TrainSettings(steps=steps, batch=2, length=subject.settings.train_length)
    batches = TokenBatches(subject.ids, settings.batch, settings.length, settings.seed)
    return Trainer(subject.model(chip, trained=False), chip, batches, settings)


def gradients(chip: Chip, subject: Subject, stem: Path) -> dict[str, Any]:
    """Relative difference of each parameter's first gradient from the definitions' on the processor."""
    wanted, got = (_gradients(_trainer(c, subject)) for c in (open_chip("cpu:reference"), chip))
    if wanted.keys() != got.keys():
        raise AssertionError(f"gradients of other parameters: {sorted(wanted.keys() ^ got.keys())}")
    return {name: float((got[name] - value).norm() / value.norm().clamp_min(1e-30)) for name, value in wanted.items()}


def _gradients(trainer: Trainer) -> dict[str, Tensor]:
    inputs, targets, *_ = trainer.batches.at(0)
    loss, ahead = trainer.losses(inputs.to(trainer.chip.device), targets.to(trainer.chip.device))
    (loss if ahead is None else loss + ahead).backward()
    return {name: p.grad.cpu() for name, p in trainer.model.named_parameters() if p.grad is not None}


def waits(chip: Chip, subject: Subject, stem: Path) -> dict[str, Any]:
    """Call sites that make the host wait for the device, by count, over three steps and eight tokens."""
    module = getattr(torch, chip.device.type)
    if not hasattr(module, "set_sync_debug_mode"):
        return {"waits": None, "reason": f"torch.{chip.device.type} has no set_sync_debug_mode"}
    trainer, prompt = _trainer(chip, subject), subject.tokenizer.encode(subject.prompts[0])
    model = subject.model(chip)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        module.set_sync_debug_mode("warn")
        try:
            for _ in range(3):
                trainer.step()
            list(generate(model, chip, prompt, 8, Sampling(temperature=0.0)))
        finally:
            module.set_sync_debug_mode("default")
    return {"waits": Counter(f"{w.filename}:{w.lineno}: {w.message}"[-300:] for w in seen)}


def kernels(chip: Chip, subject: Subject, stem: Path) -> dict[str, Any]:
    """Every example of the suite: relative error of each output against its float64 reference, and seconds."""
    from ..kernels.launch import TritonLauncher

    suite = importlib.import_module("anychip.kernels.suite").suite  # needs triton
    properties = getattr(torch, chip.device.type).get_device_properties(0)
    cuda = chip.device.type == "cuda"
    cores = (properties.multi_processor_count,) * 2 if cuda else (properties.cube_core_num, properties.vector_core_num)
    launch = TritonLauncher("cuda" if cuda else "ascend", *cores)
    return {f"{kernel.name}/{example.name}": dict(_kernel(kernel, example, launch, chip))
            for kernel in suite() for example in kernel.examples}


def _kernel(kernel: Any, example: Any, launch: Any, chip: Chip) -> Iterator[tuple[str, Any]]:
    start = kernel.launch(example)
    args = {name: value.to(chip.device) if isinstance(value, Tensor) else value for name, value in start.args.items()}
    try:
        launch(kernel.fn, start.grid, args, start.constants)
        chip.synchronize()
    except Exception as error:  # a compiler's error may be of any type; the bundle carries it and the next one runs
        yield "failed", f"{type(error).__name__}: {error}"[-2000:]
        return
    if example.reference is not None:
        exact = {name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
                 for name, value in start.args.items()}
        for name, wanted in example.reference({**exact, **start.constants}).items():
            got = args[name].cpu().double()
            yield name, float((got - wanted).norm() / wanted.double().norm().clamp_min(1e-30))
    yield "time_s", _median(chip, lambda: launch(kernel.fn, start.grid, args, start.constants))


def record_chip(chip: Chip, subject: Subject, stem: Path) -> dict[str, Any]:
    """Record the chip's bundle beside the results."""
    bundle = record(subject, chip)
    bundle.save(stem.with_name(stem.name + ".gap"))
    return {"bundle": stem.name + ".gap"}


SECTIONS: dict[str, Callable[[Chip, Subject, Path], dict[str, Any]]] = {
    "machine": machine, "rates": rates, "gradients": gradients, "waits": waits, "kernels": kernels,
    "record": record_chip,
}

if __name__ == "__main__":
    run_section(sys.argv[1], sys.argv[2], Path(sys.argv[3]), quick=sys.argv[4] == "1")
