"""C++ libraries are built once, kept whole, and their failures say what the compiler said."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from anychip import cpp
from anychip.cpp import CppLibrary
from anychip.errors import ChipError

GXX = shutil.which("g++")
pytestmark = pytest.mark.skipif(GXX is None, reason="no g++ here; `apt-get install g++` brings it")


def library(folder, text: str, flags: tuple[str, ...] = ("-fPIC",)) -> CppLibrary:
    folder.mkdir(exist_ok=True)
    (folder / "answer.h").write_text(text)
    (folder / "answer.cpp").write_text('#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n')
    return CppLibrary("answer", folder, (str(GXX),), flags, ChipError)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cpp, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_a_library_is_built_once_and_anew_when_a_header_changes(tmp_path, cache) -> None:
    assert [library(tmp_path / "s", "#define ANSWER 41").load().answer() for _ in range(2)] == [41, 41]
    assert len(list(cache.glob("*.so"))) == 1
    assert library(tmp_path / "s", "#define ANSWER 42").load().answer() == 42
    assert len(list(cache.glob("*.so"))) == len(list((cache / "answer").glob("*.o"))) == 2


def test_two_that_need_a_library_at_once_build_it_once(tmp_path, monkeypatch) -> None:
    commands, run = [], CppLibrary._run
    monkeypatch.setattr(CppLibrary, "_run", lambda self, command: commands.append(command) or run(self, command))
    wanted = library(tmp_path / "s", "#define ANSWER 41")
    with ThreadPoolExecutor(2) as pool:
        assert [found.answer() for found in pool.map(lambda _: wanted.load(), range(2))] == [41, 41]
    assert sum("-c" in command for command in commands) == 1


def test_other_flags_make_another_library(tmp_path, cache) -> None:
    for flags in (("-fPIC",), ("-fPIC", "-O2")):
        library(tmp_path / "s", "#define ANSWER 1", flags).load()
    assert len(list(cache.glob("*.so"))) == 2


def test_a_source_that_does_not_compile_leaves_nothing_and_says_why(tmp_path, cache) -> None:
    with pytest.raises(ChipError, match="ANSWER"):
        library(tmp_path / "s", "// nothing").load()
    assert not list(cache.rglob("*.so")) and not list(cache.rglob("*.o"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path, cache) -> None:
    cache.write_text("a file where the folder belongs")
    with pytest.raises(ChipError, match="could not be written or loaded"):
        library(tmp_path / "s", "#define ANSWER 1").load()
