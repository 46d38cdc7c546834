"""The runs of a matrix: every model on every chip, those that are kept in a folder taken up, the others recorded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ... import __version__
from ...chips import Chip, open_chip
from ...errors import AnychipError, BundleError
from ...record import Kind
from ..bundle import Bundle, check_writable
from ..proof import Reference
from ..record import LEVELS, record
from ..subject import Subject
from .timing import time_together

Key = tuple[str, str]  # model, chip


@dataclass(frozen=True)
class Grid:
    """Bundles by model and chip. The first model and the first chip are what the others are set against.

    A bundle may be missing where recordings were given that do not make a full grid.
    """

    models: tuple[str, ...]
    chips: tuple[str, ...]
    bundles: dict[Key, Bundle]


def from_bundles(bundles: Sequence[Bundle]) -> Grid:
    """Arrange recordings in a grid. Raises BundleError where two are of one model and chip, or of one model's name
    with different weights."""
    models: dict[str, str] = {}  # digest of the weights -> the name that it was first recorded under
    found: dict[Key, Bundle] = {}
    for bundle in bundles:
        digest, chip = bundle.about["digests"]["weights"], str(bundle.about["chip"])
        name = models.setdefault(digest, str(bundle.about["model"]))
        if list(models.values()).count(name) > 1:
            raise BundleError(f"two recordings name their model {name!r} but ran different weights; record them under "
                              "different names (folders)")
        if (name, chip) in found:
            raise BundleError(f"two recordings are of {name!r} on {chip!r}; give one of them")
        found[name, chip] = bundle
    return Grid(tuple(models.values()), tuple(dict.fromkeys(chip for _, chip in found)), found)


def fill(subjects: Sequence[Subject], chips: Sequence[str], levels: Sequence[str], keep: Path | None = None,
         progress: Callable[[int, int, str], None] = lambda done, total, name: None) -> Grid:
    """Return every subject on every chip. With `keep`, each run is written there when it is done and found there again.

    A kept run of other weights, tokens, settings, levels or version is refused (BundleError): nothing is run over it.
    Chips are opened only where a run is missing, so that recordings of other machines' chips can lie in the folder.
    """
    found = {(subject.name, chip): bundle for subject in subjects for chip in chips
             if (bundle := _kept(keep, subject, chip, levels)) is not None}
    missing = [chip for chip in chips if any((subject.name, chip) not in found for subject in subjects)]
    opened = {name: open_chip(name) for name in missing}
    if keep is not None and missing:
        keep.mkdir(parents=True, exist_ok=True)
        check_writable(keep / "new.gap")
    steps = sum(len(LEVELS[level]) for level in levels)
    total, done = steps * (len(subjects) * len(chips) - len(found)), 0
    for subject in subjects:
        reference = Reference(subject)
        for name in chips:
            if (subject.name, name) in found:
                continue

            def tell(section: str, words: str = f"{subject.name} on {name}") -> None:
                nonlocal done
                progress(done, total, f"{words}: {section}")
                done += 1

            bundle = record(reference, opened[name], tell, levels)
            found[subject.name, name] = bundle
            _keep(keep, bundle)
    if "speed" in levels:
        _time(subjects, Grid((), tuple(chips), found), opened, keep, lambda note: progress(total, total, note))
    return Grid(tuple(subject.name for subject in subjects), tuple(chips), found)


def file_name(model: str, chip: str) -> str:
    """Return the name under which a run is kept."""
    return "@".join(re.sub(r"[^\w.-]+", "-", part) for part in (model, chip)) + ".gap"


def _keep(keep: Path | None, bundle: Bundle) -> None:
    if keep is not None:
        bundle.save(keep / file_name(str(bundle.about["model"]), str(bundle.about["chip"])))


def _kept(keep: Path | None, subject: Subject, chip: str, levels: Sequence[str]) -> Bundle | None:
    path = None if keep is None else keep / file_name(subject.name, chip)
    if path is None or not path.exists():
        return None
    bundle = Bundle.load(path)
    digests = subject.digests()
    wrong = [f"other {name}" for name, digest in digests.items() if bundle.about["digests"].get(name) != digest]
    wrong += [f"no level {level}" for level in levels if level not in bundle.about["levels"]]
    if bundle.about["anychip"] != __version__:
        wrong.append(f"anychip {bundle.about['anychip']}")
    if wrong:
        raise BundleError(f"{path} is another run than the one asked for ({', '.join(wrong)}): choose another folder, "
                          "or delete the file to run it again")
    return bundle


def _time(subjects: Sequence[Subject], grid: Grid, opened: dict[str, Chip], keep: Path | None,
          tell: Callable[[str], None]) -> None:
    """Time together what was not timed yet and whose chip is here."""
    untimed: dict[Key, tuple[Subject, Chip]] = {}
    for subject in subjects:
        for name in grid.chips:
            bundle = grid.bundles[subject.name, name]
            if bundle.about["timing"] != Kind.MEASURED.value or "rounds" in bundle.tables["speed"]:
                continue
            chip = opened.get(name) or _same_here(bundle)
            if chip is not None:
                opened[name] = chip
                untimed[subject.name, name] = subject, chip
    for key, rates in time_together(untimed, progress=tell).items() if untimed else ():
        grid.bundles[key].tables["speed"]["rounds"] = rates
        _keep(keep, grid.bundles[key])


def _same_here(bundle: Bundle) -> Chip | None:
    """The chip that a kept run was made on, where it is this machine's."""
    try:
        chip = open_chip(str(bundle.about["chip"]))
    except AnychipError:
        return None
    return chip if chip.description == bundle.about["description"] else None
