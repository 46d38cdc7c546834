"""Record one chip's run of a subject as a bundle: every section, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

from .. import __version__
from ..chips import Chip
from .behaviour import record_generation, record_training
from .bundle import Bundle
from .noise import record_noise
from .numerics import record_layers, record_model, record_ops
from .proof import Reference, record_guided, record_hard_cases
from .quality import record_quality
from .speed import record_speed
from .subject import Subject

PUBLISHED = "v4-flash"  # the model whose times are simulated


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
    yield "speed", lambda: record_speed(PUBLISHED, chip, bundle)


def record(subject: Subject | Reference, chip: Chip, progress: Callable[[str], None] = lambda name: None) -> Bundle:
    """Run everything on one chip. `progress` is told each section's name before it starts.

    Give a `Reference` where several chips run one subject: its own runs are then made once.
    """
    reference = subject if isinstance(subject, Reference) else Reference(subject)
    subject = reference.subject
    bundle = Bundle({
        "chip": chip.name, "description": chip.description, "precision": chip.precision,
        "numerics": chip.numerics.value, "timing": chip.timing.value, "versions": chip.versions(),
        "anychip": __version__, "model": subject.name, "digests": subject.digests(),
        "settings": asdict(subject.settings),
    })
    for name, run in sections(reference, chip, bundle):
        progress(name)
        run()
    return bundle
