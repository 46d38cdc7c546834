"""Training on many ranks: what a trainer asks of them (`Placement`), and the layouts that answer."""

from .placement import Batch, Losses, Objective, Placement, Routes, Single

__all__ = ["Batch", "Losses", "Objective", "Placement", "Routes", "Single"]
