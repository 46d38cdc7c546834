"""The rough scan of the indexer's keys never changes a choice: decode with it and without it gives the same bits."""

import dataclasses

import numpy as np
import pytest
import torch
from models import nano, random_ids, vivid_model

from anychip.chips import open_chip
from anychip.chips.cpu import batch, block
from anychip.chips.cpu.attention import index_copies
from anychip.model import Layout, State
from anychip.model.paged import PagedBatch, PagedCache
from anychip.model.paged_pass import run_pass

needs_tiles = pytest.mark.skipif(index_copies(16, 32) is None, reason="this processor has no bf16 tiles (AMX)")
KEYS = {
    "random": lambda keys: keys,
    "ties": torch.round,
    "nothing": torch.zeros_like,
    "too small to square": lambda keys: keys * 1e-24,
    "one not a number": lambda keys: keys.index_fill(0, torch.tensor([77]), torch.nan),
    "one infinite": lambda keys: keys.index_fill(0, torch.tensor([77]), torch.inf),
    "a few large": lambda keys: keys.index_fill(0, torch.arange(300, 310), 300.0),
}


@pytest.fixture(scope="module")
def model():
    return vivid_model(dataclasses.replace(nano(), index_topk=16), open_chip("cpu").ops())


def decode(model, keys):
    """Hidden rows of a few passes over a state of 4,001 tokens with the given keys."""
    state, generator, out = State(model.config, 4100), torch.Generator().manual_seed(0), []
    state.assume(at := 4001)
    for layer in range(model.config.num_blocks):
        for name, buffer in state.buffers(layer).items():
            buffer.normal_(generator=generator)
            if name == "indexer.entry":
                buffer.copy_(keys(buffer))
    with torch.inference_mode():
        for count in (1, 1, 3, 8, 1):
            out.append(model(random_ids(count, at), Layout((at,), (count,)), state).hidden_Td)
            at += count
    return torch.cat(out)


@needs_tiles
@pytest.mark.parametrize("kind", KEYS)
def test_whatever_the_keys_are_a_state_is_read_alike(model, monkeypatch, kind):
    rough = decode(model, KEYS[kind])
    monkeypatch.setattr(block, "index_copies", lambda *_: None)
    assert torch.equal(rough.nan_to_num(7.0), decode(model, KEYS[kind]).nan_to_num(7.0))


def serve(model, format):
    """Logits of a sequence of 900 tokens and of one that goes its own way from there in the middle of a block."""
    cache = PagedCache(model.config, num_blocks=24, num_slots=2, max_tokens=1024, format=format)
    tables = np.arange(24, dtype=np.int32).reshape(3, 8)[[2, 0]]
    tables[1, :7] = tables[0, :7]
    ids, out = random_ids(1024).numpy(), []

    def feed(start, count, sequences):
        of = np.concatenate([ids[start + s : start + s + count] for s in range(sequences)])
        starts, lengths = (np.full(sequences, n) for n in (start, count))
        last = np.arange(1, sequences + 1) * count - 1
        given = PagedBatch(of, starts, lengths, np.arange(sequences), tables[:sequences], last)
        out.append(run_pass(model, cache, given)[0])

    for start in range(0, 900, 300):
        feed(start, 300, 1)
    cache.copy_slot(0, 1)
    cache.copy_block(tables[0, 7], tables[1, 7])
    for at, count in ((900, 1), (901, 1), (902, 40), (942, 2)):
        feed(at, count, 2)
    return torch.cat(out), cache


@needs_tiles
@pytest.mark.parametrize("format", ["fp32", "fp8"])
def test_a_paged_cache_is_read_alike_after_a_fork_too(model, monkeypatch, format):
    rough, cache = serve(model, format)
    assert len(cache.beside) == 2
    monkeypatch.setattr(batch, "index_copies", lambda *_: None)
    exact, cache = serve(model, format)
    assert not cache.beside and torch.equal(rough, exact)
