"""The DeepSeek-V4 model on one device: pure maths, no chip is named here."""

from .count import count_parameters
from .initialize import initialize
from .layout import Layout
from .state import State
from .transformer import Hidden, Transformer

__all__ = ["Hidden", "Layout", "State", "Transformer", "count_parameters", "initialize"]
