"""The suite: every kernel of the models with its examples, topic by topic."""

from __future__ import annotations

import importlib

from .example import Kernel, find_kernels

TOPICS = ("add", "norm", "norm_grad", "rope", "swiglu", "matmul", "rows", "experts", "attention", "attention_delta",
          "attention_grad", "grouped", "grouped_grad", "indexer", "compress", "route", "hyper_mix", "hyper_streams",
          "loss", "formats", "optimizer", "muon")


def suite() -> list[Kernel]:
    """Return all kernels in the order of TOPICS. Needs triton (any back end); each has at least one example."""
    return [kernel for topic in TOPICS for kernel in find_kernels(importlib.import_module(f".{topic}", __package__))]
