"""Inputs, grids and float64 references for the prototype's kernels (`benchmarks.virtual_ascend`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Case = tuple[dict[str, Any], tuple[int, ...], Callable[[dict[str, Any]], dict[str, Tensor]]]
BF16, I32, F64 = torch.bfloat16, torch.int32, torch.float64


def cases() -> dict[str, Callable[[torch.Generator], Case]]:
    """Kernel name -> function that makes its arguments, grid and reference."""
    return {name.removeprefix("_case_"): function for name, function in globals().items() if name.startswith("_case_")}


def _normal(random: torch.Generator, *shape: int, dtype: torch.dtype = BF16, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=random) * scale).to(dtype)


def _case_rmsnorm_fwd(random: torch.Generator) -> Case:
    def reference(a: dict[str, Any]) -> dict[str, Tensor]:
        rstd = torch.rsqrt(a["x"].pow(2).mean(1) + 1e-6)
        return {"y": a["x"] * rstd[:, None] * a["w"], "rstd": rstd}
    args = {"x": _normal(random, 64, 4000), "w": _normal(random, 4000), "y": torch.zeros(64, 4000, dtype=BF16),
            "rstd": torch.zeros(64), "N": 4000, "eps": 1e-6}
    return args, (64,), reference


def _case_rmsnorm_bwd(random: torch.Generator) -> Case:
    rows, n = 16, 2000

    def reference(a: dict[str, Any]) -> dict[str, Tensor]:
        x, slope = a["x"] * a["rstd"][:, None], a["dy"] * a["w"]
        along = (x * slope).sum(1, keepdim=True) / n
        return {"dx": (slope - x * along) * a["rstd"][:, None], "dw": (a["dy"] * x).reshape(2, 8, n).sum(1)}
    x = _normal(random, rows, n)
    args = {"dy": _normal(random, rows, n), "x": x, "w": _normal(random, n),
            "rstd": torch.rsqrt(x.float().pow(2).mean(1) + 1e-6), "dx": torch.zeros(rows, n, dtype=BF16),
            "dw": torch.zeros(2, n), "M": rows, "N": n}
    return args, (2,), reference


def _case_swiglu_clamp(random: torch.Generator) -> Case:
    wide = 3000

    def reference(a: dict[str, Any]) -> dict[str, Tensor]:
        gate, up = a["x"][:, :wide].clamp(max=7.0), a["x"][:, wide:].clamp(-7, 7)
        return {"y": gate * torch.sigmoid(gate) * up}
    args = {"x": _normal(random, 8, 2 * wide, scale=3), "y": torch.zeros(8, wide, dtype=BF16), "H": wide, "lim": 7.0}
    return args, (8, 2), reference


def _case_rope_half(random: torch.Generator) -> Case:
    tokens, heads = 40, 3

    def reference(a: dict[str, Any]) -> dict[str, Tensor]:
        y, p, q = torch.zeros_like(a["x"]), a["x"][..., 448:480], a["x"][..., 480:]
        cos, sin = a["cos"][:, None], a["sin"][:, None]
        y[..., 448:480], y[..., 480:] = p * cos - q * sin, p * sin + q * cos
        return {"y": y}
    angle = _normal(random, tokens, 32, dtype=torch.float32)
    args = {"x": _normal(random, tokens, heads, 512), "cos": angle.cos(), "sin": angle.sin(),
            "y": torch.zeros(tokens, heads, 512, dtype=BF16), "T": tokens, "H": heads}
    return args, (3, heads), reference


def _case_softmax_lse(random: torch.Generator) -> Case:
    args = {"x": _normal(random, 20, 1000, dtype=torch.float32, scale=3), "y": torch.zeros(20, 1000),
            "lse": torch.zeros(20), "M": 20, "N": 1000}
    return args, (3,), lambda a: {"y": a["x"].softmax(1), "lse": a["x"].logsumexp(1)}


def _case_cross_entropy(random: torch.Generator) -> Case:
    rows, vocabulary = 6, 10000

    def reference(a: dict[str, Any]) -> dict[str, Tensor]:
        label = a["lab"].long()[:, None]
        hot = torch.zeros_like(a["logits"]).scatter(1, label, 1.0)
        return {"loss": a["logits"].logsumexp(1) - a["logits"].gather(1, label)[:, 0],
                "dl": a["logits"].softmax(1) - hot}
    args = {"logits": _normal(random, rows, vocabulary, scale=2),
            "lab": torch.randint(0, vocabulary, (rows,), generator=random, dtype=I32), "loss": torch.zeros(rows),
            "dl": torch.zeros(rows, vocabulary, dtype=BF16), "V": vocabulary}
    return args, (rows,), reference


def _case_matmul(random: torch.Generator) -> Case:
    m, n, k = 200, 300, 100
    args = {"a": _normal(random, m, k), "b": _normal(random, k, n), "c": torch.zeros(m, n, dtype=BF16), "M": m, "N": n,
            "K": k}
    return args, (2, 3), lambda a: {"c": a["a"] @ a["b"]}


def _case_matmul_nt_persist(random: torch.Generator) -> Case:
    m, n, k = 300, 600, 700
    args = {"a": _normal(random, m, k), "b": _normal(random, n, k), "c": torch.zeros(m, n, dtype=BF16), "M": m, "N": n,
            "K": k}
    return args, (24,), lambda a: {"c": a["a"] @ a["b"].T}


def _case_grouped_matmul(random: torch.Generator) -> Case:
    n, k, bounds = 200, 300, [0, 100, 100, 350, 400]

    def reference(a: dict[str, Any]) -> dict[str, Tensor]:
        parts = zip(a["b"], bounds[:-1], bounds[1:], strict=True)
        return {"c": torch.cat([a["a"][start:end] @ b for b, start, end in parts])}
    args = {"a": _normal(random, 400, k), "b": _normal(random, 4, k, n), "c": torch.zeros(400, n, dtype=BF16),
            "off": torch.tensor(bounds, dtype=I32), "N": n, "K": k}
    return args, (4, 2), reference


def _case_flash_swa_sink(random: torch.Generator) -> Case:
    tokens, heads, dim, window = 300, 4, 128, 128

    def reference(a: dict[str, Any]) -> dict[str, Tensor]:
        scores = torch.einsum("thd,nd->htn", a["q"], a["k"]) * dim**-0.5
        at = torch.arange(tokens)
        seen = (at[None] <= at[:, None]) & (at[:, None] - at[None] < window)
        scores = scores.masked_fill(~seen, -1e30)
        lse = torch.logaddexp(scores.logsumexp(-1), a["sink"][:, None])
        weights = (scores - lse[..., None]).exp()
        return {"o": torch.einsum("htn,nd->thd", weights, a["v"]), "lse": lse.T}
    args = {"q": _normal(random, tokens, heads, dim), "k": _normal(random, tokens, dim),
            "v": _normal(random, tokens, dim), "o": torch.zeros(tokens, heads, dim, dtype=BF16),
            "lse": torch.zeros(tokens, heads), "sink": _normal(random, heads, dtype=torch.float32), "T": tokens,
            "H": heads, "scale": dim**-0.5}
    return args, (5, heads), reference


def _case_sparse_attn(random: torch.Generator) -> Case:
    tokens, heads, dim, top_k = 6, 64, 128, 192

    def reference(a: dict[str, Any]) -> dict[str, Tensor]:
        entries = a["kv"][a["idx"].long()]
        scores = torch.einsum("thd,tnd->thn", a["q"], entries) * dim**-0.5
        lse = torch.logaddexp(scores.logsumexp(-1), a["sink"][None])
        return {"o": torch.einsum("thn,tnd->thd", (scores - lse[..., None]).exp(), entries)}
    args = {"q": _normal(random, tokens, heads, dim), "kv": _normal(random, 500, dim),
            "idx": torch.randint(0, 500, (tokens, top_k), generator=random, dtype=I32),
            "o": torch.zeros(tokens, heads, dim, dtype=BF16), "sink": _normal(random, heads, dtype=torch.float32),
            "TOPK": top_k, "scale": dim**-0.5}
    return args, (tokens,), reference


def _sinkhorn(v: Tensor, rows: int, columns: int) -> Tensor:
    for _ in range(20):
        v = v / v.sum(columns, keepdim=True)
        v = v / v.sum(rows, keepdim=True)
    return v


def _case_sinkhorn4(random: torch.Generator) -> Case:
    args = {"x": _normal(random, 100, 4, 4, dtype=torch.float32), "y": torch.zeros(100, 4, 4), "T": 100}
    return args, (2,), lambda a: {"y": _sinkhorn((a["x"] - a["x"].amax(2, keepdim=True)).exp(), 1, 2)}


def _case_sinkhorn4_soa(random: torch.Generator) -> Case:
    args = {"x": _normal(random, 16, 1000, dtype=torch.float32), "y": torch.zeros(16, 1000), "T": 1000}
    return args, (2,), lambda a: {"y": _sinkhorn(a["x"].exp().reshape(4, 4, -1), 0, 1).reshape(16, -1)}


def _case_topk_iter(random: torch.Generator) -> Case:
    def reference(a: dict[str, Any]) -> dict[str, Tensor]:
        values, ids = a["x"].topk(8, 1)
        return {"vals": values, "ids": ids}
    args = {"x": _normal(random, 5, 256, dtype=torch.float32), "vals": torch.zeros(5, 8),
            "ids": torch.zeros(5, 8, dtype=I32), "N": 256}
    return args, (5,), reference


def _case_sort_rows(random: torch.Generator) -> Case:
    args = {"x": _normal(random, 5, 500, dtype=torch.float32), "y": torch.zeros(5, 500), "N": 500}
    return args, (5,), lambda a: {"y": a["x"].sort(1, descending=True)[0]}


def _case_hist_count(random: torch.Generator) -> Case:
    ids = torch.randint(0, 64, (3000,), generator=random, dtype=I32)
    return ({"ids": ids, "cnt": torch.zeros(64, dtype=I32), "N": 3000}, (3,),
            lambda a: {"cnt": torch.bincount(a["ids"].long(), minlength=64)})


def _case_cumsum_rows(random: torch.Generator) -> Case:
    x = torch.randint(-50, 50, (4, 500), generator=random, dtype=I32)
    return {"x": x, "y": torch.zeros(4, 500, dtype=I32), "N": 500}, (4,), lambda a: {"y": a["x"].cumsum(1)}


def _case_fp8_dequant(random: torch.Generator) -> Case:
    n = 6144
    codes = torch.randint(0, 256, (n,), generator=random).to(torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0  # no NaN
    args = {"x": codes.view(torch.int8), "s": torch.rand(n // 128, generator=random), "y": torch.zeros(n, dtype=BF16),
            "N": n}
    wide = codes.view(torch.float8_e4m3fn).double()
    return args, (3,), lambda a: {"y": wide * a["s"].repeat_interleave(128)}


def _case_fp4_dequant(random: torch.Generator) -> Case:
    n = 2048
    codes = torch.randint(0, 256, (n,), generator=random)
    exponents = torch.randint(120, 134, (n // 16,), generator=random)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=F64)
    table = torch.cat([table, -table])
    scale = (2.0 ** (exponents.double() - 127)).repeat_interleave(16)
    args = {"x": codes.to(torch.uint8).view(torch.int8), "s": exponents.to(torch.uint8).view(torch.int8),
            "y": torch.zeros(2 * n, dtype=BF16), "N": n}
    return args, (2,), lambda a: {"y": torch.stack([table[codes & 15] * scale, table[codes >> 4] * scale], 1).view(-1)}


def _case_fp8_quant_block(random: torch.Generator) -> Case:
    n = 6144

    def reference(a: dict[str, Any]) -> dict[str, Tensor]:
        x = a["x"].float().reshape(-1, 128)
        scale = x.abs().amax(1).clamp(min=1e-4) / 448.0
        return {"y": (x / scale[:, None]).to(torch.float8_e4m3fn).view(torch.int8).view(-1), "s": scale}
    args = {"x": _normal(random, n, scale=3), "y": torch.zeros(n, dtype=torch.int8), "s": torch.zeros(n // 128), "N": n}
    return args, (3,), reference


def _case_adamw(random: torch.Generator) -> Case:
    n = 5000

    def reference(a: dict[str, Any]) -> dict[str, Tensor]:
        m, v = a["m"] * 0.9 + a["g"] * 0.1, a["v"] * 0.95 + a["g"] ** 2 * 0.05
        p = a["p"] * (1 - 1e-3 * 0.1) - 1e-3 * (m * 1.2) / ((v * 1.3).sqrt() + 1e-8)
        return {"m": m, "v": v, "p": p, "pb": p}
    single = {name: _normal(random, n, dtype=torch.float32) for name in ("p", "m", "v")}
    args = {"p": single["p"], "g": _normal(random, n), "m": single["m"], "v": single["v"].abs(),
            "pb": torch.zeros(n, dtype=BF16), "N": n, "lr": 1e-3, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "wd": 0.1,
            "c1": 1.2, "c2": 1.3}
    return args, (3,), reference


def _case_newton_schulz_step(random: torch.Generator) -> Case:
    m, k = 200, 300
    args = {"x": _normal(random, m, k), "a": _normal(random, m, m, scale=0.1), "y": torch.zeros(m, k, dtype=BF16),
            "M": m, "K": k, "c0": 1.5, "c1": -0.5}
    return args, (2, 3), lambda a: {"y": 1.5 * a["x"] - 0.5 * a["a"] @ a["x"]}


def _case_embed_gather(random: torch.Generator) -> Case:
    tokens, n = 40, 1024
    args = {"ids": torch.randint(0, 100, (tokens,), generator=random, dtype=I32), "w": _normal(random, 100, n),
            "y": torch.zeros(tokens, n, dtype=BF16), "T": tokens, "N": n}
    return args, (3, 2), lambda a: {"y": a["w"][a["ids"].long()]}


def _case_scatter_add(random: torch.Generator) -> Case:
    tokens, n = 24, 1024
    args = {"ids": torch.randint(0, 10, (tokens,), generator=random, dtype=I32),
            "x": _normal(random, tokens, n, dtype=torch.float32), "y": torch.zeros(10, n), "T": tokens, "N": n}
    return args, (3, 2), lambda a: {"y": torch.zeros(10, n, dtype=F64).index_add(0, a["ids"].long(), a["x"])}
