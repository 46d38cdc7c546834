"""`torch.npu` and a `torch_npu` to import: the names that torch and anychip call, as torch_npu 2.13.0 has them."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from . import rules

NAME = "Ascend910B2"


class NpuModule:
    """The device module. It stands for one 910B2 with 64 GB."""

    def __init__(self) -> None:
        self.keep: list[Any] = []  # registrations end with the objects that made them
        self.matmul, self.conv = SimpleNamespace(allow_hf32=False), SimpleNamespace(allow_hf32=True)
        self.utils = SimpleNamespace(get_cann_version=lambda module="CANN": {"CANN": "9.1.0"}.get(module, ""))
        self.synchronized = 0
        self.jit_compile = True

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _lazy_init(self) -> None:
        pass

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def device(self, index: Any) -> Any:
        return nullcontext()

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> None:
        pass  # the host's generator draws, and torch seeds that one itself

    manual_seed_all = manual_seed

    def get_rng_state(self, device: Any = "npu") -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = "npu") -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def synchronize(self, device: Any = None) -> None:
        self.synchronized += 1

    def get_device_name(self, device: Any = None) -> str:
        return NAME

    def get_device_properties(self, device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(name=NAME, cube_core_num=24, vector_core_num=48)

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return 60 * 2**30, 64 * 2**30

    def max_memory_allocated(self, device: Any = None) -> int:
        return 0

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        pass

    def set_compile_mode(self, jit_compile: bool = False) -> None:
        self.jit_compile = jit_compile


def torch_npu_modules(module: NpuModule) -> None:
    """Put a `torch_npu` where `import torch_npu` finds it."""
    made: Any = ModuleType("torch_npu")
    made.__spec__ = ModuleSpec("torch_npu", None)
    made.__version__, made.npu = rules.TORCH_NPU, module
    sys.modules["torch_npu"] = made
