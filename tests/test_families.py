"""Every family but V4 against transformers 5.23 in fp32 with the same weights: logits, gradients, every way to cut."""

import pytest
import torch
from families import clear_ids, configs, peer_of, their_name
from models import vivid_model

from anychip.chips import open_chip
from anychip.model import Layout, State

TOLERANCE = 1e-4  # of max |logit|: the bound that a port is held to
CHIPS = ("cpu:reference", "cpu")


@pytest.fixture(scope="module", params=configs())
def pair(request):
    model = vivid_model(configs()[request.param], open_chip("cpu").ops())
    return model, peer_of(model)


@pytest.fixture(params=CHIPS)
def ours(request, pair):
    model = pair[0]
    model.ops = open_chip(request.param).ops()
    return model


def close(ours, theirs):
    return float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())


def test_logits_of_packed_texts_equal(pair, ours):
    lengths = [1, 3, 64, 65, 110]
    ids = clear_ids(ours, lengths)
    with torch.no_grad():
        found = ours.logits(ours(ids, Layout.whole(lengths)).hidden_Td).split(lengths)
        assert [close(mine, pair[1](part[None]).logits[0])
                for mine, part in zip(found, ids.split(lengths), strict=True)] == [True] * len(lengths)


def test_chunked_prefill_then_decode_equals_their_whole_pass(pair, ours):
    ids, state, at, parts = clear_ids(ours, [130]), State(ours.config, 130, chunk=80), 0, []
    with torch.no_grad():
        for size in [70, 20] + [1] * 20 + [20]:
            parts.append(ours(ids[at : at + size], Layout((at,), (size,)), state).hidden_Td)
            at += size
        assert close(ours.logits(torch.cat(parts)), pair[1](ids[None]).logits[0])


@pytest.mark.parametrize("length", [50, 120])  # an indexer picks 64
def test_every_gradient_equals(pair, ours, length):
    model, peer = ours, pair[1]
    ids = clear_ids(ours, [length + 1])
    model.zero_grad()
    peer.zero_grad()
    hidden = model(ids[:-1], Layout.whole([length])).hidden_Td
    model.ops.cross_entropy(hidden, model.head.weight, ids[1:]).mean().backward()
    torch.nn.functional.cross_entropy(peer(ids[None, :-1]).logits[0], ids[1:]).backward()
    theirs = {name: parameter.grad for name, parameter in peer.named_parameters()}
    low = {}
    for name, parameter in model.named_parameters():
        if name.startswith("mtp.") or ".indexer." in name:  # selection is not differentiable: neither side has one
            continue
        other = theirs[their_name(name, model.config.family)].double().flatten()
        grad = parameter.grad.double().flatten()
        cosine, ratio = torch.nn.functional.cosine_similarity(grad, other, 0), grad.norm() / other.norm()
        if not cosine >= 0.99999 or not abs(ratio - 1) < 1e-4:
            low[name] = (float(cosine), float(ratio))
    assert not low
