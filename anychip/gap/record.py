"""Record one chip's run of a subject as a bundle: every section, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from .. import __version__
from ..chips import Chip
from ..errors import InputError
from .behaviour import record_generation, record_training
from .bundle import Bundle
from .noise import record_noise
from .numerics import record_layers, record_model, record_ops
from .proof import Reference, record_guided, record_hard_cases
from .quality import record_quality
from .speed import record_speed
from .subject import Subject

# Family -> the published model of it whose times are simulated.
PUBLISHED = {"v4": "v4-flash", "v3": "deepseek-v3", "v32": "deepseek-v3.2", "glm5": "glm-5.1",
             "qwen3-moe": "qwen3-30b-a3b", "qwen3": "qwen3-8b"}
# Level -> the sections that record it.
LEVELS = {"op": ("hard cases", "ops"), "layer": ("guided runs", "layers"), "model": ("model", "noise", "generation"),
          "train": ("training",), "quality": ("quality",), "speed": ("speed",)}


def choose_levels(names: str) -> tuple[str, ...]:
    """Return the levels of a comma-separated list, in `LEVELS`' order. Raises InputError for an unknown one."""
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in LEVELS]
    if unknown or not asked:
        wrong = ", ".join(map(repr, unknown)) or repr(names)
        raise InputError(f"unknown level {wrong}; choose of: {', '.join(LEVELS)}")
    return tuple(level for level in LEVELS if level in asked)


def sections(reference: Reference, chip: Chip, bundle: Bundle) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield each section's name and the call that records it into the bundle."""
    subject = reference.subject
    yield "hard cases", lambda: record_hard_cases(subject, chip, bundle)
    yield "guided runs", lambda: record_guided(reference, chip, bundle)
    yield "ops", lambda: record_ops(subject, reference.chip, chip, bundle)
    yield "layers", lambda: record_layers(subject, chip, bundle)
    yield "model", lambda: record_model(subject, chip, bundle)
    yield "noise", lambda: record_noise(reference, chip, bundle)
    yield "generation", lambda: record_generation(subject, chip, bundle)
    yield "training", lambda: record_training(subject, chip, bundle)
    yield "quality", lambda: record_quality(subject, chip, bundle)
    yield "speed", lambda: record_speed(PUBLISHED[subject.config.family], subject, chip, bundle)


def record(subject: Subject | Reference, chip: Chip, progress: Callable[[str], None] = lambda name: None,
           levels: Sequence[str] = tuple(LEVELS)) -> Bundle:
    """Run the levels on one chip. `progress` is told each section's name before it starts.

    Give a `Reference` where several chips run one subject: its own runs are then made once.
    """
    reference = subject if isinstance(subject, Reference) else Reference(subject)
    subject = reference.subject
    bundle = Bundle({
        "chip": chip.name, "description": chip.description, "precision": chip.precision,
        "numerics": chip.numerics.value, "timing": chip.timing.value, "versions": chip.versions(),
        "anychip": __version__, "model": subject.name, "digests": subject.digests(),
        "settings": asdict(subject.settings), "text": subject.text, "trained": subject.trained,
        "parameters": sum(tensor.numel() for tensor in subject.weights.values()), "levels": list(levels),
    })
    wanted = {section for level in levels for section in LEVELS[level]}
    for name, run in sections(reference, chip, bundle):
        if name in wanted:
            progress(name)
            run()
    return bundle
