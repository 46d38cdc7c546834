"""The seam's ops on an Ascend NPU: torch_npu's fused operators where they equal the definitions, no hidden waiting.

A fused operator is used where its documented formula is the definition's, in fp32 inside, on Atlas A2 (910B) and A3
(910C); pages under docs/zh/custom_APIs/torch_npu of https://gitcode.com/ascend/op-plugin, read 2026-11-24:

| operator | used | why |
| --- | --- | --- |
| npu_rms_norm | yes, fp32 weight | the definition; where a 16-bit weight is rounded is not documented |
| npu_rotary_mul, interleave | of last neighbours, in fp32 | `x cos + rotate(x) sin`; 16-bit rounding not documented |
| npu_clipped_swiglu | no gradients, in fp32 | alpha 1, bias 0, halves: the definition; it has no derivative |
| npu_grouped_matmul | yes, forward and backward | one product an expert, group sizes on the device |
| npu_swiglu | no | no clamp |
| npu_moe_gating_top_k | no | scores by softmax or sigmoid; V4's are sqrt(softplus) |
| npu_sparse_flash_attention | no | 16 bit, 512 + 64 channels, and no sink on A2 and A3 |
| npu_lightning_indexer | no | 16 bit, 128 channels, order of equal scores not documented |
| npu_cross_entropy_loss | no | a negative ignore_index means none; ours marks tokens without a target by -1 |
| npu_mhc_pre, npu_mhc_post, npu_mhc_sinkhorn | no | documented for the 950 alone; pre and post in 16 bit |

What the definitions read back from the device (experts that were hit, the indexer's rows) stays on the device here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.launch import Launcher
from ..kernels.ops import HOSTS, KernelOps
from ..ops import COSTS, Ops, Ranges
from ..ops import experts as definition

FUSED = {"rms_norm": "npu_rms_norm", "rope": "npu_rotary_mul", "norm_rope": "npu_rms_norm, npu_rotary_mul",
         "experts": "npu_grouped_matmul"}
_BLOCK = 64  # query tokens scored at once: the score tile is [64, entries]


class NpuOps(Ops):
    """Ops on a device of torch_npu. `clipped_swiglu`: whether the device has that operator (the 950 has not)."""

    def __init__(self, *, clipped_swiglu: bool = True) -> None:
        self._clipped_swiglu = clipped_swiglu

    def sources(self) -> dict[str, str]:
        """Return what runs each op: torch_npu's fused operators, or plain torch."""
        fused = dict(FUSED)
        if self._clipped_swiglu:
            fused |= {"mlp": "npu_clipped_swiglu without gradients",
                      "experts": "npu_grouped_matmul, npu_clipped_swiglu without gradients"}
        return {name: fused.get(name, "plain torch") for name in COSTS}

    def rms_norm(self, x: Tensor, weight_C: Tensor | None, eps: float) -> Tensor:  # type: ignore[override]
        gamma = x.new_ones(x.shape[-1], dtype=torch.float32) if weight_C is None else weight_C.float()
        out: Tensor = torch.ops.npu.npu_rms_norm(x, gamma, eps)[0]
        return out

    def rope(self, x: Tensor, cos_TR: Tensor, sin_TR: Tensor, *,  # type: ignore[override]
             inverse: bool = False, half: bool = False, first: bool = False) -> Tensor:
        if half or first:
            return Ops.rope(x, cos_TR, sin_TR, inverse=inverse, half=half, first=first)
        width = 2 * cos_TR.shape[-1]
        if not x.shape[0]:  # the operator's page promises nothing for empty tensors
            return x
        kept, rotated = x[..., :-width], x[..., -width:].float()
        turned = torch.ops.npu.npu_rotary_mul(
            rotated.reshape(1, x.shape[0], -1, width), _both(cos_TR), _both(-sin_TR if inverse else sin_TR),
            "interleave")
        return torch.cat((kept, turned.view_as(rotated).to(x.dtype)), -1)

    def norm_rope(self, x: Tensor, weight_C: Tensor | None, eps: float, cos_TR: Tensor,  # type: ignore[override]
                  sin_TR: Tensor, *, half: bool = False) -> Tensor:
        return self.rope(self.rms_norm(x, weight_C, eps), cos_TR, sin_TR, half=half)

    def mlp(self, x_Td: Tensor, w1_Fd: Tensor, w3_Fd: Tensor, w2_dF: Tensor,  # type: ignore[override]
            limit: float) -> Tensor:
        gate_up = torch.cat((F.linear(x_Td, w1_Fd), F.linear(x_Td, w3_Fd)), -1)
        return F.linear(self._swiglu(gate_up, limit), w2_dF)

    def experts(self, x_Td: Tensor, ids_TK: Tensor, weight_TK: Tensor,  # type: ignore[override]
                banks: tuple[Tensor, Tensor], limit: float) -> Tensor:
        """As the definition, with all tokens sorted by expert; the sum over a token's experts is in their order."""
        (w13_EPd, w2_EdF), (tokens, topk) = banks, ids_TK.shape
        ids = ids_TK.flatten()
        order = ids.sort(stable=True).indices
        ones = torch.ones_like(ids, dtype=torch.float32)  # fp32 counts are exact up to 2^24 rows
        sizes_E = torch.zeros(w13_EPd.shape[0], device=ids.device).scatter_add(0, ids, ones).long()
        hidden = self._swiglu(_GroupedLinear.apply(x_Td[order // topk], w13_EPd, sizes_E), limit)
        hidden = (hidden.float() * weight_TK.flatten()[order, None]).to(x_Td.dtype)
        place = torch.empty_like(order).scatter(0, order, torch.arange(tokens * topk, device=ids.device))
        rows: Tensor = _GroupedLinear.apply(hidden, w2_EdF, sizes_E)
        return rows[place].view(tokens, topk, -1).float().sum(1).to(x_Td.dtype)

    def index_topk(self, query_THI: Tensor, weight_TH: Tensor, key_MI: Tensor, visible: Ranges,  # type: ignore[override]
                   topk: int) -> Tensor:
        """As the definition; every key is scored, for which rows are visible is known on the device alone."""
        with torch.no_grad():
            row_M = torch.arange(key_MI.shape[0], device=key_MI.device, dtype=torch.int32)
            blocks = [_best((query_THI[at: at + _BLOCK], weight_TH[at: at + _BLOCK], key_MI),
                            (visible.start[at: at + _BLOCK, None], visible.count[at: at + _BLOCK, None]), row_M, topk)
                      for at in range(0, query_THI.shape[0], _BLOCK)]
            return torch.cat(blocks) if blocks else query_THI.new_zeros((0, topk), dtype=torch.int32)

    def _swiglu(self, gate_up: Tensor, limit: float) -> Tensor:
        if not self._clipped_swiglu or (torch.is_grad_enabled() and gate_up.requires_grad):
            return definition.swiglu(gate_up, limit)
        out = torch.ops.npu.npu_clipped_swiglu(gate_up.float().contiguous(), alpha=1.0, limit=limit, bias=0.0,
                                               interleaved=False)
        return out.to(gate_up.dtype)  # type: ignore[no-any-return]


class NpuKernelOps(NpuOps):
    """The suite's Triton kernels where an op has one, and `NpuOps` for all else. Needs triton_ascend."""

    def __init__(self, launch: Launcher, *, clipped_swiglu: bool = True) -> None:
        super().__init__(clipped_swiglu=clipped_swiglu)
        self._kernels = KernelOps(launch)
        for name in HOSTS:
            setattr(self, name, getattr(self._kernels, name))

    def sources(self) -> dict[str, str]:
        return super().sources() | {name: kernel for name, kernel in self._kernels.kernels().items() if name in HOSTS}


def _both(angle_TR: Tensor) -> Tensor:
    """Give both channels of each pair its value: [T, R/2] to [1, T, 1, R]."""
    return torch.stack((angle_TR, angle_TR), -1).flatten(-2)[None, :, None]


def _best(scored: tuple[Tensor, Tensor, Tensor], visible: tuple[Tensor, Tensor], row_M: Tensor, topk: int) -> Tensor:
    (query_THI, weight_TH, key_MI), (start_T1, count_T1) = scored, visible
    seen_TM = (row_M >= start_T1) & (row_M < start_T1 + count_T1)
    dot = torch.einsum("thi,mi->thm", query_THI.float(), key_MI.float()).relu_()
    score = torch.einsum("thm,th->tm", dot, weight_TH.float()).masked_fill(~seen_TM, float("-inf"))
    order = score.sort(dim=-1, descending=True, stable=True).indices[:, :topk]
    last = torch.iinfo(torch.int32).max
    kept = torch.where(seen_TM.gather(1, order), order.int(), last).sort(-1).values
    return F.pad(torch.where(kept == last, -1, kept).int(), (0, topk - kept.shape[1]), value=-1)


class _GroupedLinear(torch.autograd.Function):
    """x [R, I], rows sorted by group, times each group's weight [E, O, I] transposed; group sizes int64 [E]."""

    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_EOI: Tensor, sizes_E: Tensor) -> Tensor:
        ctx.save_for_backward(x_RI, weight_EOI, sizes_E)
        return _product(x_RI, weight_EOI.transpose(1, 2), sizes_E, axis=0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor, Tensor, None]:
        x_RI, weight_EOI, sizes_E = ctx.saved_tensors
        grad_RO = grad_RO.contiguous()
        return (_product(grad_RO, weight_EOI, sizes_E, axis=0), _product(grad_RO.t(), x_RI, sizes_E, axis=2), None)


def _product(left: Tensor, right: Tensor, sizes_E: Tensor, *, axis: int) -> Tensor:
    """`axis` 0: rows of `left` are grouped; 2: the inner dimension is (one [O, I] a group)."""
    split = 3 if axis == 2 else 2
    out: Tensor = torch.ops.npu.npu_grouped_matmul([left.contiguous() if axis == 0 else left], [right],
                                                   group_list=sizes_E, split_item=split, group_type=axis,
                                                   group_list_type=1)[0]
    return out
