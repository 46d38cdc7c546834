"""Several models on several chips in one report: each on each, every chip and every model against the first."""

from .grid import Grid, fill, from_bundles
from .matrix import Matrix, build

__all__ = ["Grid", "Matrix", "build", "fill", "from_bundles"]
