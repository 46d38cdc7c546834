"""The model against transformers 5.23 in fp32 with the same weights: logits, gradients, every way to cut a text."""

import pytest
import torch
from models import nano, random_ids, vivid_model
from peer import departing_gradients, peer_of

from anychip.chips import open_chip
from anychip.model import Layout, State

TOLERANCE = 1e-4  # of max |logit|: the bound that a port is held to
LENGTHS = [1, 3, 4, 5, 127, 128, 129, 255, 256, 257, 1000, 3000]  # sparse beyond 4 * index_topk = 256


@pytest.fixture(scope="module", params=["random", "trained"])
def pair(request):
    ops = open_chip("cpu").ops()
    if request.param == "trained":
        from anychip.serve.models import open_model

        model, _ = open_model("nano", open_chip("cpu"))
    else:
        model = vivid_model(nano(), ops)
    return model, peer_of(model)


def close(ours, theirs):
    return float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_equal(pair, length):
    model, peer = pair
    ids = random_ids(length)
    with torch.no_grad():
        assert close(model.logits(model(ids, Layout.whole([length])).hidden_Td), peer(ids[None]).logits[0])


def test_chunked_prefill_then_decode_equals_their_whole_pass(pair):
    model, peer = pair
    ids, state, at, parts = random_ids(700), State(model.config, 700, chunk=300), 0, []
    with torch.no_grad():
        for size in [300, 257] + [1] * 143:
            parts.append(model(ids[at : at + size], Layout((at,), (size,)), state).hidden_Td)
            at += size
        assert close(model.logits(torch.cat(parts)), peer(ids[None]).logits[0])


def test_unequal_lengths_in_one_batch_equal_their_single_runs(pair):
    model, peer = pair
    lengths = [5, 300, 131]
    ids = random_ids(sum(lengths))
    with torch.no_grad():
        ours = model.logits(model(ids, Layout.whole(lengths)).hidden_Td).split(lengths)
        assert all(close(mine, peer(part[None]).logits[0]) for mine, part in zip(ours, ids.split(lengths), strict=True))


@pytest.mark.parametrize("length", [64, 400])
def test_every_gradient_equals(pair, length):
    assert not departing_gradients(*pair, random_ids(length + 1))
