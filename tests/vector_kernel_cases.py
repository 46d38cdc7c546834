"""Cases of test_vector_kernels: each op on kernels, its definition, and inputs with hard values. Needs no triton."""

import importlib
import math

import torch

from anychip.kernels.launch import TritonLauncher
from anychip.ops import HyperRule, HyperWeights, Ops, RouteRule

LAUNCH = TritonLauncher("ascend", 2, 3)
# The interpreter rounds fp32 to bf16 towards zero: a unit in the last place, where chips round to nearest. Second
# figure: the share of the largest element that is added to each one's own size. For bf16 it allows for a gradient
# that is rounded on its way from one kernel to the next.
TOLERANCE = {torch.bfloat16: (2**-7, 1 / 20), torch.float32: (2**-13, 1 / 100)}


def in_float64(launch):
    """Args and constants, floating tensors in float64, integers copied."""
    return {name: v if not isinstance(v, torch.Tensor) else v.double() if v.is_floating_point() else v.clone()
            for name, v in (*launch.args.items(), *launch.constants.items())}


def close(got, want, name, dtype=None):
    """Each element within its format's tolerance (`dtype`: the least exact one that took part)."""
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    if not got.is_floating_point():
        assert torch.equal(got.long(), want.long()), f"{name} differs at {(got.long() != want.long()).nonzero()[:5]}"
        return
    assert torch.equal(got.isnan(), want.isnan()), f"{name}: other elements are NaN"
    (tolerance, share), got, want = TOLERANCE[dtype or got.dtype], got.double().nan_to_num(), want.double().nan_to_num()
    excess = (got - want).abs() - tolerance * (want.abs() + want.abs().max() * share)
    worst = excess.argmax() if excess.numel() else 0
    assert excess.numel() == 0 or excess.max() <= 0, f"{name}: {got.flatten()[worst]}, not {want.flatten()[worst]}"


def with_gradients(function, inputs, dtype):
    """The results by number, and by name the gradient of every floating input, of a seeded cotangent of `dtype`."""
    leaves = {name: t.clone().requires_grad_() if t.is_floating_point() else t for name, t in inputs.items()}
    results = function(**leaves)
    results = results if isinstance(results, tuple) else (results,)
    g, total = torch.Generator().manual_seed(9), 0.0
    for result in results:
        if result.is_floating_point():
            total = total + (result * torch.randn(result.shape, generator=g).to(dtype).to(result.dtype)).sum()
    if getattr(total, "requires_grad", False):
        total.backward()
    found = {f"result {i}": result.detach() for i, result in enumerate(results)}
    return found | {f"d{name}": t.grad for name, t in leaves.items() if t.is_floating_point() and t.grad is not None}


def in_float32(inputs):
    return {name: t.float() if t.is_floating_point() else t for name, t in inputs.items()}


def kernels(topic):
    return importlib.import_module(f"anychip.kernels.{topic}")


def _randn(g, *shape):
    return torch.randn(*shape, generator=g)


def rms_norm(g, dtype):
    inputs = {"x": (_randn(g, 3, 5, 96) * torch.logspace(-2, 3, 5)[:, None]).to(dtype), "weight": _randn(g, 96)}
    return (lambda x, weight: kernels("normalize").rms_norm(LAUNCH, x, weight, 1e-6),
            lambda x, weight: Ops.rms_norm(x, weight, 1e-6), inputs)


def rms_norm_of_long_rows(g, dtype):
    inputs = {"x": _randn(g, 3, 7168).to(dtype), "weight": _randn(g, 7168)}
    return (lambda x, weight: kernels("normalize").rms_norm(LAUNCH, x, weight, 1e-6),
            lambda x, weight: Ops.rms_norm(x, weight, 1e-6), inputs)


def rms_norm_without_weight(g, dtype):
    return (lambda x: kernels("normalize").rms_norm(LAUNCH, x, None, 1e-6), lambda x: Ops.rms_norm(x, None, 1e-6),
            {"x": _randn(g, 7, 33).to(dtype)})


def layer_norm(g, dtype):
    inputs = {"x": (_randn(g, 3, 5, 96) + 5).to(dtype), "weight": _randn(g, 96), "bias": _randn(g, 96)}
    return (lambda x, weight, bias: kernels("normalize").layer_norm(LAUNCH, x, weight, bias, 1e-6),
            lambda x, weight, bias: Ops.layer_norm(x, weight, bias, 1e-6), inputs)


def layer_norm_of_long_rows(g, dtype):
    inputs = {"x": _randn(g, 3, 5000).to(dtype), "weight": _randn(g, 5000), "bias": _randn(g, 5000)}
    return (lambda x, weight, bias: kernels("normalize").layer_norm(LAUNCH, x, weight, bias, 1e-6),
            lambda x, weight, bias: Ops.layer_norm(x, weight, bias, 1e-6), inputs)


def add(g, dtype):
    inputs = {"x": _randn(g, 3, 3000).to(dtype), "y": _randn(g, 3, 3000).to(dtype)}
    return lambda x, y: kernels("add").add(LAUNCH, x, y), Ops.add, inputs


def _angles(g, tokens, pairs):
    angle = 100 * torch.rand(tokens, pairs, generator=g)
    return angle.cos(), angle.sin()


def rope_of_heads(g, dtype):
    cos, sin = _angles(g, 5, 8)
    return (lambda x: kernels("rope").rope(LAUNCH, x, cos, sin), lambda x: Ops.rope(x, cos, sin),
            {"x": _randn(g, 5, 4, 64).to(dtype)})


def rope_back(g, dtype):
    cos, sin = _angles(g, 7, 16)
    return (lambda x: kernels("rope").rope(LAUNCH, x, cos, sin, inverse=True),
            lambda x: Ops.rope(x, cos, sin, inverse=True), {"x": _randn(g, 7, 32).to(dtype)})


def _rope_form(g, dtype, **form):
    cos, sin = _angles(g, 5, 8)
    return (lambda x: kernels("rope").rope(LAUNCH, x, cos, sin, **form), lambda x: Ops.rope(x, cos, sin, **form),
            {"x": _randn(g, 5, 4, 64).to(dtype)})


def rope_of_the_first_channels(g, dtype):
    return _rope_form(g, dtype, first=True)


def rope_of_halves_back(g, dtype):
    return _rope_form(g, dtype, half=True, inverse=True)


def rope_of_halves_of_the_first_channels(g, dtype):
    return _rope_form(g, dtype, half=True, first=True)


def norm_rope_of_whole_heads_by_halves(g, dtype):
    cos, sin = _angles(g, 5, 32)
    return (lambda x, weight: kernels("rope").norm_rope(LAUNCH, x, weight, 1e-6, cos, sin, half=True),
            lambda x, weight: Ops.norm_rope(x, weight, 1e-6, cos, sin, half=True),
            {"x": _randn(g, 5, 4, 64).to(dtype), "weight": _randn(g, 64)})


def norm_rope_of_queries(g, dtype):
    cos, sin = _angles(g, 5, 8)
    return (lambda x: kernels("rope").norm_rope(LAUNCH, x, None, 1e-6, cos, sin),
            lambda x: Ops.norm_rope(x, None, 1e-6, cos, sin), {"x": _randn(g, 5, 4, 64).to(dtype)})


def norm_rope_of_entries(g, dtype):
    cos, sin = _angles(g, 6, 32)
    return (lambda x, weight: kernels("rope").norm_rope(LAUNCH, x, weight, 1e-6, cos, sin),
            lambda x, weight: Ops.norm_rope(x, weight, 1e-6, cos, sin),
            {"x": _randn(g, 6, 512).to(dtype), "weight": _randn(g, 512)})


def swiglu(g, dtype):
    from anychip.ops.experts import swiglu as definition
    inputs = {"gate_up": (_randn(g, 9, 200) * 8).to(dtype), "weight": torch.rand(9, generator=g)}
    return (lambda gate_up, weight: kernels("swiglu").swiglu(LAUNCH, gate_up, 10.0, weight),
            lambda gate_up, weight: definition(gate_up, 10.0) * weight[:, None], inputs)


def swiglu_without_weight_and_limit(g, dtype):
    from anychip.ops.experts import swiglu as definition
    return (lambda gate_up: kernels("swiglu").swiglu(LAUNCH, gate_up, math.inf),
            lambda gate_up: definition(gate_up, math.inf), {"gate_up": (_randn(g, 3, 2, 64) * 8).to(dtype)})


_RULE = HyperRule(20, 1e-6, 1e-6)


def _hyper_inputs(g, dtype, logits):
    return {"x": _randn(g, 5, 4, 24).to(dtype), "fn": _randn(g, logits, 96) * 0.1, "base": _randn(g, logits) * 0.1,
            "scale": torch.rand(3 if logits > 4 else 1, generator=g)}


def hc_pre(g, dtype):
    return (lambda x, fn, base, scale: kernels("hyper").hc_pre(LAUNCH, x, HyperWeights(fn, base, scale), _RULE),
            lambda x, fn, base, scale: Ops.hc_pre(x, HyperWeights(fn, base, scale), _RULE), _hyper_inputs(g, dtype, 24))


def hc_head(g, dtype):
    return (lambda x, fn, base, scale: kernels("hyper").hc_head(LAUNCH, x, HyperWeights(fn, base, scale), _RULE),
            lambda x, fn, base, scale: Ops.hc_head(x, HyperWeights(fn, base, scale), _RULE), _hyper_inputs(g, dtype, 4))


def hc_post(g, dtype):
    inputs = {"y": _randn(g, 5, 100).to(dtype), "x": _randn(g, 5, 4, 100).to(dtype),
              "post": torch.rand(5, 4, generator=g), "comb": torch.rand(5, 4, 4, generator=g)}
    return lambda **a: kernels("hyper").hc_post(LAUNCH, *a.values()), lambda **a: Ops.hc_post(*a.values()), inputs


def route_by_score(g, dtype):
    bias = _randn(g, 20)
    return (lambda x, weight: kernels("route").route(LAUNCH, x, weight, 3, bias_E=bias),
            lambda x, weight: Ops.route(x, weight, 3, bias_E=bias),
            {"x": _randn(g, 9, 24).to(dtype), "weight": _randn(g, 20, 24)})


def _route_by(g, dtype, rule, topk, bias=None):
    return (lambda x, weight: kernels("route").route(LAUNCH, x, weight, topk, bias_E=bias, rule=rule),
            lambda x, weight: Ops.route(x, weight, topk, bias_E=bias, rule=rule),
            {"x": _randn(g, 9, 24).to(dtype), "weight": _randn(g, 24, 24)})


def route_by_sigmoid_in_groups(g, dtype):
    return _route_by(g, dtype, RouteRule("sigmoid", 4, 2), 5, _randn(g, 24))


def route_by_softmax(g, dtype):
    return _route_by(g, dtype, RouteRule("softmax"), 3)


def route_by_softmax_as_it_is(g, dtype):
    return _route_by(g, dtype, RouteRule("softmax", 3, 2, normalize=False), 3)


def route_by_hash(g, dtype):
    ids = torch.rand(9, 16, generator=g).argsort(1)[:, :2]
    return (lambda x, weight: kernels("route").route(LAUNCH, x, weight, 2, ids_TK=ids),
            lambda x, weight: Ops.route(x, weight, 2, ids_TK=ids),
            {"x": _randn(g, 9, 24).to(dtype), "weight": _randn(g, 16, 24)})


def cross_entropy(g, dtype):
    target = torch.tensor([0, 76, -1, 5, -100, 33, 2])
    return (lambda x, head: kernels("loss").cross_entropy(LAUNCH, x, head, target),
            lambda x, head: Ops.cross_entropy(x, head, target),
            {"x": _randn(g, 7, 24).to(dtype), "head": _randn(g, 77, 24)})


def _compress(g, dtype, ratio, previous):
    width = 48 if previous is None else 96
    first = torch.tensor([0, ratio, 2 * ratio, 3 * ratio + 2])
    inputs = {"value": _randn(g, 4 * ratio + 5, width).to(dtype), "gate": 3 * _randn(g, 4 * ratio + 5, width).to(dtype),
              "ape": _randn(g, ratio, width)}
    return (lambda **a: kernels("compress").compress(LAUNCH, *a.values(), first, previous),
            lambda **a: Ops.compress(*a.values(), first, previous), inputs)


def compress_csa(g, dtype):
    return _compress(g, dtype, 4, torch.tensor([-1, 0, 4, -1]))


def compress_hca(g, dtype):
    return _compress(g, dtype, 128, None)


OPS = (rms_norm, rms_norm_of_long_rows, rms_norm_without_weight, layer_norm, layer_norm_of_long_rows, add,
       rope_of_heads, rope_back, rope_of_the_first_channels, rope_of_halves_back, rope_of_halves_of_the_first_channels,
       norm_rope_of_whole_heads_by_halves, norm_rope_of_queries, norm_rope_of_entries, swiglu,
       swiglu_without_weight_and_limit, hc_pre, hc_head, hc_post, route_by_score, route_by_sigmoid_in_groups,
       route_by_softmax, route_by_softmax_as_it_is, route_by_hash, cross_entropy, compress_csa, compress_hca)
