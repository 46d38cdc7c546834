"""The shipped corpus and the user's own text files."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from anychip.errors import InputError
from anychip.text import corpus
from anychip.text.prompts import prompts


def test_splits_of_each_work_partition_its_text() -> None:
    for work in corpus.works():
        whole = (work.text("train") + work.text("validation")).encode()
        assert hashlib.sha256(whole).hexdigest() == work.text_sha256
        assert len(whole) == work.text_bytes
        assert 0.02 < len(work.text("validation")) / len(whole) < 0.05


def test_no_long_validation_paragraph_occurs_in_training_text() -> None:
    train = corpus.load("train")
    paragraphs = [p for p in corpus.load("validation").split("\n") if len(p) > 200]
    assert len(paragraphs) > 100
    assert [p for p in paragraphs if p in train] == []


def test_corpus_digests_are_the_ones_results_were_made_with() -> None:
    """A change here changes every trained checkpoint and every recorded loss: change it knowingly."""
    assert corpus.digest("train") == "a8a83eec858bc275cd3ebce59e2ad1fa9f792d6c9f5ab45b791a55af9eb33d85"
    assert corpus.digest("validation") == "205753cb7ee6e4c23273301b4928307ab3370eb701c93f854ae6418b45d73c7d"


def test_corpus_has_the_size_and_variety_it_claims() -> None:
    assert corpus.names() == [
        "pride-and-prejudice", "persuasion", "moby-dick", "king-james-bible", "devils-dictionary",
    ]  # fmt: skip
    assert 3_500_000 < len(corpus.load()) < 4_500_000
    assert sum(path.stat().st_size for path in corpus.FOLDER.iterdir()) < 1_300_000


def test_load_joins_the_documents_with_an_empty_line() -> None:
    assert corpus.load("validation") == "\n\n".join(corpus.documents("validation"))


def test_corpus_text_is_clean_prose() -> None:
    text = corpus.load("train") + corpus.load("validation")
    assert "Gutenberg" not in text and "\r" not in text and "\t" not in text and "\ufeff" not in text
    assert "Call me Ishmael. Some years ago--never mind how long precisely--having little" in text
    assert "\n1 In the beginning God created the heaven and the earth.\n2 And the earth" in text


def test_unknown_split_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match=r"no split 'valid'; the splits are train, validation.*'validation'"):
        corpus.load("valid")


def test_damaged_corpus_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = corpus.works()[0]
    packed = (corpus.FOLDER / work.file).read_bytes()
    monkeypatch.setattr(corpus, "FOLDER", tmp_path)
    with pytest.raises(InputError, match=r"cannot be read .*reinstall anychip"):
        work.text("train")
    (tmp_path / work.file).write_bytes(packed[:1000])
    with pytest.raises(InputError, match=r"cannot be read .*reinstall anychip"):
        work.text("train")
    (tmp_path / work.file).write_bytes(packed)
    with pytest.raises(InputError, match=r"has sha256 .* sources.toml says 0000"):
        dataclasses.replace(work, text_sha256="0000").text("train")


def test_third_party_file_names_every_package_and_its_sha256() -> None:
    listed = (Path(__file__).parent.parent / "THIRD_PARTY.md").read_text(encoding="utf-8")
    for work in corpus.works():
        name, version, *_ = work.package.split()
        assert f"`{name}` {version}" in listed and work.package_sha256 in listed
        assert work.licence.startswith("public domain")


def test_text_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffnaïve\r\n 鲸 🐋\0\n".encode())
    assert corpus.read_text(path) == "naïve\r\n 鲸 🐋\0\n"


def test_jsonl_gives_one_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\\ntwo", "id": 1}\n\n{"text": "a\u2028b"}\n', encoding="utf-8")
    assert corpus.read_documents(path) == ["one\ntwo", "a\u2028b"]
    assert corpus.read_text(path) == "one\ntwo\n\na\u2028b"


def test_bad_jsonl_lists_its_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\nhello\n[1]\n{"txt": "x"}\n{"text": 3}\n' + "{\n" * 4, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        corpus.read_text(path)
    message = str(caught.value)
    for reason in (
        "line 2: not JSON",
        "line 3: of type list",
        "line 4: no field \"text\"; its fields are 'txt'",
        'line 5: "text" is of type int',
        "and 3 more",
    ):
        assert reason in message
    assert "line 1:" not in message


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"caf\xe9\n", r"is not UTF-8: byte 3 is 0xe9 .*iconv"),
        ("a.txt", b" \n\t", "holds no text"),
        ("a.txt", b"", "holds no text"),
        ("a.jsonl", b'{"text": ""}\n', "holds no text"),
        ("a.pdf", b"%PDF", r"must end in .txt or .jsonl, not '.pdf'"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_unusable_text_file_is_refused_with_the_reason(
    tmp_path: Path, name: str, data: bytes | None, words: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=words):
        corpus.read_text(tmp_path / name)


def test_folder_in_place_of_a_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        corpus.read_text(tmp_path / "a.txt")


def test_prompts_are_short_and_not_taken_from_the_corpus() -> None:
    text = corpus.load("train") + corpus.load("validation")
    found = prompts()
    assert len(found) == 8
    for prompt in found.values():
        assert 10 < len(prompt) < 200 and prompt == prompt.strip()
        assert prompt not in text
