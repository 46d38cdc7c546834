"""The model's own invariants: one result however the tokens are cut, packed or batched."""

import pytest
import torch
from models import nano, random_ids, vivid_model

from anychip.chips import open_chip
from anychip.config import load_config
from anychip.errors import InputError
from anychip.model import Layout, State, count_parameters
from anychip.model.layout import visible_ranges, window_ranges
from anychip.ops import Ops

LENGTH = 600  # crosses the 4- and 128-token edges and exceeds 4 * index_topk = 256


@pytest.fixture(scope="module")
def model():
    return vivid_model(nano(), Ops())


@pytest.fixture(scope="module")
def whole(model):
    with torch.no_grad():
        return model.logits(model(random_ids(LENGTH), Layout.whole([LENGTH])).hidden_Td)


def in_chunks(model, ids, chunks):
    state, at, parts = State(model.config, len(ids), chunk=256), 0, []
    with torch.no_grad():
        for size in chunks:
            parts.append(model.logits(model(ids[at : at + size], Layout((at,), (size,)), state).hidden_Td))
            at += size
    assert at == len(ids)
    return torch.cat(parts)


@pytest.mark.parametrize("chunks", [[256, 256, 88], [1, 2, 3, 122, 128, 129, 215], [200] * 3])
def test_chunked_prefill_equals_whole_pass(model, whole, chunks):
    assert (in_chunks(model, random_ids(LENGTH), chunks) - whole).abs().max() <= 1e-4 * whole.abs().max()


def test_decode_equals_prefill(model, whole):
    logits = in_chunks(model, random_ids(LENGTH), [250, 250] + [1] * 20 + [80])
    assert (logits - whole).abs().max() <= 1e-4 * whole.abs().max()


def test_packed_samples_equal_each_alone(model):
    lengths = [1, 3, 130, 300, 5]
    ids = random_ids(sum(lengths))
    with torch.no_grad():
        packed = model(ids, Layout.whole(lengths)).hidden_Td
        alone = torch.cat([model(part, Layout.whole([len(part)])).hidden_Td for part in ids.split(lengths)])
    assert (packed - alone).abs().max() <= 1e-4 * alone.abs().max()


def test_batched_decode_of_unequal_lengths_equals_each_alone(model):
    first, then = [7, 200, 64], [5, 5, 5]
    ids = [random_ids(a + b, seed=a) for a, b in zip(first, then, strict=True)]
    state = State(model.config, 300, num_sequences=3, chunk=256)
    with torch.no_grad():
        model(torch.cat([x[:a] for x, a in zip(ids, first, strict=True)]), Layout((0, 0, 0), tuple(first)), state)
        batched = [model(torch.stack([x[a + i] for x, a in zip(ids, first, strict=True)]),
                         Layout(tuple(a + i for a in first), (1, 1, 1)), state).hidden_Td for i in range(5)]
        for s, x in enumerate(ids):
            alone = model(x, Layout.whole([len(x)])).hidden_Td[-5:]
            assert (torch.stack(batched)[:, s] - alone).abs().max() <= 1e-4 * alone.abs().max()


def test_a_later_token_never_changes_an_earlier_one(model, whole):
    ids = random_ids(LENGTH)
    ids[400:] = 7
    with torch.no_grad():
        changed = model.logits(model(ids, Layout.whole([LENGTH])).hidden_Td)
    assert (changed[:400] - whole[:400]).abs().max() <= 1e-5 * whole.abs().max()
    assert (changed[400:] - whole[400:]).abs().max() > 0.1 * whole.abs().max()


@pytest.mark.parametrize(("preset", "bytes_per_token"), [("v4-flash", 6880), ("v4-pro", 9848)])
def test_the_cache_grows_by_the_published_bf16_bytes_a_token(preset, bytes_per_token):
    short, long = (State(load_config(preset), tokens, chunk=1, device="meta", dtype=torch.bfloat16).nbytes()
                   for tokens in (1 << 10, 1 << 20))
    assert (long - short) / ((1 << 20) - (1 << 10)) == bytes_per_token


def test_a_pass_in_inference_mode_does_not_spoil_later_training():
    model, ids = vivid_model(nano(), open_chip("cpu").ops()), random_ids(40)
    with torch.inference_mode():
        model(ids, Layout.whole([40]))
    model(ids, Layout.whole([40])).hidden_Td.sum().backward()
    assert model.layers[0].attn.wkv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("preset", "total", "active"),
                         [("v4-flash", 284.33e9, 13.27e9), ("v4-pro", 1573.0e9, 48.85e9)])
def test_published_parameter_counts(preset, total, active):
    counted = count_parameters(load_config(preset))
    assert abs(counted.total - total) < 0.005 * 1e9 + 1e-5 * total and abs(counted.active - active) < 0.005e9


def test_small_presets_have_their_stated_sizes():
    counts = {name: count_parameters(load_config(name)) for name in ("nano", "tiny", "mini")}
    assert counts["nano"].total + counts["nano"].mtp_total <= 3e6
    assert abs(counts["tiny"].total - 24e6) < 2e6 and abs(counts["tiny"].active - 7e6) < 1e6
    assert abs(counts["mini"].total - 100e6) < 5e6


def test_mtp_predicts_from_streams_and_next_token(model):
    ids = random_ids(50)
    with torch.no_grad():
        streams = model(ids, Layout.whole([50])).streams_Tnd
        ahead = model.predict_next(streams, ids.roll(-1), Layout.whole([50]))
        other = model.predict_next(streams, ids.roll(-2), Layout.whole([50]))
    assert ahead.shape == (50, 128) and not torch.allclose(ahead, other)


def test_refusals_say_what_is_true(model):
    with pytest.raises(InputError, match="context of 8192"):
        model(random_ids(9000), Layout.whole([9000]))
    with pytest.raises(InputError, match="no state was given"):
        model(random_ids(3), Layout((5,), (3,)))
    with pytest.raises(InputError, match="holds \\[0\\] tokens"):
        model(random_ids(3), Layout((5,), (3,)), State(model.config, 20))
    with pytest.raises(InputError, match="at least one new token"):
        Layout.whole([3, 0])


@pytest.mark.parametrize("start", [0, 3, 127, 128, 1000])
def test_one_tokens_ranges_are_those_it_has_in_a_batch(start: int) -> None:
    row = torch.tensor([-77])
    alone, pair = Layout((start,), (1,)), Layout((start, start), (1, 1))
    for ranges, size in ((window_ranges, 128), (visible_ranges, 4), (visible_ranges, 128)):
        found = ranges(alone, alone.positions(), row, size)
        both = ranges(pair, pair.positions(), row.repeat(2), size)
        assert torch.equal(found.start.repeat(2), both.start) and torch.equal(found.count.repeat(2), both.count)
        assert (2 * found.num_pairs, found.max_count) == (both.num_pairs, both.max_count)
        assert found.start.dtype is found.count.dtype is torch.int32
