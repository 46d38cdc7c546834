"""mHC on kernels: `ops.hc_pre`, `ops.hc_post` and `ops.hc_head` with their gradients.

post [T, n] and comb [T, n, n] are returned as views of planes [n, T] and [n*n, T]; `hc_post` takes any layout and
copies only what is none of these. Shape suffixes: T tokens, n streams, d hidden, m = 2n + n*n mixing logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import NotSupported
from ..ops import HyperRule, HyperWeights
from .grid import TILE, Args, power_of_2, programs, tile_rows
from .hyper_mix import TOKENS, hyper_gates, hyper_mix_backward, hyper_mix_forward
from .hyper_streams import hyper_collapse, hyper_dots, hyper_mix_streams, hyper_norm, hyper_pre_backward
from .launch import Launcher
from .matmul import product


def hc_pre(
    launch: Launcher, streams_Tnd: Tensor, weights: HyperWeights, rule: HyperRule
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sub-layer's input [T, d], and post [T, n] and comb [T, n, n] in fp32; differentiable.

    Raises NotSupported where there are not four streams.
    """
    n = _streams(streams_Tnd)
    x, post, comb = _Pre.apply(launch, rule, streams_Tnd, *weights)
    return x, post.t(), comb.view(n, n, -1).permute(2, 0, 1)


def hc_post(launch: Launcher, y_Td: Tensor, streams_Tnd: Tensor, post_Tn: Tensor, comb_Tnn: Tensor) -> Tensor:
    """Return the new streams post_k * y + sum_j comb[j, k] X_j [T, n, d]; differentiable in all four."""
    _streams(streams_Tnd)
    out: Tensor = _Post.apply(launch, y_Td, streams_Tnd, post_Tn.t(), comb_Tnn.permute(1, 2, 0).flatten(0, 1))
    return out


def hc_head(launch: Launcher, streams_Tnd: Tensor, weights: HyperWeights, rule: HyperRule) -> Tensor:
    """Collapse the streams into one [T, d] by sigmoid weights; weights are fn [n, n*d], base [n], scale [1]."""
    _streams(streams_Tnd)
    out: Tensor = _Head.apply(launch, rule, streams_Tnd, *weights)
    return out


class _Pre(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launcher, rule: HyperRule, streams: Tensor, fn: Tensor, base: Tensor,
                scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        streams, fn = streams.contiguous(), fn.contiguous()
        tokens, n, _ = streams.shape
        proj, rstd = _logits(launch, streams, fn, rule.norm_eps)
        keep = any(ctx.needs_input_grad)
        pre, post, comb = (proj.new_empty(rows, tokens) for rows in (n, n, n * n))
        sums = proj.new_empty(2 * rule.sinkhorn_iters - 1, n, tokens) if keep else proj
        args: Args = {"proj": proj, "rstd": rstd, "scale": scale, "base": base, "pre": pre, "post": post, "comb": comb,
                      "sums": sums, "tokens": tokens, "eps": rule.eps}
        constants = {"S": n, "ITERATIONS": rule.sinkhorn_iters, "TOKENS": TOKENS, "KEEP": keep}
        launch(hyper_mix_forward, _token_grid(launch, tokens), args, constants)
        ctx.launch, ctx.rule = launch, rule
        ctx.save_for_backward(streams, fn, base, scale, proj, rstd, pre, comb, sums)
        return _collapse(launch, streams, pre), post, comb

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        streams, fn, base, scale, proj, rstd, pre, comb, sums = ctx.saved_tensors
        launch, (tokens, n, _) = ctx.launch, streams.shape
        dx, dpost, dcomb = (g.contiguous() for g in grads)
        dlogit, dproj, drstd = torch.empty_like(proj), torch.empty_like(proj), torch.empty_like(rstd)
        args: Args = {"proj": proj, "rstd": rstd, "scale": scale, "base": base, "comb": comb, "sums": sums,
                      "dpre": _dots(launch, dx[:, None], streams), "dpost": dpost, "dcomb": dcomb, "dlogit": dlogit,
                      "dproj": dproj, "drstd": drstd, "tokens": tokens}
        constants = {"S": n, "ITERATIONS": ctx.rule.sinkhorn_iters, "TOKENS": TOKENS}
        launch(hyper_mix_backward, _token_grid(launch, tokens), args, constants)
        dstreams, dfn = _through_logits(launch, (dx, streams, fn, pre), dproj, drstd * rstd**3)
        dscale = (dlogit * proj * rstd).sum(1).split((n, n, n * n))
        return None, None, dstreams, dfn, dlogit.sum(1), torch.stack([part.sum() for part in dscale])


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launcher, rule: HyperRule, streams: Tensor, fn: Tensor, base: Tensor,
                scale: Tensor) -> Tensor:
        streams, fn = streams.contiguous(), fn.contiguous()
        tokens, n, _ = streams.shape
        proj, rstd = _logits(launch, streams, fn, rule.norm_eps)
        pre = proj.new_empty(n, tokens)
        args: Args = {"proj": proj, "rstd": rstd, "scale": scale, "base": base, "pre": pre, "tokens": tokens,
                      "eps": rule.eps}
        launch(hyper_gates, _token_grid(launch, tokens), args, {"S": n, "TOKENS": TOKENS})
        ctx.launch, ctx.rule = launch, rule
        ctx.save_for_backward(streams, fn, scale, proj, rstd, pre)
        return _collapse(launch, streams, pre)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        streams, fn, scale, proj, rstd, pre = ctx.saved_tensors
        dx, gate = grads[0].contiguous(), pre - ctx.rule.eps
        dlogit = _dots(ctx.launch, dx[:, None], streams) * gate * (1 - gate)
        dmixed = dlogit * scale
        dstreams, dfn = _through_logits(ctx.launch, (dx, streams, fn, pre), dmixed * rstd,
                                        (dmixed * proj).sum(0) * rstd**3)
        return None, None, dstreams, dfn, dlogit.sum(1), (dlogit * proj * rstd).sum().view(1)


class _Post(torch.autograd.Function):
    """Coefficients in planes: post [n, T], comb [n*n, T]."""

    @staticmethod
    def forward(ctx: Any, launch: Launcher, y: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        y, streams, post, comb = (t.contiguous() for t in (y, streams, post, comb))
        ctx.launch = launch
        ctx.save_for_backward(y, streams, post, comb)
        return _mix_streams(launch, y, streams, post, comb)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, streams, post, comb = ctx.saved_tensors
        launch, n, grad = ctx.launch, streams.shape[1], grads[0].contiguous()
        turned = comb.view(n, n, -1).transpose(0, 1).reshape_as(comb)
        dstreams = _mix_streams(launch, y, grad, torch.zeros_like(post), turned)
        return (None, _collapse(launch, grad, post), dstreams, _dots(launch, y[:, None], grad),
                _dots(launch, streams, grad))


def _streams(streams_Tnd: Tensor) -> int:
    n = int(streams_Tnd.shape[1])
    if n != 4:
        raise NotSupported(f"mHC's kernels are for hc_mult=4, as every published model has; it is {n}: use the "
                           "reference ops")
    return n


def _token_grid(launch: Launcher, tokens: int) -> tuple[int]:
    return programs(launch, -(-tokens // TOKENS))


def _logits(launch: Launcher, streams: Tensor, fn: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """proj [m, T] = fn @ vec(X) and 1 / rms(vec(X)) [T], fp32."""
    tokens, width = streams.shape[0], fn.shape[1]
    rstd = torch.empty(tokens, device=streams.device)
    block = min(power_of_2(width), TILE)
    constants = {"N": width, "ROWS": tile_rows(tokens, block), "BLOCK": block}
    args: Args = {"x": streams, "rstd": rstd, "rows": tokens, "eps": eps}
    launch(hyper_norm, programs(launch, -(-tokens // constants["ROWS"])), args, constants)
    proj = rstd.new_empty(1, fn.shape[0], tokens)
    return product(launch, fn[None], streams.flatten(1).float()[None], proj, "nt")[0], rstd


def _through_logits(
    launch: Launcher, saved: tuple[Tensor, Tensor, Tensor, Tensor], dproj: Tensor, drms: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the streams and of fn; saved = (dx, streams, fn, pre), drms [T] = drstd / rms^3."""
    dx, streams, fn, pre = saved
    flat = streams.flatten(1)
    through = product(launch, dproj[None], fn[None], dproj.new_empty(1, *flat.shape), "tn")[0]
    dfn = product(launch, dproj[None], flat.float()[None], torch.empty_like(fn)[None], "nn")[0]
    dstreams = torch.empty_like(streams)
    args: Args = {"dx": dx, "x": streams, "through": through, "pre": pre, "pull": drms / -flat.shape[1],
                  "out": dstreams, "tokens": streams.shape[0]}
    grid, constants = _stream_tiles(launch, streams)
    launch(hyper_pre_backward, grid, args, constants)
    return dstreams, dfn


def _stream_tiles(launch: Launcher, streams: Tensor) -> tuple[tuple[int], dict[str, int]]:
    tokens, n, width = streams.shape
    block = min(power_of_2(width), TILE // 4)
    rows = tile_rows(tokens, block)
    tiles = -(-tokens // rows) * -(-width // block)
    return programs(launch, tiles), {"D": width, "S": n, "TOKENS": rows, "BLOCK": block}


def _collapse(launch: Launcher, streams: Tensor, weight: Tensor) -> Tensor:
    tokens, _, width = streams.shape
    out = streams.new_empty(tokens, width)
    grid, constants = _stream_tiles(launch, streams)
    launch(hyper_collapse, grid, {"x": streams, "pre": weight, "out": out, "tokens": tokens}, constants)
    return out


def _mix_streams(launch: Launcher, y: Tensor, streams: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    out = torch.empty_like(streams)
    args: Args = {"y": y, "x": streams, "post": post, "comb": comb, "out": out, "tokens": streams.shape[0]}
    tokens, _, width = streams.shape
    block = min(power_of_2(width), TILE // 2)
    rows = tile_rows(tokens, block, TILE // 2)  # one token of a real model: its coefficients are single numbers
    # All channels of a tile where tokens alone give every core work: coefficients are loaded once.
    span = block if tokens < rows * launch.num_vector else -(-width // block) * block
    constants = {"D": width, "TOKENS": rows, "BLOCK": block, "SPAN": span}
    grid = programs(launch, -(-tokens // rows) * -(-width // span))
    launch(hyper_mix_streams, grid, args, constants)
    return out


def _dots(launch: Launcher, a_TAd: Tensor, b_T4d: Tensor) -> Tensor:
    """Each token's dots of a's and b's streams: fp32 [A*4, T]."""
    tokens, left, width = a_TAd.shape
    block = min(power_of_2(width), TILE // 2)
    rows = tile_rows(tokens, block, TILE // 2)
    out = torch.empty(left * 4, tokens, device=a_TAd.device)
    constants = {"D": width, "A": left, "TOKENS": rows, "BLOCK": block}
    args: Args = {"a": a_TAd.contiguous(), "b": b_T4d, "out": out, "tokens": tokens}
    launch(hyper_dots, programs(launch, -(-tokens // rows) * left), args, constants)
    return out
