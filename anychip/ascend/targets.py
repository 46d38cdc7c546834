"""The chips that Huawei's compilers know: names, cores, sizes of the on-chip memories. All from `targets.toml`."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ChipError, nearest


@dataclass(frozen=True)
class Target:
    """One chip name of the compiler. A 910C card is two dies: its names stand for one die, as the runtime shows it.

    num_cube (AIC) and num_vector (AIV) cores a die. Memories of one core in bytes: ub (unified buffer of a vector
    core); l1, l0a, l0b, l0c (of a cube core). align: what a buffer in the memory starts at a multiple of.
    """

    name: str
    arch: str
    compiler: str
    num_cube: int
    num_vector: int
    ub_bytes: int
    l1_bytes: int
    l0a_bytes: int
    l0b_bytes: int
    l0c_bytes: int
    ub_align_bytes: int
    l1_align_bytes: int
    l0c_align_bytes: int

    @property
    def is_950(self) -> bool:
        """Whether it belongs to the 950 generation, which has another compiler and another vector unit."""
        return self.arch == "dav-c310"

    def memory_bytes(self, space: str) -> int:
        """Return the size of an on-chip memory (`ub`, `l1`, `l0a`, `l0b`, `l0c`) of one core."""
        return int(getattr(self, f"{space}_bytes"))


def find_target(name: str) -> Target:
    """Return the target of a compiler name (`Ascend910B1`) or of a chip name (`ascend910b`, `virtual:ascend950`).

    Case does not matter. Raises ChipError with the nearest name.
    """
    known, aliases = _targets(), _data()["alias"]
    asked = name.removeprefix("virtual:").lower()
    by_name = {target.name.lower(): target for target in known} | {a: known_by(n) for a, n in aliases.items()}
    if asked not in by_name:
        raise ChipError(f"{name!r} is no Ascend chip.{nearest(asked, by_name)} The chips: {', '.join(aliases)}; "
                        f"and the compiler's {len(known)} names, such as {known[0].name}")
    return by_name[asked]


def known_by(name: str) -> Target:
    """Return the target of exactly this compiler name. Raises KeyError for any other."""
    return {target.name: target for target in _targets()}[name]


def list_targets() -> list[Target]:
    """Return every target, in the order of the data file: 910B and 910C, 950, 310B."""
    return list(_targets())


@functools.cache
def _data() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("targets.toml").read_text())


@functools.cache
def _targets() -> tuple[Target, ...]:
    data = _data()
    return tuple(Target(name=name, arch=part["arch"], num_cube=part["num_cube"], num_vector=part["num_vector"],
                        **data["arch"][part["arch"]])
                 for part in data["parts"] for name in part["names"])


class OnTarget:
    """What launchers for one target share: the cores of one die."""

    target: Target

    @property
    def num_cube(self) -> int:
        """Cube cores of one die."""
        return self.target.num_cube

    @property
    def num_vector(self) -> int:
        """Vector cores of one die."""
        return self.target.num_vector

    @property
    def keeps_zeros(self) -> bool:
        """Whether the compiler keeps the zeros of a masked tile that is then turned; see docs/virtual_ascend.md."""
        return not self.target.is_950
