"""Stored tokens and packed batches: every token once an epoch, samples apart, the same on any machine and rank."""

import json
import os

import numpy as np
import pytest
import torch

from anychip.errors import InputError
from anychip.text import store
from anychip.text.packing import DocumentRows, PackedBatches, SampleRows, shuffled
from anychip.text.sources import documents
from anychip.text.store import TokenStore, open_store
from anychip.text.tokenizer import open_tokenizer

WORDS = open_tokenizer("anychip-4096")
TEXTS = ["The whale.", "Call me Ishmael. " * 9, "A", "It was the best of times. " * 20, "naïve — 鲸"]


def store_of(texts=TEXTS):
    return TokenStore.of(WORDS, texts)


def batches(batch=2, length=16, seed=0):
    return PackedBatches(DocumentRows(store_of(), length, seed), batch, seed)


def files(folder):
    """The same documents in every kind of file."""
    import pyarrow
    from pyarrow import parquet

    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": TEXTS, "n": range(5)}), folder / "a.parquet", row_group_size=2)
    for i, text in enumerate(TEXTS):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    return [[folder / "a.jsonl"], [folder / "a.parquet"], [folder / f"{i}.txt" for i in range(5)]]


def test_an_epoch_holds_every_token_once():
    found = batches(batch=1)
    rows = len(found.rows)
    inputs = torch.cat([found.at(step)[0].flatten() for step in range(rows)])
    stream = np.concatenate([found.rows.at(row)[0] for row in range(rows)])
    assert sorted(inputs.tolist()) == sorted(stream.tolist())
    whole = store_of().tokens.astype(int)
    assert len(stream) == (len(whole) - 1) // 16 * 16
    missing = np.bincount(whole, minlength=4096) - np.bincount(stream, minlength=4096)
    assert missing.min() == 0 and missing.sum() == len(whole) - len(stream)


def test_samples_are_documents_that_do_not_predict_each_other():
    rows = DocumentRows(store_of(), 16, 3)
    for row in range(len(rows)):
        inputs, targets, lengths = rows.at(row)
        assert sum(lengths) == 16
        for end in np.cumsum(lengths)[:-1]:
            assert inputs[end] == WORDS.bos_id and inputs[end - 1] == WORDS.eos_id and targets[end - 1] == -1
        kept = np.flatnonzero(targets[:-1] >= 0)
        assert (targets[kept] == inputs[kept + 1]).all()


def test_documents_come_out_as_they_went_in():
    rows = DocumentRows(store_of(), 16, 1)
    stream = [token for row in range(len(rows)) for token in rows.at(row)[0].tolist()]
    whole = WORDS.decode(stream).replace("<｜begin▁of▁sentence｜>", "")
    found = whole.split("<｜end▁of▁sentence｜>")
    assert set(found[:-1]) <= set(TEXTS) and len(found) >= 4 and any(text.startswith(found[-1]) for text in TEXTS)


def test_a_step_depends_on_seed_and_number_alone():
    one, other = batches(), batches()
    later = one.at(40)  # in another epoch, made first
    for step in (0, 1, 40):
        assert all(torch.equal(a, b) for a, b in zip(one.at(step)[:2], other.at(step)[:2], strict=True))
        assert one.at(step)[2] == other.at(step)[2]
    assert torch.equal(later[0], other.at(40)[0])
    assert not torch.equal(one.at(0)[0], batches(seed=1).at(0)[0])


def test_the_order_is_the_same_on_every_machine():
    assert shuffled(8, "0/0").tolist() == [5, 6, 1, 2, 3, 4, 0, 7]
    assert sorted(shuffled(1000, "x").tolist()) == list(range(1000))


def test_every_kind_of_file_gives_the_same_tokens(tmp_path):
    stores = [open_store(WORDS, paths, tmp_path / "cache") for paths in files(tmp_path)]
    for found in stores:
        assert np.array_equal(found.tokens, store_of().tokens) and np.array_equal(found.ends, store_of().ends)
    assert stores[0].tokens.dtype == np.uint16 and isinstance(stores[0].tokens, np.memmap)


def test_text_is_tokenised_once(tmp_path, monkeypatch):
    paths = files(tmp_path)[0]
    first = open_store(WORDS, paths, tmp_path / "cache")
    monkeypatch.setattr(store, "documents", lambda paths: pytest.fail("tokenised again"))
    assert open_store(WORDS, paths, tmp_path / "cache").digest == first.digest
    paths[0].write_text(json.dumps({"text": "other"}))
    with pytest.raises(pytest.fail.Exception):
        open_store(WORDS, paths, tmp_path / "cache")


def test_a_store_that_could_not_be_finished_leaves_nothing(tmp_path, monkeypatch):
    paths = files(tmp_path)[0]
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="No space left on device; free the disk"):
        open_store(WORDS, paths, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "tokens").iterdir())


def test_files_that_cannot_be_read_are_refused_with_their_reasons(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\nnot json\n{"words": 1}\n')
    with pytest.raises(InputError, match=r"line 2: not JSON .*\n  line 3: no field \"text\""):
        list(documents([tmp_path / "bad.jsonl"]))
    with pytest.raises(InputError, match=r"notes.pdf \(ends in '.pdf'\): a name must end in .txt, .jsonl, .parquet"):
        list(documents([tmp_path / "notes.pdf"]))
    with pytest.raises(InputError, match="cannot read .*none.txt: No such file"):
        open_store(WORDS, [tmp_path / "none.txt"], tmp_path)
    files(tmp_path)
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"words": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="has no column 'text'; its columns are words"):
        list(documents([tmp_path / "b.parquet"]))


def test_samples_fill_rows_whole_and_once():
    lengths = [3, 16, 5, 8, 2, 7, 9, 4]
    samples = [(np.full(n, i), np.full(n, i)) for i, n in enumerate(lengths)]
    rows = SampleRows(samples, 16, filler=99)
    assert len(rows) == 4  # 54 tokens: as few rows as can hold them
    met = []
    for row in range(len(rows)):
        inputs, targets, sizes = rows.at(row)
        at = np.cumsum([0, *sizes])
        for start, end in zip(at[:-1], at[1:], strict=True):
            number = int(inputs[start])
            assert (targets[start:end] == (-1 if number == 99 else number)).all() and len(set(inputs[start:end])) == 1
            met += [number] * (number != 99)
            assert number == 99 or end - start == lengths[number]
    assert sorted(met) == list(range(8))


def test_a_sample_longer_than_a_row_is_named():
    with pytest.raises(InputError, match=r"1 of 2 samples are longer than length=4: number 1 \(6 tokens\)"):
        SampleRows([(np.zeros(3, int), np.zeros(3, int)), (np.zeros(6, int), np.zeros(6, int))], 4, 0)
