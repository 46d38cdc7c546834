"""The device: tensors whose values lie in an ordinary host tensor, and the rules between every operator and it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from . import rules
from .cuda import Guard, guard_module
from .fused import define
from .module import NpuModule, torch_npu_modules

_COMPOSITES = ("CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
_MAKE = ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "full", "zeros", "ones",
         "eye", "eye.m", "linspace", "randperm", "randperm.generator", "rand", "randn", "randint", "randint.low",
         "scalar_tensor", "tril_indices", "triu_indices", "empty_quantized", "_efficientzerotensor")
# Views make new sizes and strides on any device; torch does not call these ones views.
_VIEWS = frozenset({"_unsafe_view", "_unsafe_split.Tensor", "unsafe_split.Tensor", "lift", "lift_fresh"})
_METADATA = frozenset({"resize_", "set_", "t_", "transpose_", "squeeze_", "unsqueeze_", "as_strided_", "swapaxes_"})
_NPU = torch.device("privateuseone", 0)


class NpuTensor(torch.Tensor):
    """A tensor of the device `npu`. `host` holds its values, with the same sizes and strides."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> NpuTensor:
        made: NpuTensor = torch.Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype, device=_NPU)
        made.host = host
        return made

    def __repr__(self, **_: Any) -> str:  # printing values would copy them
        return f"NpuTensor({list(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        rules.refuse("implicit copy to the host by Tensor.tolist", "it waits for the device; say .cpu() first")

    def numpy(self, **_: Any) -> Any:
        rules.refuse("implicit copy to the host by Tensor.numpy", "it waits for the device; say .cpu() first")

    __array__ = numpy

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


_listed = rules.listed()


def call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operator by the rules: on the host's tensors where torch_npu has it, else as its composite's parts."""
    name = func.name().removeprefix("aten::")
    if name in ("_to_copy", "copy_"):
        return _copy(func, args, kwargs)
    _check(name, args, kwargs)
    if name not in _listed and not func.is_view and name not in _VIEWS:
        for key in _COMPOSITES:
            if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
                return _whole(func, func._op_dk(getattr(torch._C.DispatchKey, key), *args, **kwargs))
        rules.refuse(f"operator {func.name()}", f"torch_npu {rules.TORCH_NPU} has none on the device: it would run on "
                     "the host")
    if name in _METADATA:
        raise NotImplementedError(f"the stand-in cannot change a tensor's sizes in place ({name})")
    rules.log.operators[name] += 1
    if func.is_view or name in _VIEWS:  # a view is an inference tensor where its base is one
        with torch.inference_mode(_tensors(args)[0].is_inference()):
            return _run(func, args, kwargs)
    return _run(func, args, kwargs)


def _check(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    base = name.split(".")[0]
    if not (name == "repeat_interleave.Tensor" and kwargs.get("output_size") is not None):
        rules.check_read(name if name in rules.READS else base)
    if kwargs.get("dtype") is not None:
        rules.check_dtype(kwargs["dtype"], name)
    if base in ("index", "index_put", "index_put_", "_index_put_impl_"):
        _check_indices(name, args)
    elif kwargs.get("device") is None:
        for tensor in _tensors((args, kwargs)):
            if not isinstance(tensor, NpuTensor) and tensor.dim():
                raise RuntimeError(f"Expected all tensors to be on the same device, but found npu:0 and "
                                   f"{tensor.device} ({name})")


def _check_indices(name: str, args: Any) -> None:
    for index in args[1]:
        if index is None:
            continue
        if not isinstance(index, NpuTensor):
            rules.refuse(f"index on the host in {name}", "each call would copy it to the device")
        whole = name != "index.Tensor" and args[2].numel() == 1  # one value under a mask: masked_fill, no read
        if index.dtype in (torch.bool, torch.uint8) and not whole:
            rules.refuse(f"implicit copy to the host by {name} with a mask", "its size is decided on the host")


def _copy(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Copies between and within devices. To the host: only said aloud."""
    source, target = (args[1], args[0]) if func.name() == "aten::copy_" else (args[0], None)
    from_npu = isinstance(source, NpuTensor)
    device = kwargs.get("device") or source.device
    to_npu = isinstance(target, NpuTensor) if target is not None else device.type == "npu"
    if to_npu or from_npu:
        if to_npu:
            rules.check_dtype(kwargs.get("dtype") or (source if target is None else target).dtype, func.name())
        if from_npu and not to_npu:
            rules.note_copy("copy")
    rules.log.operators[func.name().removeprefix("aten::")] += 1
    if target is not None:
        (target.host if to_npu else target).copy_(source.host if from_npu else source)
        return target
    host = func(source.host if from_npu else source, **{**kwargs, "device": torch.device("cpu")})
    return NpuTensor(host) if to_npu else host


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the tensors' host values; results that are an argument stay that very tensor."""
    given = {id(t.host): t for t in _tensors((args, kwargs)) if isinstance(t, NpuTensor)}
    sizes = {id(t): t.host.shape for t in given.values()}
    args, kwargs = _map((args, kwargs), lambda t: t.host if isinstance(t, NpuTensor) else t)
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = func(*args, **kwargs)
    for tensor in given.values():
        if tensor.host.shape != sizes[id(tensor)]:
            raise NotImplementedError(f"the stand-in cannot resize a tensor ({func.name()})")

    def give(host: torch.Tensor) -> torch.Tensor:
        if id(host) in given:
            return given[id(host)]
        rules.check_dtype(host.dtype, func.name())
        return NpuTensor(host)

    return _map(result, give)


def _whole(func: Any, result: Any) -> Any:
    """Check that a composite's results have values: its kernel may have made a bare tensor in C++."""
    for tensor in _tensors(result):
        if tensor.device.type == "npu" and not isinstance(tensor, NpuTensor):
            raise NotImplementedError(f"the stand-in must run {func.name()} as a view or as a whole")
    return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    """Return the tensors in nested tuples, lists and dicts: all that operators take and give."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, tuple | list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _map(tree: Any, change: Any) -> Any:
    """Return the same nesting with every tensor changed."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {name: _map(part, change) for name, part in tree.items()}
    return type(tree)(_map(part, change) for part in tree) if type(tree) in (tuple, list) else tree


def install() -> NpuModule:
    """Register the device, its operators, a `torch_npu` module and the guards, once a process."""
    module = NpuModule()
    _setup_privateuseone_for_python_backend("npu", backend_module=module)
    library = torch.library.Library("aten", "IMPL")
    for name in _MAKE:
        packet, _, overload = name.partition(".")
        func = getattr(getattr(torch.ops.aten, packet), overload or "default")
        if name in _listed:
            library.impl(name, lambda *a, _func=func, **k: call(_func, a, k), "PrivateUse1")
    # torch.tensor(values, device=...) copies below the Python key, where only the backend's own copy is asked.
    library.impl("_copy_from", lambda self, to, non_blocking=False: _copy(torch.ops.aten.copy_.default, (to, self), {}),
                 "PrivateUse1")
    module.keep += [library, *define()]
    torch_npu_modules(module)
    guard_module(torch.cuda)
    Guard().__enter__()
    _watch_passes()
    return module


def _watch_passes() -> None:
    """Note when a V4 model's pass begins and ends, failed passes too."""
    from anychip.model import Transformer

    forward = Transformer.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        rules.enter_pass()
        try:
            return forward(*args, **kwargs)
        finally:
            rules.leave_pass()

    Transformer.forward = watched  # type: ignore[method-assign]
