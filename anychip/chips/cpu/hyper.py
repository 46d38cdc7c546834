"""mHC on the CPU: one pass over the streams each way, Sinkhorn on eight tokens at once, exact gradients."""

from __future__ import annotations

import weakref
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from ...errors import NotSupported
from ...ops.hyper import HyperRule, HyperWeights
from .bind import bind, refuse, wants_grad
from .kernels import load_library

_F32 = torch.float32
_MAX_STREAMS, _MAX_ITERS = 4, 64  # what the kernels are built for
_NO_RUN = -1  # no run of autograd has this number


@cache
def _kernels() -> SimpleNamespace:
    return bind(load_library(), {
        "threads": "", "hc_pre": "illiff" + "p" * 9, "hc_pre_back": "illiff" + "p" * 14 + "i",
        "hc_head": "illff" + "p" * 7, "hc_head_back": "illff" + "p" * 12,
        "hc_post": "illppppp", "hc_post_back": "ill" + "p" * 9,
    })  # fmt: skip


def hc_pre(streams_Tnd: Tensor, weights: HyperWeights, rule: HyperRule) -> tuple[Tensor, Tensor, Tensor]:
    """`ops.hyper.hc_pre` in one pass. Raises NotSupported for other formats than fp32, or for shapes it lacks."""
    fn, base, scale = weights
    if not (streams_Tnd.dtype is fn.dtype is base.dtype is scale.dtype is _F32):
        refuse("hc_pre", streams_Tnd, *weights)
    if wants_grad(streams_Tnd, fn, base, scale):
        out: tuple[Tensor, Tensor, Tensor] = _Pre.apply(streams_Tnd, fn, base, scale, rule)
        return out
    return _pre(streams_Tnd.contiguous(), weights, rule, 0, 0)


def _pre(streams: Tensor, weights: HyperWeights, rule: HyperRule, mix: int, rms: int) -> tuple[Tensor, Tensor, Tensor]:
    tokens, n, d = streams.shape
    if n > _MAX_STREAMS or d & 7 or rule.sinkhorn_iters > _MAX_ITERS:
        _misfit(n, d, rule)
    fn, base, scale = (t.contiguous() for t in weights)
    out, post = torch.empty(tokens, d), torch.empty(tokens, n)
    comb = torch.empty(tokens, n, n)
    _kernels().hc_pre(
        n, tokens, d, rule.sinkhorn_iters, rule.eps, rule.norm_eps, streams.data_ptr(), fn.data_ptr(), base.data_ptr(),
        scale.data_ptr(), out.data_ptr(), post.data_ptr(), comb.data_ptr(), mix, rms,
    )  # fmt: skip
    return out, post, comb


class _Pre(torch.autograd.Function):
    """hc_pre with its gradients; keeps the streams, the mixing products and the norms.

    `joined` is the gradient of the streams that came through the site's hc_post in a run of autograd, to which this
    run's backward adds its own in the same pass over memory.
    """

    @staticmethod
    def forward(ctx: Any, streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, rule: HyperRule) -> Any:
        streams, fn, base, scale = (t.contiguous() for t in (streams, fn, base, scale))
        mix, rms = torch.empty(streams.shape[0], fn.shape[0]), torch.empty(streams.shape[0])
        out = _pre(streams, HyperWeights(fn, base, scale), rule, mix.data_ptr(), rms.data_ptr())
        ctx.save_for_backward(streams, fn, base, scale, mix, rms)
        ctx.rule, ctx.source, ctx.joined = rule, weakref.ref(streams), (_NO_RUN, None)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        streams, fn, base, scale, mix, rms = ctx.saved_tensors
        rule: HyperRule = ctx.rule
        tokens, n, d = streams.shape
        dout, dpost, dcomb = (grad.contiguous() for grad in grads)
        made, parts = _gradients(streams, fn, base, scale)
        (run, joined), ctx.joined = ctx.joined, (_NO_RUN, None)
        joined = joined if run == torch._C._current_graph_task_id() else None
        made[0] = made[0] if joined is None else joined
        inputs = (streams, fn, base, scale, mix, rms, dout, dpost, dcomb)
        _kernels().hc_pre_back(
            n, tokens, d, rule.sinkhorn_iters, rule.eps, rule.norm_eps,
            *(t.data_ptr() for t in (*inputs, *made, parts)), int(joined is not None),
        )  # fmt: skip
        return (*made, None)


def hc_post(y_Td: Tensor, streams_Tnd: Tensor, post_Tn: Tensor, comb_Tnn: Tensor) -> Tensor:
    """`ops.hyper.hc_post` in one pass. Raises NotSupported for other formats than fp32, or for shapes it lacks."""
    if not (y_Td.dtype is streams_Tnd.dtype is post_Tn.dtype is comb_Tnn.dtype is _F32):
        refuse("hc_post", y_Td, streams_Tnd, post_Tn, comb_Tnn)
    if wants_grad(y_Td, streams_Tnd, post_Tn, comb_Tnn):
        out: Tensor = _Post.apply(y_Td, streams_Tnd, post_Tn, comb_Tnn, _site_of(streams_Tnd, post_Tn, comb_Tnn))
        return out
    return _post(y_Td.contiguous(), streams_Tnd.contiguous(), post_Tn.contiguous(), comb_Tnn.contiguous())


def _site_of(streams: Tensor, post: Tensor, comb: Tensor) -> Any:
    """Return the node of the hc_pre that made post and comb from these very streams, or None.

    Whatever needs the streams' gradient then runs that node after hc_post's own, so it can take both parts at once.
    """
    node = post.grad_fn
    if node is None or node is not comb.grad_fn or not isinstance(node, _Pre._backward_cls):  # type: ignore[attr-defined]
        return None
    source = cast(Any, node).source()
    return node if source is streams and streams.requires_grad else None


def _post(y: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    tokens, n, d = streams.shape
    if n > _MAX_STREAMS or d & 7:
        _misfit(n, d, None)
    out = torch.empty(tokens, n, d)
    _kernels().hc_post(
        n, tokens, d, y.data_ptr(), streams.data_ptr(), post.data_ptr(), comb.data_ptr(), out.data_ptr()
    )
    return out


class _Post(torch.autograd.Function):
    """hc_post with its gradients; keeps its inputs, and its site's hc_pre where that takes the streams' gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, streams: Tensor, post: Tensor, comb: Tensor, site: Any) -> Tensor:
        kept = tuple(t.contiguous() for t in (y, streams, post, comb))
        ctx.save_for_backward(*kept)
        ctx.site = site
        return _post(*kept)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        kept = ctx.saved_tensors
        tokens, n, d = kept[1].shape
        made = [torch.empty_like(t) for t in kept]
        dout = dout.contiguous()  # named: it must outlive the call
        _kernels().hc_post_back(n, tokens, d, *(t.data_ptr() for t in (dout, *kept, *made)))
        dy, dstreams, dpost, dcomb = made
        if ctx.site is None:
            return dy, dstreams, dpost, dcomb, None
        run = torch._C._current_graph_task_id()
        before, joined = ctx.site.joined
        ctx.site.joined = (run, dstreams if before != run or joined is None else joined + dstreams)
        return dy, None, dpost, dcomb, None


def hc_head(streams_Tnd: Tensor, weights: HyperWeights, rule: HyperRule) -> Tensor:
    """`ops.hyper.hc_head` in one pass. Raises NotSupported for other formats than fp32, or for shapes it lacks."""
    fn, base, scale = weights
    if not (streams_Tnd.dtype is fn.dtype is base.dtype is scale.dtype is _F32):
        refuse("hc_head", streams_Tnd, *weights)
    if wants_grad(streams_Tnd, fn, base, scale):
        out: Tensor = _Head.apply(streams_Tnd, fn, base, scale, rule)
        return out
    return _head(streams_Tnd.contiguous(), weights, rule, 0, 0)


def _head(streams: Tensor, weights: HyperWeights, rule: HyperRule, mix: int, rms: int) -> Tensor:
    tokens, n, d = streams.shape
    if n > _MAX_STREAMS or d & 7:
        _misfit(n, d, rule)
    fn, base, scale = (t.contiguous() for t in weights)
    out = torch.empty(tokens, d)
    _kernels().hc_head(
        n, tokens, d, rule.eps, rule.norm_eps, streams.data_ptr(), fn.data_ptr(), base.data_ptr(), scale.data_ptr(),
        out.data_ptr(), mix, rms,
    )  # fmt: skip
    return out


class _Head(torch.autograd.Function):
    """hc_head with its gradients; keeps the streams, the mixing products and the norms."""

    @staticmethod
    def forward(ctx: Any, streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, rule: HyperRule) -> Tensor:
        streams, fn, base, scale = (t.contiguous() for t in (streams, fn, base, scale))
        mix, rms = torch.empty(streams.shape[0], fn.shape[0]), torch.empty(streams.shape[0])
        out = _head(streams, HyperWeights(fn, base, scale), rule, mix.data_ptr(), rms.data_ptr())
        ctx.save_for_backward(streams, fn, base, scale, mix, rms)
        ctx.rule = rule
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        streams, fn, base, scale, mix, rms = ctx.saved_tensors
        tokens, n, d = streams.shape
        made, parts = _gradients(streams, fn, base, scale)
        inputs = (streams, fn, base, scale, mix, rms, dout.contiguous())
        _kernels().hc_head_back(
            n, tokens, d, ctx.rule.eps, ctx.rule.norm_eps, *(t.data_ptr() for t in (*inputs, *made, parts))
        )
        return (*made, None)


def _gradients(*inputs: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return room for each input's gradient, and scratch: each thread's sums of the last three, and fn re-ordered."""
    parts = torch.empty((_kernels().threads() + 1) * sum(t.numel() for t in inputs[1:]))
    return [torch.empty_like(t) for t in inputs], parts


def _misfit(n: int, d: int, rule: HyperRule | None) -> None:
    problems = [f"hc_mult={n} is above {_MAX_STREAMS}"] if n > _MAX_STREAMS else []
    if d & 7:
        problems.append(f"hidden_size={d} is no multiple of 8")
    if rule is not None and rule.sinkhorn_iters > _MAX_ITERS:
        problems.append(f"hc_sinkhorn_iters={rule.sinkhorn_iters} is above {_MAX_ITERS}")
    raise NotSupported(f"the cpu chip's mHC cannot run this shape: {'; '.join(problems)}; use cpu:reference")
