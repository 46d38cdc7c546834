"""The model against transformers 5.23 in fp32 with the same weights: logits, gradients, every way to cut a text."""

import pytest
import torch
from models import nano, random_ids, vivid_model
from peer import peer_of, their_names

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
    model, peer = pair
    ids = random_ids(length + 1)
    model.zero_grad()
    peer.zero_grad()
    hidden = model(ids[:-1], Layout.whole([length])).hidden_Td
    model.ops.cross_entropy(hidden, model.head.weight, ids[1:]).mean().backward()
    torch.nn.functional.cross_entropy(peer(ids[None, :-1]).logits[0], ids[1:]).backward()
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters()}
    low, names = {}, their_names(model)
    for name, parameter in model.named_parameters():
        if name.startswith("mtp.") or ".indexer." in name:  # selection is not differentiable: neither side has one
            continue
        both = [torch.zeros_like(parameter) if g is None else g for g in (parameter.grad, theirs[names[name]])]
        grad, other = (g.double().flatten() for g in both)
        if not grad.any() and not other.any():  # no window of this layer has closed yet
            continue
        cosine = torch.nn.functional.cosine_similarity(grad, other, 0)
        ratio = grad.norm() / other.norm()
        if not cosine >= 0.99999 or not abs(ratio - 1) < 1e-4:
            low[name] = (float(cosine), float(ratio))
    assert not low
