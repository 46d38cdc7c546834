"""The paged cache: the kernel of the cpu chip against the ops, and books that add up after anything."""

import random

import numpy as np
import pytest
import torch
from models import nano, random_ids, vivid_model

from anychip.chips import open_chip
from anychip.errors import InputError
from anychip.model import Layout
from anychip.model.paged import PagedBatch, PagedCache
from anychip.model.paged_pass import run_draft, run_pass
from anychip.ops import Ops
from anychip.serve.cache import CacheBook, digests

IDS = [random_ids(400, seed=s).numpy() for s in range(3)]
TABLES = np.random.default_rng(0).permutation(16).astype(np.int32)[:12].reshape(3, 4)
SLOTS = np.array([2, 0, 1])
PASSES = [(140, 1, 126), (1, 2, 3), (3, 1, 1), (1, 130, 2), (2, 1, 1)]


@pytest.fixture(scope="module")
def model():
    return vivid_model(nano(), open_chip("cpu").ops())


def cache(model, **fields):
    made = PagedCache(model.config, num_blocks=16, num_slots=3, max_tokens=512, **fields)
    for pool in (made.slots, made.blocks):
        pool.fill_(torch.nan)  # what was never written must not be read
    return made


def batch(starts, lengths, *, ahead=0, rows=slice(None), sequences=slice(None)):
    spans = list(zip(range(3)[sequences], starts[sequences], lengths[sequences], strict=True))
    ids = np.concatenate([IDS[s][a + ahead : a + n + ahead] for s, a, n in spans])
    starts, lengths = (np.array(column[sequences]) for column in (starts, lengths))
    return PagedBatch(ids, starts, lengths, SLOTS[sequences], TABLES[sequences], np.arange(len(ids))[rows])


def run(model, held, passes=PASSES):
    """Logits and drafts of all tokens of all passes."""
    at, found = (0, 0, 0), []
    for lengths in passes:
        logits, streams = run_pass(model, held, batch(at, lengths))
        found.append((logits, run_draft(model, held, batch(at, lengths, ahead=1), streams.clone())))
        at = tuple(a + n for a, n in zip(at, lengths, strict=True))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def test_the_kernel_equals_the_ops(model):
    other = vivid_model(nano(), Ops())
    for ours, theirs in zip(run(model, cache(model)), run(other, cache(other)), strict=True):
        assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()


def test_a_paged_pass_equals_a_whole_one(model):
    logits, streams = run_pass(model, cache(model), batch((0, 0, 0), (300, 1, 140)))
    with torch.no_grad():
        ids = torch.tensor(np.concatenate([IDS[0][:300], IDS[1][:1], IDS[2][:140]]))
        hidden = model(ids, Layout.whole([300, 1, 140]))
        expected = model.logits(hidden.hidden_Td)
    assert (logits - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert (streams - hidden.streams_Tnd).abs().max() <= 2e-5 * hidden.streams_Tnd.abs().max()


def test_no_bit_depends_on_cuts_companions_or_threads(model):
    alone = run_pass(model, cache(model), batch((0,), (300,), sequences=slice(1)))[0]
    cut, held = [], cache(model)
    for start, length in [(0, 1), (1, 2), (3, 125), (128, 130), (258, 3), (261, 39)]:
        cut.append(run_pass(model, held, batch((start,), (length,), sequences=slice(1)))[0])
    assert torch.equal(torch.cat(cut), alone)
    assert torch.equal(run_pass(model, cache(model), batch((0, 0, 0), (300, 7, 129)))[0][:300], alone)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert torch.equal(run_pass(model, cache(model), batch((0,), (300,), sequences=slice(1)))[0], alone)
    finally:
        torch.set_num_threads(threads)


def test_a_snapshot_at_a_blocks_end_is_all_that_another_slot_needs(model):
    held = cache(model, num_snapshots=1)
    run_pass(model, held, batch((0,), (256,), sequences=slice(1)))
    held.save(2, 0)
    expected = run_pass(model, held, batch((256,), (60,), sequences=slice(1)))[0]
    held.slots.fill_(torch.nan)
    held.restore(0, 2)
    assert torch.equal(run_pass(model, held, batch((256,), (60,), sequences=slice(1)))[0], expected)


def test_fp8_is_stored_alike_by_the_kernel_and_the_ops(model):
    other = vivid_model(nano(), Ops())
    pools = []
    for each in (model, other):
        held = cache(each, format="fp8")
        run_pass(each, held, batch((0,), (128,), sequences=slice(1)))
        ring, block = held.rings[0, "window"], TABLES[0, 0]
        entries = (held.held(1, f"{part}.entry")[block] for part in ("compressor", "indexer"))
        pools.append([held.slots[2, ring.offset : ring.end], *entries])
    for ours, theirs in zip(*pools, strict=True):
        assert (ours == theirs).float().mean() > 0.98  # a last bit before rounding may fall on either side
        assert len(ours.unique()) < ours.numel() / 2


def test_bytes_are_those_of_the_pools(model):
    held = cache(model, num_snapshots=2)
    floats = held.slots.numel() + held.blocks.numel() + held.snapshots.numel()
    assert held.nbytes == 4 * floats
    assert len(held.blocks) // 16 == 2 * 32 * (64 + 32) + 2 * 64  # two CSA layers with keys, two HCA layers


def test_a_batch_that_cannot_be_run_is_refused_with_all_reasons():
    words = r"not one a sequence; .*do not reach the tokens \[600, 1\]; wanted rows \[9\]"
    starts, ones, zeros = np.array([599, 0]), np.array([1, 1]), np.array([0, 0])
    with pytest.raises(InputError, match=words):
        PagedBatch(zeros, starts, ones, zeros, TABLES[:2], np.array([9]))


def test_the_books_add_up_after_any_sequence_of_uses():
    draw, book, held = random.Random(0), CacheBook(12, 4, 3), []
    for step in range(3000):
        if draw.random() < 0.5:
            tokens = [draw.randrange(2)] * 128 * draw.randrange(1, 5)
            names = digests(tokens)
            blocks, _ = book.match(names)
            book.share(blocks)
            while len(blocks) < len(names) and (block := book.take()) is not None:
                book.name(block, names[len(blocks)])
                blocks.append(block)
                book.keep_snapshot(names[len(blocks) - 1])
            held.append(blocks)
        elif held:
            book.release(held.pop(draw.randrange(len(held))))
        if step % 10 == 0:
            book.check()
    for blocks in held:
        book.release(blocks)
    book.check()
    assert book.available == 12


def test_a_prefix_is_its_tokens_in_order():
    a, b = digests([1] * 128 + [2] * 128 + [3]), digests([2] * 128 + [1] * 128)
    assert len(a) == len(b) == 2 and a[0] == digests([1] * 200)[0] and not set(a) & set(b)
