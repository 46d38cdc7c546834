"""Kernels through Huawei's compiler: what comes out, what is cached, and one clear message for each failure."""

import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from anychip.ascend import CompileOptions, MemoryUse, cache, compile_kernel, find_target, list_targets, toolchain
from anychip.errors import ChipError, KernelError, NotSupported

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("ascendnpuir") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs pip install 'anychip[ascend]', and Triton not in interpreter mode")
DOUBLE = ({"x": "*fp32", "y": "*fp32", "n": "i32"}, {"BLOCK": 1024})


@pytest.fixture
def cases():
    import ascend_cases

    return ascend_cases


def line_of(text):
    lines = Path(__file__).with_name("ascend_cases.py").read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if text in line]
    return f"ascend_cases.py:{number}"


def refusal(fn, signature, constants, target, folder):
    with pytest.raises(KernelError) as error:
        compile_kernel(fn, signature, constants, target, folder=folder)
    assert "\n" not in str(error.value) and fn.__name__ in str(error.value)
    return error.value


def test_chip_names_mean_parts_that_the_compiler_knows():
    assert find_target("virtual:ascend910b").name == find_target("Ascend910b2").name == "Ascend910B2"
    assert find_target("ascend950").is_950 and find_target("ascend910c").num_cube == 24
    with pytest.raises(ChipError, match="Did you mean 'ascend910b'?"):
        find_target("ascend91b")


@needs_compiler
def test_every_name_and_size_is_what_the_compilers_say():
    found = toolchain.find_toolchain()
    listed = {name: compiler for compiler in ("bishengir-compile", "bishengir-compile-a5")  # a5 prints the arch too
              for name in toolchain.target_names(found, compiler)}
    assert sorted(listed) == sorted(t.name for t in list_targets()) and len(listed) == 63
    for target in list_targets():
        spec = toolchain.target_spec(found, listed[target.name], target.name)
        assert (spec["CUBE_CORE_COUNT"], spec["VECTOR_CORE_COUNT"]) == (target.num_cube, target.num_vector)
        for space in ("ub", "l1", "l0a", "l0b", "l0c"):
            assert spec[f"{space.upper()}_SIZE"] == 8 * target.memory_bytes(space), target
        for space in ("ub", "l1", "l0c"):
            assert spec[f"{space.upper()}_ALIGN_SIZE"] == 8 * getattr(target, f"{space}_align_bytes"), target
        assert spec.get("ARCH", target.arch) == target.arch


@needs_compiler
@pytest.mark.parametrize("target", ["ascend910b", "ascend910c", "ascend950"])
def test_a_vector_kernel_compiles_with_stages_memory_and_places(cases, target, tmp_path):
    kernel = compile_kernel(cases.double, *DOUBLE, target, folder=tmp_path)
    assert kernel.core_type == "AIV" and list(kernel.signature) == ["x", "y", "n"]
    assert "tt.load" in kernel.ttir and "linalg" in kernel.linalg and '"hivm.hir.load"' in kernel.hivm
    limit = find_target(target).ub_bytes
    assert 4096 <= kernel.memory["ub"].used_bytes <= limit == kernel.memory["ub"].limit_bytes
    file, number = line_of("tl.store(y + i, scaled(").split(":")
    assert f'{file}":{number}:' in kernel.hivm and kernel.source_file.endswith(file)


@needs_compiler
def test_a_matrix_kernel_fills_the_cube_cores_memories(cases, tmp_path):
    signature = {"a": "*bf16", "b": "*bf16", "c": "*fp32"}
    kernel = compile_kernel(cases.product, signature, {"M": 64, "N": 128, "K": 32}, "ascend910b1", folder=tmp_path)
    assert kernel.core_type == "AIC" and "ub" not in kernel.memory
    assert kernel.memory["l1"] == MemoryUse((64 + 128) * 32 * 2, 512 * 1024)
    assert kernel.memory["l0a"].used_bytes == 64 * 32 * 2 and kernel.memory["l0b"].used_bytes == 128 * 32 * 2
    assert kernel.memory["l0c"].used_bytes == 64 * 128 * 4


@needs_compiler
def test_the_second_compilation_comes_from_the_cache(cases, tmp_path, monkeypatch):
    first = compile_kernel(cases.double, *DOUBLE, "ascend910b", folder=tmp_path)
    monkeypatch.setattr("anychip.ascend.compile.run", lambda *args, **named: pytest.fail("the compiler was started"))
    assert compile_kernel(cases.double, *DOUBLE, "ascend910b", folder=tmp_path) == first
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:100])
    with pytest.raises(pytest.fail.Exception):
        compile_kernel(cases.double, *DOUBLE, "ascend910b", folder=tmp_path)


@needs_compiler
def test_whatever_changes_the_result_makes_a_new_entry(cases, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # three files of one name, size and second
    text, folder, found = Path(cases.__file__).read_text(), tmp_path / "cache", set()
    for i, new in enumerate([text, text.replace("value * SCALE", "value + SCALE"), text.replace("(2.0)", "(3.0)")]):
        (tmp_path / "kernels.py").write_text(new)
        spec = importlib.util.spec_from_file_location(f"variant{i}", tmp_path / "kernels.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.add(compile_kernel(module.double, *DOUBLE, "ascend910b", folder=folder).hivm)
    compile_kernel(module.double, *DOUBLE, "ascend910b3", folder=folder)
    compile_kernel(module.double, *DOUBLE, "ascend910b3", CompileOptions(multi_buffer=False), folder=folder)
    assert len(found) == 3 and len(list(folder.iterdir())) == 5


@needs_compiler
def test_a_tile_too_big_names_memory_bytes_and_constants(cases, tmp_path):
    error = refusal(cases.double, DOUBLE[0], {"BLOCK": 131072}, "ascend910b", tmp_path)
    assert error.kind == "memory" and "UB overflow" in str(error) and "196,608 available" in str(error)
    assert "524,288 bytes are required" in str(error) and "BLOCK=131072" in str(error)
    error = refusal(cases.product, {"a": "*bf16", "b": "*bf16", "c": "*fp32"}, {"M": 512, "N": 512, "K": 64},
                    "ascend950", tmp_path)
    assert "L0C overflow: 1,048,576 bytes are required and 262,144 available, 4.0 times" in str(error)


@needs_compiler
def test_a_mistake_in_the_source_names_its_own_line(cases, tmp_path):
    error = refusal(cases.calls_unknown, {"x": "*fp32"}, {}, "ascend910b", tmp_path)
    assert error.kind == "source" and error.place.endswith(line_of("return value + nothing_of"))
    assert "NameError: nothing_of_this_name is not defined: return value + nothing_of" in str(error)
    error = refusal(cases.two_lengths, {"x": "*fp32"}, {}, "ascend910b", tmp_path)
    assert error.place.endswith(line_of("tl.arange(0, 32)) + tl.load")) and "32 and 64" in str(error)
    error = refusal(cases.opens_a_file, {"x": "*fp32"}, {}, "ascend910b", tmp_path)
    assert "unsupported AST node type: With" in str(error) and error.place.endswith(line_of("with open"))


@needs_compiler
def test_what_the_compilers_cannot_do_says_what_to_write_instead(cases, tmp_path):
    pair = {"x": "*fp32", "y": "*fp32"}
    error = refusal(cases.stride_two_and_offset, pair, {}, "ascend910b", tmp_path)
    assert error.kind == "crash" and "InterleaveOptimization" in str(error) and "run-time int argument" in str(error)
    error = refusal(cases.first_index, {"x": "*fp32", "y": "*i32"}, {}, "ascend950", tmp_path)
    assert error.kind == "unsupported" and "tl.min(tl.where(" in str(error)
    error = refusal(cases.widen, {"x": "*fp8e4nv", "y": "*fp32"}, {}, "ascend910b", tmp_path)
    assert "pass the bytes as int8" in str(error)
    for chip in ("ascend910b", "ascend950"):  # 950's compiler ends at an assertion without a word
        error = refusal(cases.widen, {"x": "*fp64", "y": "*fp32"}, {}, chip, tmp_path)
        assert "no fp64" in str(error) and error.kind == "unsupported"


@needs_compiler
def test_arguments_that_do_not_fit_are_named(cases, tmp_path):
    error = refusal(cases.double, {"x": "*fp32", "BLOCK": "i32", "z": "i32"}, {}, "ascend910b", tmp_path)
    for words in ("'y' is missing", "'z' is no parameter", "'BLOCK' is constexpr and belongs in constants"):
        assert words in str(error)


@needs_compiler
def test_an_unknown_compiler_flag_is_an_error(cases, tmp_path):
    with pytest.raises(KernelError, match="Unknown command line argument '--no-such'"):
        compile_kernel(cases.double, *DOUBLE, "ascend910b", CompileOptions(flags=("--no-such",)), folder=tmp_path)


@needs_compiler
def test_threads_may_compile_at_one_time(cases, tmp_path):
    def build(block):
        return compile_kernel(cases.double, DOUBLE[0], {"BLOCK": block}, "ascend910b", folder=tmp_path).hivm

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(build, [256, 512, 256, 1024, 2048, 512]))
    assert together[0] == together[2] and together[1] == together[5] and len(set(together)) == 4


def test_a_compiler_that_hangs_is_stopped_and_said():
    with pytest.raises(KernelError, match=r"sh did not end within 0 s"):
        toolchain.run(["/bin/sh", "-c", "exec /bin/sleep 60"], "", timeout_s=0.05)


@pytest.mark.parametrize(("missing", "words"), [("triton", "needs triton-ascend"), ("ascendnpuir", "ascendnpu-ir")])
def test_without_the_extra_it_says_what_to_install(monkeypatch, missing, words):
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else real(name))
    toolchain.find_toolchain.cache_clear()
    with pytest.raises(NotSupported, match=r"pip install 'anychip\[ascend\]'"):
        toolchain.find_toolchain()
    toolchain.find_toolchain.cache_clear()


def test_the_cache_forgets_what_was_used_least_recently(tmp_path):
    for age, name in enumerate(("newest", "middle", "oldest")):
        cache.keep(tmp_path / name, b"x" * 100)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    (tmp_path / "half.part").write_bytes(b"x" * 1000)  # another process writes it
    (tmp_path / "checked").mkdir()
    assert cache.read(tmp_path / "oldest") == b"x" * 100 and cache.read(tmp_path / "none") == b""
    cache.keep(tmp_path / "now", b"y" * 50, limit_bytes=260)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checked", "half.part", "newest", "now", "oldest"]
