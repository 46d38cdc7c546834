"""How much work one program does: tile sizes and program counts that suit a chip's on-chip memory and cores."""

from __future__ import annotations

from torch import Tensor

from .launch import Launcher

Args = dict[str, Tensor | int | float]

# Elements of one fp32 tile. Ascend's 192 KB of vector memory holds about a dozen such tiles (inputs twice, for the
# next tile is fetched while one is worked on); on NVIDIA 128 threads hold 32 elements each.
TILE = 4096
_PROGRAMS_PER_SM = 8


def power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least n (and at least 1)."""
    return 1 << max(n - 1, 0).bit_length()


def tile_rows(rows: int, block: int, tile: int = TILE) -> int:
    """Return how many rows of `block` elements make a tile: a power of two, no more than the rows need."""
    return max(1, min(tile // block, power_of_2(rows)))


def programs(launch: Launcher, tiles: int) -> tuple[int]:
    """Return the grid of a kernel whose programs loop over `tiles`: every vector core once, or each SM 8 times."""
    per_core = 1 if launch.family == "ascend" else _PROGRAMS_PER_SM
    return (min(tiles, launch.num_vector * per_core),)
