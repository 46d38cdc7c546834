"""Training batches: which tokens a step sees depends on the seed and the step alone."""

from __future__ import annotations

import hashlib

import pytest
import torch

from anychip.errors import InputError
from anychip.text.batches import TokenBatches, encode_documents
from anychip.text.tokenizer import open_tokenizer


def test_batch_has_the_shape_and_targets_are_the_next_tokens() -> None:
    stream = torch.arange(1000)
    inputs, targets = TokenBatches(stream, batch=4, length=16, seed=1).at(7)
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(16))


def test_step_does_not_depend_on_the_steps_before_it() -> None:
    stream = list(range(5000))
    straight = TokenBatches(stream, 3, 8, seed=2)
    seen = [straight.at(step) for step in range(20)]
    resumed = TokenBatches(stream, 3, 8, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(resumed.at(13), seen[13], strict=True))


def test_batches_do_not_read_torchs_random_state() -> None:
    batches = TokenBatches(range(5000), 3, 8, seed=2)
    torch.manual_seed(0)
    first, _ = batches.at(0)
    torch.manual_seed(1)
    assert torch.equal(first, batches.at(0)[0])


def test_windows_are_the_ones_of_the_published_rule() -> None:
    """Frozen: another rule would make old loss curves and bundles incomparable."""
    inputs, _ = TokenBatches(range(100), batch=2, length=4, seed=11).at(3)
    for row in range(2):
        drawn = hashlib.sha256(f"11/3/{row}".encode()).digest()[:8]
        assert int(inputs[row, 0]) == int.from_bytes(drawn, "little") % 96


def test_seeds_steps_and_rows_draw_different_windows() -> None:
    stream = range(1_000_000)
    batches = TokenBatches(stream, 64, 4, seed=0)
    starts = torch.cat([batches.at(step)[0][:, 0] for step in range(20)])
    assert len(set(starts.tolist())) > 1250  # of 1280
    assert not torch.equal(batches.at(0)[0], TokenBatches(stream, 64, 4, seed=1).at(0)[0])


def test_every_window_of_the_stream_can_be_drawn_and_none_beyond() -> None:
    batches = TokenBatches(range(10), batch=64, length=4, seed=0)
    starts = {int(start) for step in range(10) for start in batches.at(step)[0][:, 0]}
    assert starts == set(range(6))


def test_stream_of_exactly_one_window_is_enough() -> None:
    inputs, targets = TokenBatches([5, 6, 7], batch=2, length=2, seed=0).at(0)
    assert inputs.tolist() == [[5, 6], [5, 6]]
    assert targets.tolist() == [[6, 7], [6, 7]]


def test_digest_is_of_the_tokens_alone() -> None:
    one = TokenBatches([1, 2, 3, 4], 1, 2, seed=0)
    two = TokenBatches(torch.tensor([1, 2, 3, 4], dtype=torch.int32), 9, 3, seed=5)
    assert one.digest == two.digest
    assert one.digest == hashlib.sha256(b"".join(n.to_bytes(8, "little") for n in (1, 2, 3, 4))).hexdigest()
    assert one.digest != TokenBatches([1, 2, 4, 3], 1, 2, seed=0).digest


def test_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"the text has 16 tokens, length=16 needs at least 17: give more text or"
    ):
        TokenBatches(range(16), batch=2, length=16, seed=0)


def test_all_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(
        InputError, match=r"batch=0.*; length=-1.*; .*shape \[1, 2\].*; the smallest token id is -3"
    ):
        TokenBatches(torch.tensor([[4, -3]]), batch=0, length=-1, seed=0)
    with pytest.raises(InputError, match=r"token ids are torch.float32, whole numbers"):
        TokenBatches(torch.zeros(9), batch=1, length=2, seed=0)


def test_negative_step_is_refused() -> None:
    with pytest.raises(InputError, match=r"no training step -1; steps count from 0"):
        TokenBatches(range(9), 1, 2, seed=0).at(-1)


def test_every_document_begins_with_the_begin_of_sentence_token() -> None:
    tokenizer = open_tokenizer("anychip-4096")
    stream = encode_documents(tokenizer, ["one whale", "", "two"])
    one, two = tokenizer.encode("one whale"), tokenizer.encode("two")
    assert stream.tolist() == [0, *one, 0, 0, *two]
    assert stream.dtype == torch.int64
