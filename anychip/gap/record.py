"""Record one chip's run of a subject as a bundle: every section, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

from .. import __version__
from ..chips import Chip, open_chip
from .behaviour import record_generation, record_training
from .bundle import Bundle
from .numerics import record_layers, record_model, record_ops
from .speed import record_speed
from .subject import Subject

PUBLISHED = "v4-flash"  # the model whose times are simulated


def sections(subject: Subject, chip: Chip, bundle: Bundle) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield each section's name and the call that records it into the bundle."""
    reference = open_chip("cpu:reference")
    yield "ops", lambda: record_ops(subject, reference, chip, bundle)
    yield "layers", lambda: record_layers(subject, chip, bundle)
    yield "model", lambda: record_model(subject, chip, bundle)
    yield "generation", lambda: record_generation(subject, chip, bundle)
    yield "training", lambda: record_training(subject, chip, bundle)
    yield "speed", lambda: record_speed(PUBLISHED, chip, bundle)


def record(subject: Subject, chip: Chip, progress: Callable[[str], None] = lambda name: None) -> Bundle:
    """Run everything on one chip. `progress` is told each section's name before it starts."""
    bundle = Bundle({
        "chip": chip.name, "description": chip.description, "precision": chip.precision,
        "numerics": chip.numerics.value, "timing": chip.timing.value, "versions": chip.versions(),
        "anychip": __version__, "model": subject.name, "digests": subject.digests(),
        "settings": asdict(subject.settings),
    })
    for name, run in sections(subject, chip, bundle):
        progress(name)
        run()
    return bundle
