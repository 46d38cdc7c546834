"""The seam's ops on the suite's kernels: what a chip with a Triton back end overrides, whatever launches them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import NotSupported
from ..ops import Ops
from ..ops.seam import COSTS
from .launch import Launcher


class Host(NamedTuple):
    """The function that starts an op's kernels: `module.function(launcher, *the op's arguments)`."""

    module: str
    function: str


HOSTS = {
    "linear": Host("matmul", "linear"), "grouped_linear": Host("matmul", "grouped_linear"),
    "embed": Host("rows", "embed"), "rms_norm": Host("normalize", "rms_norm"), "rope": Host("rope", "rope"),
    "layer_norm": Host("normalize", "layer_norm"), "norm_rope": Host("rope", "norm_rope"),
    "attention": Host("attend", "attention"), "grouped_attention": Host("grouped_attend", "grouped_attention"),
    "index_topk": Host("indexer", "index_topk"), "compress": Host("compress", "compress"),
    "route": Host("route", "route"), "mlp": Host("ops", "mlp"), "experts": Host("experts", "experts"),
    "add": Host("add", "add"), "hc_pre": Host("hyper", "hc_pre"), "hc_post": Host("hyper", "hc_post"),
    "hc_head": Host("hyper", "hc_head"), "cross_entropy": Host("loss", "cross_entropy"),
}

class KernelOps(Ops):
    """Ops by kernels through a launcher, differentiable where the definitions are; the others in plain torch.

    Tensors keep their dtype: bf16, fp16 or fp32, as the op's definition takes them. Where a host function raises one
    of `refusals` (by default NotSupported: a size or format that it does not take), the definition serves that call.
    `kernels()` says which op is which.
    """

    def __init__(self, launch: Launcher, refusals: tuple[type[Exception], ...] = (NotSupported,)) -> None:
        self.launch, self._refusals = launch, refusals
        self._refused: dict[str, str] = {}
        self._hosts = {name: load_host(name) for name in HOSTS}
        for name in COSTS:
            setattr(self, name, partial(self._call, name))

    def kernels(self) -> dict[str, str]:
        """Return for every op the function that starts its kernels, or `plain torch: ` and the reason.

        An op that was refused a call says so, with the last reason.
        """
        found = {}
        for name in COSTS:
            host = HOSTS.get(name)
            found[name] = "plain torch: it has no kernel" if host is None else f"{host.module}.{host.function}"
            if name in self._refused:
                found[name] += f"; some calls in plain torch: {self._refused[name]}"
        return found

    def orthogonalize(self, stack_BMN: Tensor) -> Tensor:
        """Muon's orthogonalisation, its products in bf16 as the publisher's."""
        from . import muon

        return muon.orthogonalize(self.launch, stack_BMN)

    def attempt(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Return an op's result by its kernels, or NotImplemented where it has none for these arguments."""
        if name not in self._hosts:
            return NotImplemented
        try:
            return self._hosts[name](self.launch, *arguments, **named)
        except self._refusals as error:
            self._refused[name] = str(error)
            return NotImplemented

    def _call(self, name: str, *arguments: Any, **named: Any) -> Any:
        result = self.attempt(name, *arguments, **named)
        return getattr(Ops, name)(*arguments, **named) if result is NotImplemented else result


def load_host(name: str) -> Callable[..., Any]:
    """Return the host function of an op of `HOSTS`. Raises NotSupported where triton is not installed."""
    check_triton()
    module, function = HOSTS[name]
    return getattr(importlib.import_module(f".{module}", __package__), function)


def check_triton() -> None:
    """Raise NotSupported that says what to install where there is no triton."""
    if importlib.util.find_spec("triton") is None:
        raise NotSupported("kernels need triton, which is not installed: pip install triton for NVIDIA, "
                           "pip install 'anychip[ascend]' for Ascend")


def mlp(launch: Launcher, x_Td: Tensor, w1_Fd: Tensor, w3_Fd: Tensor, w2_dF: Tensor, limit: float) -> Tensor:
    """`ops.mlp` by the kernels of its parts: two products beside each other, the clamped SwiGLU, a product."""
    from .matmul import linear
    from .swiglu import swiglu

    gate_up = torch.cat((linear(launch, x_Td, w1_Fd), linear(launch, x_Td, w3_Fd)), -1)
    return linear(launch, swiglu(launch, gate_up, limit), w2_dF)
