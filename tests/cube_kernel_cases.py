"""Cases of test_cube_kernels: each op on kernels with matrix products, its definition, and its inputs, all fp32.

(Triton's interpreter does not multiply bf16; the chips' own formats are held by the suite on the virtual Ascend.)
"""

import torch
from vector_kernel_cases import LAUNCH, kernels

from anychip.ops import Keys, Ops, Ranges


def _randn(g, *shape):
    return torch.randn(*shape, generator=g)


def ranges(start, count):
    return Ranges(torch.tensor(start).int(), torch.tensor(count).int(), sum(count), max(count))


def linear(g):
    return (lambda x, weight: kernels("matmul").linear(LAUNCH, x, weight), lambda x, weight: Ops.linear(x, weight),
            {"x": _randn(g, 3, 7, 40), "weight": _randn(g, 33, 40)})


def grouped_linear(g):
    return (lambda x, weight: kernels("matmul").grouped_linear(LAUNCH, x, weight),
            lambda x, weight: Ops.grouped_linear(x, weight),
            {"x": _randn(g, 9, 4, 24), "weight": _randn(g, 4 * 10, 24)})


def grouped_linear_with_parts_of_a_weight(g):
    """MLA's: queries into the latent space, and out of it."""
    def both(op):
        return lambda x, weight: op(op(x[..., :16], weight[:, :16].transpose(1, 2)).view(9, 4, 24), weight[:, 16:])

    return (both(lambda *a: kernels("matmul").grouped_linear(LAUNCH, *a)), both(Ops.grouped_linear),
            {"x": _randn(g, 9, 4, 24), "weight": _randn(g, 4, 26, 24)})


def embed(g):
    ids = torch.tensor([0, 12, 5, 5, 12, 5])
    return (lambda weight: kernels("rows").embed(LAUNCH, ids, weight), lambda weight: Ops.embed(ids, weight),
            {"weight": _randn(g, 13, 40)})


def _experts(g, ids, num_experts):
    inputs = {"x": _randn(g, ids.shape[0], 24), "weight": torch.rand(ids.shape, generator=g),
              "w13": _randn(g, num_experts, 2 * 20, 24), "w2": _randn(g, num_experts, 24, 20)}
    return (lambda x, weight, w13, w2: kernels("experts").experts(LAUNCH, x, ids, weight, (w13, w2), 10.0),
            lambda x, weight, w13, w2: Ops.experts(x, ids, weight, (w13, w2), 10.0), inputs)


def experts_some_idle(g):
    return _experts(g, torch.tensor([[5, 0], [0, 3], [3, 5], [5, 3], [5, 0]]), 7)


def experts_all_rows_to_one(g):
    return _experts(g, torch.full((19, 1), 1), 3)


def _attention(g, shape, rows, keys_of):
    inputs = {"query": _randn(g, *shape), "window": _randn(g, rows[0], shape[2]), "sink": _randn(g, shape[1])}
    if rows[1]:
        inputs["entries"] = _randn(g, rows[1], shape[2])
    return (lambda query, window, sink, entries=None: kernels("attend").attention(
                LAUNCH, query, keys_of(window, entries), sink),
            lambda query, window, sink, entries=None: Ops.attention(query, keys_of(window, entries), sink), inputs)


def attention_of_a_window(g):
    seen = ranges([0, 0, 70, 3], [1, 2, 5, 72])
    return _attention(g, (4, 3, 32), (75, 0), lambda window, _: Keys(window, seen))


def attention_to_all_entries(g):
    seen, visible = ranges([0, 1, 8], [3, 7, 1]), ranges([0, 0, 5], [0, 66, 9])
    return _attention(g, (3, 20, 16), (9, 66), lambda window, entries: Keys(window, seen, entries, visible))


def attention_to_selected_entries(g):
    seen = ranges([0, 1, 8, 2], [3, 7, 1, 4])
    chosen = torch.stack([torch.arange(i, i + 70) for i in range(4)]).int()
    chosen[0], chosen[1, 3:], chosen[2, 66:] = -1, -1, -1
    return _attention(g, (4, 5, 64), (9, 73), lambda window, entries: Keys(window, seen, entries, chosen))


def attention_with_no_entries_yet(g):
    seen = ranges([0, 0], [1, 2])
    return _attention(g, (2, 4, 16), (2, 0), lambda window, _: Keys(window, seen, window[:0], ranges([0, 0], [0, 0])))


def _latent_attention(g, keys_of, shape=(4, 5, 48)):
    form = {"scale": 0.3, "value_width": 32}
    return (lambda query, entries: kernels("attend").attention(LAUNCH, query, keys_of(entries), None, **form),
            lambda query, entries: Ops.attention(query, keys_of(entries), None, **form),
            {"query": _randn(g, *shape), "entries": _randn(g, 73, 48)})


def latent_attention_to_a_run(g):
    seen = ranges([0, 0, 5, 8], [1, 2, 65, 7])
    return _latent_attention(g, lambda entries: Keys(entries, seen))


def latent_attention_to_chosen_entries_alone(g):
    chosen = torch.stack([torch.arange(i, i + 70) for i in range(4)]).int()
    chosen[0, 1:], chosen[1, 3:], chosen[2, 5] = -1, -1, -1
    return _latent_attention(g, lambda entries: Keys.chosen(entries, chosen))


def _grouped_attention(g, seen, heads, channels):
    (tokens, num_keys), (heads, groups), (channels, value) = seen.start.shape + (150,), heads, channels
    return (lambda query, key, value: kernels("grouped_attend").grouped_attention(LAUNCH, query, key, value, seen, 0.2),
            lambda query, key, value: Ops.grouped_attention(query, key, value, seen, 0.2),
            {"query": _randn(g, tokens, heads, channels), "key": _randn(g, num_keys, groups, channels),
             "value": _randn(g, num_keys, groups, value)})


def grouped_attention_of_two_sequences(g):
    return _grouped_attention(g, ranges([0] * 9 + [70] * 5, [*range(60, 69), *range(1, 6)]), (6, 2), (32, 32))


def grouped_attention_of_own_keys(g):
    """V3's training: every head has its own, wider than its values; more tokens than a tile; keys that nobody sees."""
    return _grouped_attention(g, ranges([9] * 130, [*range(1, 131)]), (2, 2), (48, 32))


def grouped_attention_of_decoded_tokens(g):
    return _grouped_attention(g, ranges([0, 41, 91], [41, 50, 3]), (4, 2), (16, 16))


def index_topk_with_ties(g):
    query, weight, key = (torch.randint(-2, 3, s, generator=g).float() for s in ((5, 3, 16), (5, 3), (90, 16)))
    visible = ranges([0, 4, 1, 0, 20], [0, 3, 8, 90, 41])
    return (lambda: kernels("indexer").index_topk(LAUNCH, query, weight, key, visible, 8),
            lambda: Ops.index_topk(query, weight, key, visible, 8), {})


def index_topk_of_more_than_it_keeps(g):
    inputs = _randn(g, 3, 16, 32), _randn(g, 3, 16), _randn(g, 300, 32), ranges([0, 9, 40], [130, 128, 260])
    return (lambda: kernels("indexer").index_topk(LAUNCH, *inputs, 64), lambda: Ops.index_topk(*inputs, 64), {})


OPS = (linear, grouped_linear, embed, experts_some_idle, experts_all_rows_to_one, attention_of_a_window,
       attention_to_all_entries, attention_to_selected_entries, attention_with_no_entries_yet,
       latent_attention_to_a_run, latent_attention_to_chosen_entries_alone, grouped_linear_with_parts_of_a_weight,
       grouped_attention_of_two_sequences, grouped_attention_of_own_keys, grouped_attention_of_decoded_tokens,
       index_topk_with_ties, index_topk_of_more_than_it_keeps)
