"""Every family but V4 against transformers 5.23 in fp32 with the same weights: logits, gradients, every way to cut."""

import numpy as np
import pytest
import torch
from families import clear_ids, configs
from models import random_ids, vivid_model
from peer import departing_gradients, peer_of

from anychip.chips import open_chip
from anychip.config import load_config
from anychip.model import Layout, State, count_parameters
from anychip.model.attention import Indexer
from anychip.model.paged import PagedBatch, PagedCache
from anychip.model.paged_pass import run_draft, run_pass
from anychip.ops import Ops, Ranges
from anychip.train.indexer_loss import indexer_loss

TOLERANCE = 1e-4  # of max |logit|: the bound that a port is held to
CHIPS = ("cpu:reference", "cpu")


@pytest.fixture(scope="module", params=configs())
def pair(request):
    model = vivid_model(configs()[request.param], open_chip("cpu").ops())
    return model, peer_of(model)


@pytest.fixture
def ours(request, pair):
    model = pair[0]
    model.ops = open_chip(request.param).ops()
    return model


def close(ours, theirs):
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())


@pytest.mark.parametrize("ours", CHIPS, indirect=True)
def test_logits_of_packed_texts_equal(pair, ours):
    lengths = [1, 3, 64, 65, 110]
    ids = clear_ids(ours, lengths)
    with torch.no_grad():
        found = ours.logits(ours(ids, Layout.whole(lengths)).hidden_Td).split(lengths)
        assert [close(mine, pair[1](part[None]).logits[0])
                for mine, part in zip(found, ids.split(lengths), strict=True)] == [True] * len(lengths)


@pytest.mark.parametrize("ours", CHIPS, indirect=True)
def test_chunked_prefill_then_decode_equals_their_whole_pass(pair, ours):
    ids, state, at, parts = clear_ids(ours, [130]), State(ours.config, 130, chunk=80), 0, []
    with torch.no_grad():
        for size in [70, 33] + [1] * 7 + [20]:
            parts.append(ours(ids[at : at + size], Layout((at,), (size,)), state).hidden_Td)
            at += size
        assert close(ours.logits(torch.cat(parts)), pair[1](ids[None]).logits[0])


@pytest.mark.parametrize(("ours", "length"), [("cpu:reference", 100), ("cpu", 50), ("cpu", 120)],  # an indexer picks 64
                         indirect=["ours"])
def test_every_gradient_equals(pair, ours, length):
    assert not departing_gradients(ours, pair[1], clear_ids(ours, [length + 1]))


@pytest.mark.parametrize(("name", "chip"), [("v3", "cpu:reference"), ("v3", "cpu"), ("qwen3-moe", "cpu"),
                                            ("glm5 that shares indexers", "cpu")])
def test_paged_passes_and_drafts_equal_whole_ones(name, chip):
    model = vivid_model(configs()[name], open_chip(chip).ops())
    cache = PagedCache(model.config, num_blocks=6, num_slots=2, max_tokens=256)
    cache.blocks.fill_(torch.nan)  # what was never written must not be read
    texts, tables = clear_ids(model, [150, 90]).split([150, 90]), np.array([[4, 1], [0, 3]], dtype=np.int32)
    at, logits, drafts = [0, 0], [[], []], [[], []]
    for lengths in ([100, 1], [1, 60], [49, 29]):
        new = [text[a : a + n] for text, a, n in zip(texts, at, lengths, strict=True)]
        after = [text.roll(-1)[a : a + n] for text, a, n in zip(texts, at, lengths, strict=True)]
        batch, ahead = (PagedBatch(torch.cat(ids).numpy(), np.array(at), np.array(lengths), np.array([1, 0]), tables,
                                   np.arange(sum(lengths))) for ids in (new, after))
        found = run_pass(model, cache, batch)
        for s, part in enumerate(found.logits_RV.split(lengths)):
            logits[s].append(part)
        if model.mtp:
            for s, part in enumerate(run_draft(model, cache, ahead, found.streams_Tnd.clone()).split(lengths)):
                drafts[s].append(part)
        at = [a + n for a, n in zip(at, lengths, strict=True)]
    with torch.no_grad():
        for s, text in enumerate(texts):
            layout = Layout.whole([len(text)])
            hidden = model(text, layout)
            assert close(torch.cat(logits[s]), model.logits(hidden.hidden_Td))
            if model.mtp:
                whole = model.logits(model.predict_next(hidden.streams_Tnd, text.roll(-1), layout))
                assert close(torch.cat(drafts[s]), whole)


def test_the_mtp_block_reads_the_normalised_hidden_and_the_next_token():
    """As vLLM's deepseek_mtp: eh_proj of cat(enorm(embedding), hnorm(hidden after the final norm)), block, norm."""
    model = vivid_model(configs()["v3"], Ops())
    ids, layout, block, eps = random_ids(40), Layout.whole([40]), model.mtp[0], model.config.rms_norm_eps
    with torch.no_grad():
        hidden = model(ids, layout)
        assert torch.equal(hidden.streams_Tnd[:, 0], hidden.hidden_Td)
        joined = torch.cat((Ops.rms_norm(model.embed.weight[ids.roll(-1)], block.enorm.weight, eps),
                            Ops.rms_norm(hidden.hidden_Td, block.hnorm.weight, eps)), 1)
        joined = joined @ torch.cat((block.e_proj.weight, block.h_proj.weight), 1).T
        streams = block(joined[:, None], ids.roll(-1), model._plan(layout, None), model.ops)
        expected = Ops.rms_norm(streams[:, 0], block.norm.weight, eps)
        assert close(model.predict_next(hidden.streams_Tnd, ids.roll(-1), layout), expected)


@pytest.mark.parametrize("name", ["v32", "glm5 that shares indexers"])
def test_what_the_indexers_loss_watches_is_what_attention_reads(name):
    model = vivid_model(configs()[name], Ops())
    for module in model.modules():
        if isinstance(module, Indexer):
            module.watch = True
    ids = random_ids(150)
    watched_hidden = model(ids, Layout.whole([150])).hidden_Td
    full = [layer.attn for layer in model.layers if layer.attn.indexer is not None]
    assert all(attn.watched is not None and attn.watched.sink_H is None for attn in full)
    loss = sum(indexer_loss(attn.watched) for attn in full)
    loss.backward()
    assert all(parameter.grad is not None for attn in full for parameter in attn.indexer.parameters())
    assert model.layers[0].attn.wq_a.weight.grad is None  # the loss trains indexers alone
    with torch.no_grad():
        assert close(watched_hidden, model(ids, Layout.whole([150])).hidden_Td)
    for module in model.modules():
        if isinstance(module, Indexer):
            module.dense = True
    dense = model(ids, Layout.whole([150])).hidden_Td
    assert isinstance(full[0].watched.keys.selected, Ranges) and not close(watched_hidden, dense)
    for module in model.modules():
        if isinstance(module, Indexer):
            module.watch = False
    assert close(dense, model(ids, Layout.whole([150])).hidden_Td)  # absorbed and by head: the same numbers


@pytest.mark.parametrize("name", ["v32", "qwen3-moe", "glm5 that shares indexers"])
def test_recomputed_blocks_give_the_same_gradients(name):
    model, ids, found = vivid_model(configs()[name], open_chip("cpu").ops()), random_ids(120), []
    for recompute in (False, True):
        model.zero_grad()
        for block in model.layers:
            block.recompute = recompute
        model(ids, Layout.whole([70, 50])).hidden_Td.square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# Publishers' own counts: DeepSeek's READMEs (671B, 37B), GLM-5's (744B-A40B), Qwen3's (30.5B, 3.3B; 235B, 22B). Whether
# a publisher counts the embedding as active is not said: it is what comes nearest to all of its figures.
PUBLISHED = {"deepseek-v3": (671e9, 37e9, "active"), "deepseek-v3.2": (671e9, 37e9, "active"),
             "glm-5.1": (744e9, 40e9, "active"), "qwen3-30b-a3b": (30.5e9, 3.3e9, "active_with_embedding"),
             "qwen3-235b-a22b": (235e9, 22e9, "active_with_embedding"),
             "qwen3-8b": (8.2e9, 8.2e9, "active_with_embedding")}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_parameter_counts(preset):
    total, active, as_counted = PUBLISHED[preset]
    counted = count_parameters(load_config(preset))
    assert abs(counted.total / total - 1) < 0.003
    assert abs(getattr(counted, as_counted) / active - 1) < 0.025
