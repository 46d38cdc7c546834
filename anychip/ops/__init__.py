"""The ops seam: about a dozen functions that define the model's maths and that a chip may replace."""

from .attention import Keys, Ranges
from .experts import RouteRule
from .hyper import HyperRule, HyperWeights
from .seam import COSTS, Ops

__all__ = ["COSTS", "HyperRule", "HyperWeights", "Keys", "Ops", "Ranges", "RouteRule"]
