"""torch_npu's fused operators that anychip calls: their schemas, documented formulas and documented limits.

Schemas are those of torch_npu 2.13.0's library (PyPI wheel, read 2026-11-24). Formulas and limits are those of the
operators' pages under docs/zh/custom_APIs/torch_npu of https://gitcode.com/ascend/op-plugin (read 2026-11-24) for
Atlas A2 and A3. Operators without a derivative in torch_npu's derivatives.yaml have none here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import rules

SCHEMAS = {
    "npu_rms_norm": "(Tensor input, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)",
    "npu_rotary_mul": '(Tensor input, Tensor r1, Tensor r2, str rotary_mode="half", Tensor? rotate=None) -> Tensor',
    "npu_clipped_swiglu": "(Tensor x, *, Tensor? group_index=None, int dim=-1, float alpha=1.702, float limit=7., "
                          "float bias=1., bool interleaved=True) -> Tensor",
    "npu_grouped_matmul": "(Tensor[] x, Tensor[] weight, *, Tensor[]? bias=None, Tensor[]? scale=None, "
                          "Tensor[]? offset=None, Tensor[]? antiquant_scale=None, Tensor[]? antiquant_offset=None, "
                          "Tensor[]? per_token_scale=None, Tensor? group_list=None, Tensor[]? activation_input=None, "
                          "Tensor[]? activation_quant_scale=None, Tensor[]? activation_quant_offset=None, "
                          "int? split_item=0, int? group_type=None, int? group_list_type=0, int? act_type=0, "
                          "int[]? tuning_config=None, int? output_dtype=None, int? x_dtype=None, "
                          "int? weight_dtype=None, int? scale_dtype=None, int? per_token_scale_dtype=None) -> Tensor[]",
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def _need(name: str, holds: bool, limit: str) -> None:
    if not holds:
        rules.refuse(f"torch_npu.{name}", f"outside its documented limits: {limit}")


def npu_rms_norm(input: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) * gamma over gamma's dimensions; the second result is 1 / rms."""
    pairs = {(torch.float16, torch.float32), (torch.bfloat16, torch.float32), *((kind, kind) for kind in _FLOATS)}
    _need("npu_rms_norm", (input.dtype, gamma.dtype) in pairs, f"x {input.dtype} with gamma {gamma.dtype}")
    _need("npu_rms_norm", input.dim() >= 2 and gamma.shape == input.shape[input.dim() - gamma.dim():],
          f"gamma {list(gamma.shape)} for x {list(input.shape)}")
    x = input.float()
    rstd = torch.rsqrt(x.square().mean(tuple(range(-gamma.dim(), 0)), keepdim=True) + epsilon)
    return (x * rstd * gamma.float()).to(input.dtype), rstd


def npu_rotary_mul(input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half",
                   rotate: Tensor | None = None) -> Tensor:
    """x * cos + rotate(x) * sin; `interleave` pairs neighbours, and takes BSND with 1S1D only, among others."""
    name = "npu_rotary_mul"
    _need(name, all(t.dtype in _FLOATS and t.dim() == 4 for t in (input, r1, r2)), "4-D fp16, bf16 or fp32")
    _need(name, rotary_mode == "interleave" and rotate is None, "the stand-in has rotary_mode='interleave' only")
    batch, tokens, heads, width = input.shape
    _need(name, width < 896 and width % 2 == 0 and batch * heads < 1000, f"D {width} < 896, B*N {batch * heads} < 1000")
    _need(name, r1.shape == r2.shape == (1, tokens, 1, width), f"r1 and r2 1S1D, found {list(r1.shape)}")
    turned = torch.stack((-input[..., 1::2], input[..., ::2]), -1).flatten(-2)
    return input * r1 + turned * r2


def npu_clipped_swiglu(x: Tensor, *, group_index: Tensor | None = None, dim: int = -1, alpha: float = 1.702,
                       limit: float = 7.0, bias: float = 1.0, interleaved: bool = True) -> Tensor:
    """a = min(a, limit), b = clamp(b, -limit, limit); a * sigmoid(alpha a) * (b + bias)."""
    name = "npu_clipped_swiglu"
    _no_gradient(name, x)
    _need(name, x.dtype in _FLOATS and x.is_contiguous() and x.dim() > 1, "a contiguous fp16, bf16 or fp32 matrix")
    _need(name, group_index is None and not interleaved and dim == -1, "the stand-in has halves of the last dimension")
    a, b = x.chunk(2, -1)
    a, b = a.clamp(max=limit), b.clamp(-limit, limit)
    return a * torch.sigmoid(alpha * a) * (b + bias)


def npu_grouped_matmul(x: list[Tensor], weight: list[Tensor], *, group_list: Tensor | None = None,
                       split_item: int = 0, group_type: int | None = None, group_list_type: int = 0,
                       **rest: Any) -> list[Tensor]:
    """One product a group: `group_type` 0 splits the rows of x [M, K] (weight [E, K, N]), 2 the inner dimension."""
    name = "npu_grouped_matmul"
    _no_gradient(name, *x, *weight)
    _need(name, not any(value is not None and value != 0 for value in rest.values()), f"stand-in without {rest}")
    _need(name, len(x) == len(weight) == 1 and split_item in (2, 3), "one x, one weight, split_item 2 or 3")
    _need(name, group_list is not None and group_list.dtype == torch.int64 and group_list_type == 1
          and 1 < group_list.numel() <= 1024, "2 to 1024 groups, int64 sizes, group_list_type 1")
    _need(name, x[0].dtype == weight[0].dtype and x[0].dtype in _FLOATS, f"{x[0].dtype} with {weight[0].dtype}")
    _need(name, max(x[0].shape[-1], weight[0].shape[-1]) < 65536, "inner dimensions below 65536")
    left, right, sizes = x[0].host, weight[0].host, group_list.host.tolist()  # type: ignore[union-attr]
    axis = {0: 0, 2: 1}.get(group_type if group_type is not None else -1)
    _need(name, axis is not None and sum(sizes) == left.shape[axis or 0], f"group sizes {sizes} of {list(left.shape)}")
    if axis == 0:
        _need(name, left.is_contiguous(), "x is not transposed for group_type 0")
        _need(name, right.shape[:2] == (len(sizes), left.shape[1]), f"weight {list(right.shape)}")
        parts = [part @ right[i] for i, part in enumerate(left.split(sizes))]
        return [type(x[0])(torch.cat(parts))]  # type: ignore[call-arg]
    pairs = zip(left.split(sizes, 1), right.split(sizes), strict=True)
    return [type(x[0])(torch.stack([a @ b for a, b in pairs]))]  # type: ignore[call-arg]


def _no_gradient(name: str, *tensors: Tensor) -> None:
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    _need(name, not wanted, "torch_npu has no derivative of it; its result would be cut off from the graph")


def define() -> list[torch.library.Library]:
    """Define the operators in torch.ops.npu. Returns what keeps them registered."""
    library = torch.library.Library("npu", "DEF")
    for name in ("npu_rms_norm", "npu_rotary_mul", "npu_clipped_swiglu", "npu_grouped_matmul"):
        library.define(name + SCHEMAS[name])
        library.impl(name, _counted(name, globals()[name]), "CompositeImplicitAutograd")
    return [library]


def _counted(name: str, function: Any) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        rules.log.operators[name] += 1
        return function(*args, **kwargs)

    return counted
