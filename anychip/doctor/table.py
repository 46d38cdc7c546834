"""The versions that go together, read from table.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version


@dataclass(frozen=True)
class TorchNpuRow:
    """A torch_npu package with the torch and the CANN that it was made for."""

    package: str
    torch: str
    cann: str


@dataclass(frozen=True)
class TritonAscendRow:
    """A triton_ascend package, its CANN and Pythons, and whether it brings the community triton itself."""

    package: str
    cann: str
    python: Sequence[str]
    declares_triton: bool


@dataclass(frozen=True)
class CudaRow:
    """A CUDA major version, the oldest driver that runs it, and a torch wheel built with it."""

    major: int
    min_driver: int
    torch: str
    index: str


@dataclass(frozen=True)
class Table:
    """The whole table. `version` is the day on which its sources were read."""

    version: str
    sources: Mapping[str, str]
    anychip: Mapping[str, str]
    advised: Mapping[str, str]
    torch_npu: Sequence[TorchNpuRow]
    python_of_torch: Mapping[str, Sequence[str]]
    triton_ascend: Sequence[TritonAscendRow]
    hdk: Sequence[tuple[str, Sequence[str]]]
    cuda: Sequence[CudaRow]

    def torch_npu_for(self, cann: str, python: str, torch: str | None = None) -> TorchNpuRow | None:
        """Return the row for a CANN and Python: the one for `torch` if there is, else the newest."""
        rows = [
            row for row in self.torch_npu if cann_matches(cann, row.cann) and self.takes_python(row, python)
        ]
        same = [row for row in rows if torch is not None and release(torch) == row.torch]
        return next(iter(same or rows), None)

    def takes_python(self, row: TorchNpuRow, python: str) -> bool:
        """Whether a torch_npu is built for a Python (one that the table does not list is taken to be)."""
        return minor(python) in self.python_of_torch.get(row.torch, (minor(python),))

    def drivers_of(self, cann: str) -> Sequence[str] | None:
        """Return the Ascend drivers (major.minor) that a CANN runs with, or None when not in the table."""
        return next((drivers for row, drivers in self.hdk if cann == row or cann.startswith(row + ".")), None)


def load_table(text: str | None = None) -> Table:
    """Parse the table of this release, or the given TOML text of the same form."""
    if text is None:
        text = (files("anychip.doctor") / "table.toml").read_text(encoding="utf-8")
    data: dict[str, Any] = tomllib.loads(text)
    return Table(
        version=data["version"],
        sources=data["sources"],
        anychip=data["anychip"],
        advised=data["advised"],
        torch_npu=[TorchNpuRow(**row) for row in data["torch_npu"]],
        python_of_torch=data["python_of_torch"],
        triton_ascend=[TritonAscendRow(**row) for row in data["triton_ascend"]],
        hdk=[(row["cann"], row["drivers"]) for row in data["hdk"]],
        cuda=[CudaRow(**row) for row in data["cuda"]],
    )


def release(version: str) -> str:
    """Return `2.9.0` of `2.9.0.post2+cpu`. A version that is not PEP 440 is returned as it is."""
    try:
        return Version(version).base_version
    except InvalidVersion:
        return version


def cann_matches(found: str, wanted: str) -> bool:
    """Whether an installed CANN fits a row: equal, or the same major.minor with neither a release candidate.

    Huawei writes its newest row as 9.1.X; patch releases of one minor version go together, candidates do not.
    """
    found, wanted = found.upper(), wanted.upper()
    if "RC" in found or "RC" in wanted or "ALPHA" in found or "BETA" in found:
        return found == wanted
    return found.split(".")[:2] == wanted.split(".")[:2]


def within(version: str, wanted: str) -> bool:
    """Whether a version fits a specifier such as `>=3.11`. A version that is not PEP 440 fits none."""
    try:
        return SpecifierSet(wanted).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def minor(version: str) -> str:
    """Return `3.11` of `3.11.7`."""
    return ".".join(version.split(".")[:2])


def major(version: str) -> int:
    """Return 580 of `580.65.06`."""
    return int(version.split(".")[0])
