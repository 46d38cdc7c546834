"""Checkpoints: the publishers' layouts (FP32, BF16, FP8, FP4) and transformers' naming, read and written in streams."""

from .codec import FORMATS
from .configs import read_config
from .convert import TARGETS, convert
from .digest import digest
from .files import CheckpointFolder
from .load import Loaded, load_checkpoint, load_model
from .save import save_checkpoint

__all__ = [
    "FORMATS",
    "TARGETS",
    "CheckpointFolder",
    "Loaded",
    "convert",
    "digest",
    "load_checkpoint",
    "load_model",
    "read_config",
    "save_checkpoint",
]
