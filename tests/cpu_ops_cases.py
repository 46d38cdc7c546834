"""Inputs for every op of the CPU chip, and the comparison with the reference that defines it."""

import math

import torch

from anychip.ops import HyperRule, HyperWeights, Keys, Ranges, RouteRule

RULE = HyperRule(20, 1e-6, 1e-6)
TOLERANCE = 2e-5  # fp32 sums in another order, relative to the largest element
TOKENS, EXPERTS, CHOICES, HIDDEN, WIDTH, STREAMS = 45, 8, 3, 32, 24, 4


def seeded(name):
    """Return a generator of standard normal tensors seeded by a name."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return lambda *shape: torch.randn(*shape, generator=generator)


def cases(tokens=TOKENS):
    """Return name -> (call(ops, *tensors), tensors): one call of each op; every tensor has a gradient."""
    normal = seeded("cases")
    x, streams = normal(tokens, HIDDEN), normal(tokens, STREAMS, HIDDEN)
    query, cos, sin = normal(tokens, 2, 24), normal(tokens, 4), normal(tokens, 4)
    ids = (torch.arange(tokens)[:, None] + 2 * torch.arange(CHOICES)) % (EXPERTS - 1)  # the last expert has no token
    banks = normal(EXPERTS, 2 * WIDTH, HIDDEN) * 0.3, normal(EXPERTS, HIDDEN, WIDTH) * 0.3
    gate, bias = normal(EXPERTS, HIDDEN) * 0.3, normal(EXPERTS) * 0.2
    mlp = normal(WIDTH, HIDDEN), normal(WIDTH, HIDDEN), normal(HIDDEN, WIDTH)
    mixes = STREAMS * (STREAMS + 2)
    hyper = normal(mixes, STREAMS * HIDDEN) * 0.2, normal(mixes), normal(3)
    head = normal(STREAMS, STREAMS * HIDDEN) * 0.2, normal(STREAMS), normal(1)
    post = normal(tokens, STREAMS), normal(tokens, STREAMS, STREAMS)
    target = torch.arange(tokens) * 7 % 51 - 1
    first, previous = torch.tensor([0, 4, 8, 20]).int(), torch.tensor([-1, 0, 4, -1]).int()
    rows, open_rows = normal(24, 40), normal(300, 20)
    return _attention_cases(tokens) | {
        "linear": (lambda o, a, w: o.linear(a, w), (x, normal(17, HIDDEN))),
        "grouped_linear": (lambda o, a, w: o.grouped_linear(a, w), (query, normal(10, 24))),
        "grouped_linear_parts": (lambda o, a, w: o.grouped_linear(a, w[:, 3:]), (query, normal(2, 12, 24))),
        "grouped_linear_turned": (lambda o, a, w: o.grouped_linear(a, w[:, :24].transpose(1, 2)),
                                  (query, normal(2, 31, 9))),
        "embed": (lambda o, w: o.embed(target + 1, w), (normal(60, HIDDEN),)),
        "rms_norm": (lambda o, a, w: o.rms_norm(a, w, 1e-6), (x, normal(HIDDEN))),
        "rms_norm_bare": (lambda o, a: o.rms_norm(a, None, 1e-6), (query,)),
        "norm_rope": (lambda o, a, w: o.norm_rope(a, w, 1e-6, cos, sin), (query, normal(24))),
        "norm_rope_bare": (lambda o, a: o.norm_rope(a, None, 1e-6, cos, sin), (query,)),
        "norm_rope_headless": (lambda o, a, w: o.norm_rope(a, w, 1e-6, cos, sin), (x, normal(HIDDEN))),
        "rope": (lambda o, a: o.rope(a, cos, sin), (query,)),
        "rope_inverse": (lambda o, a: o.rope(a, cos, sin, inverse=True), (query,)),
        "rope_first": (lambda o, a: o.rope(a, cos, sin, first=True), (query,)),
        "rope_halves": (lambda o, a: o.rope(a, cos, sin, first=True, half=True), (query,)),
        "norm_rope_halves": (lambda o, a, w: o.norm_rope(a, w, 1e-6, cos, sin, half=True), (query, normal(24))),
        "layer_norm": (lambda o, a, w, b: o.layer_norm(a, w, b, 1e-6), (x, normal(HIDDEN), normal(HIDDEN))),
        "compress_csa": (lambda o, *a: o.compress(*a, first, previous), (rows, 3 * normal(24, 40), normal(4, 40))),
        "compress_hca": (lambda o, *a: o.compress(*a, first * 8, None), (open_rows, normal(300, 20), normal(128, 20))),
        "route": (lambda o, a, w: o.route(a, w, CHOICES, bias_E=bias)[1], (x, gate)),
        "route_hashed": (lambda o, a, w: o.route(a, w, CHOICES, ids_TK=ids)[1], (x, gate)),
        "route_groups": (lambda o, a, w: o.route(a, w, CHOICES, bias_E=bias, rule=RouteRule("sigmoid", 4, 2))[1],
                         (x, gate)),
        "route_softmax": (lambda o, a, w: o.route(a, w, CHOICES, rule=RouteRule("softmax"))[1], (x, gate)),
        "route_scores": (lambda o, a, w: o.route(a, w, CHOICES, rule=RouteRule("softmax", normalize=False))[1],
                         (x, gate)),
        "mlp_unclamped": (lambda o, a, *w: o.mlp(a, *w, math.inf), (x, *mlp)),
        "experts_unclamped": (lambda o, a, w, *b: o.experts(a, ids, w, b, math.inf),
                              (x, normal(tokens, CHOICES), *banks)),
        "mlp": (lambda o, a, *w: o.mlp(a, *w, 10.0), (x, *mlp)),
        "experts": (lambda o, a, w, *b: o.experts(a, ids, w, b, 10.0), (x, normal(tokens, CHOICES), *banks)),
        "hc_pre": (lambda o, s, *w: o.hc_pre(s, HyperWeights(*w), RULE), (streams, *hyper)),
        "hc_post": (lambda o, *a: o.hc_post(*a), (x, streams, *post)),
        "hc_head": (lambda o, s, *w: o.hc_head(s, HyperWeights(*w), RULE), (streams, *head)),
        "cross_entropy": (lambda o, h, w: o.cross_entropy(h, w, target), (x, normal(53, HIDDEN))),
    }


def _attention_cases(tokens):
    """Rows up to each token of two sequences; some of them chosen; grouped heads and heads of their own."""
    normal = seeded("attention")
    start = torch.where(torch.arange(tokens) < 2 * tokens // 3, 0, 2 * tokens // 3).int()
    count = torch.arange(tokens).int() - start + 4
    causal = Ranges(start, count, int(count.sum()), int(count.max()) if tokens else 0)
    chosen = (torch.arange(tokens)[:, None] + torch.tensor([-6, 1, 2, 3])).clamp_min(-1).int()
    query, entry = normal(tokens, 6, 40), normal(tokens + 3, 40)

    def heads(groups):
        return query, normal(tokens + 3, groups, 40), normal(tokens + 3, groups, 16)

    return {
        "attention_value": (lambda o, q, e: o.attention(q, Keys(e, causal), None, scale=0.3, value_width=24),
                            (query, entry)),
        "attention_chosen": (lambda o, q, e: o.attention(q, Keys.chosen(e, chosen), None, value_width=24),
                             (query, entry)),
        "attention_grouped": (lambda o, *a: o.grouped_attention(*a, causal, 0.2), heads(2)),
        "attention_ungrouped": (lambda o, *a: o.grouped_attention(*a, causal, 0.2), heads(6)),
    }


def results(ops, call, tensors):
    """Return the outputs of a call and the gradient of every tensor for fixed random gradients of the outputs."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = call(ops, *leaves)
    out = out if isinstance(out, tuple) else (out,)
    normal = seeded("gradients")
    grads = torch.autograd.grad(out, leaves, [normal(*o.shape) for o in out])
    return [o.detach() for o in out] + list(grads)


def assert_close(found, wanted, tolerance=TOLERANCE):
    """Every tensor differs from its reference by at most `tolerance` of the reference's largest element."""
    for at, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert one.shape == other.shape, at
        if other.numel():
            assert (one - other).abs().max() <= tolerance * other.abs().max() + 1e-30, at
