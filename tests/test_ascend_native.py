"""The native path: kernels as machine code of this processor, from what PyPI ships."""

import importlib
import importlib.util
import os

import pytest
import torch

from anychip.ascend import compile_kernel, native
from anychip.errors import InputError, KernelError
from anychip.kernels.example import find_kernels, signature

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("ascendnpuir") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs pip install 'anychip[ascend]', and Triton not in interpreter mode")
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}


@pytest.fixture
def run():
    """Compile a kernel of native_cases for a chip, run it here, return what it is called with."""
    import native_cases

    def start(name, args, constants, grid=(1,), target="ascend910b", **options):
        types = {n: TYPES[v.dtype] if isinstance(v, torch.Tensor) else "i32" if isinstance(v, int) else "fp32"
                 for n, v in args.items()}
        kernel = compile_kernel(getattr(native_cases, name), types, constants, target)
        native.native(kernel)(args, grid, **options)
        return args

    return start


@needs_compiler
def test_the_library_functions_of_the_chip_are_defined(run):
    g = torch.Generator().manual_seed(1)
    x, index = torch.randn(32, 32, generator=g), torch.randint(0, 32, (32, 32), generator=g)
    out = {name: torch.empty(32, 32) for name in ("sums", "products", "falling", "gathered", "flipped")}
    run("scan_sort_gather", {"x": x, "index": index.int(), **out}, {"N": 32})
    assert torch.allclose(out["sums"], x.flip(1).cumsum(1).flip(1), atol=1e-5)
    assert torch.allclose(out["products"], x.cumprod(0), atol=1e-6)
    assert torch.equal(out["falling"], x.sort(1, descending=True).values)
    assert torch.equal(out["gathered"], x.gather(1, index)) and torch.equal(out["flipped"], x.flip(1))


@needs_compiler
def test_a_histogram_counts_what_lies_inside(run):
    x = torch.tensor([3, 3, 0, 63, -1, 64] + [5] * 58, dtype=torch.int32)
    counts = run("histogram", {"x": x, "counts": torch.empty(64, dtype=torch.int32)}, {"N": 64})["counts"]
    assert counts[3] == 2 and counts[5] == 58 and counts.sum() == 62


@needs_compiler
def test_exp_and_log_are_within_two_ulp_and_know_the_special_values(run):
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1.0, 1e-40, -1.0, 200.0, -104.5])
    x = torch.cat((special, torch.randn(246, generator=torch.Generator().manual_seed(2)) * 30))
    out = run("maths", {"x": x, "out": torch.empty(4 * 256), "n": 256}, {"BLOCK": 256})["out"].view(4, 256)
    exact = torch.stack([f(x.double()) for f in (torch.exp, torch.exp2, torch.log, torch.log2)])
    finite = exact.float().isfinite()
    assert torch.equal(out.isnan(), exact.isnan()) and torch.equal(out.isinf(), exact.float().isinf())
    ulp = (torch.nextafter(exact.float().abs(), torch.tensor(torch.inf)) - exact.float().abs()).double()
    assert float(((out.double() - exact).abs() / ulp)[finite].max()) <= 2.0


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_op_rounds_to_its_format(run, dtype):
    x = torch.randn(256, generator=torch.Generator().manual_seed(3)).to(dtype)
    out = run("square_plus", {"x": x, "out": torch.empty_like(x)}, {"N": 256})["out"]
    assert torch.equal(out, x * x + x)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_of_any_layout_are_fp32_sums(run, dtype):
    g = torch.Generator().manual_seed(4)
    a, b = (torch.randn(*size, generator=g).to(dtype) for size in ((32, 64), (64, 64)))
    args = {"a": a, "b": b, "nn": torch.empty(32, 64), "nt": torch.empty(32, 64)}
    run("products", args, {"M": 32, "N": 64, "K": 64})
    left, right = a.double(), b.double()
    for got, exact in ((args["nn"], left @ right), (args["nt"], left @ right.T + 1)):
        assert float((got - exact).abs().max()) < 64 * 2**-24 * float((left.abs() @ right.abs()).max())


@needs_compiler
def test_a_grid_of_three_dimensions_runs_every_block_once_and_atomics_add_up(run):
    args = {"total": torch.zeros(8, dtype=torch.int32), "places": torch.full((24,), -1, dtype=torch.int32)}
    run("count_blocks", args, {"BLOCK": 8}, (2, 3, 4), threads=4)
    assert (args["total"] == 24).all()
    assert args["places"].tolist() == [100 * x + 10 * y + z for z in range(4) for y in range(3) for x in range(2)]


@needs_compiler
def test_threads_share_the_blocks(run):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(5))
    one, many = (run("scaled", {"x": x, "out": torch.zeros(1000), "factor": 0.5, "n": 1000}, {"BLOCK": 64}, (16,),
                     threads=threads)["out"] for threads in (1, 5))
    assert torch.equal(one, x * 0.5) and torch.equal(one, many)


@needs_compiler
@pytest.mark.parametrize("module", ["norm", "rope", "swiglu", "matmul", "hyper_mix"])
def test_suite_kernels_are_near_their_float64_references_on_950(module):  # on 910B test_kernel_suite says so
    for kernel in find_kernels(importlib.import_module(f"anychip.kernels.{module}")):
        example = kernel.examples[0]
        launch = kernel.launch(example)
        wide = {n: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
                for n, v in kernel.launch(example).args.items()}
        compiled = compile_kernel(kernel.fn, signature(launch), launch.constants, "ascend950")
        native.native(compiled)(launch.args, launch.grid)
        for name, exact in example.reference({**wide, **launch.constants}).items():
            got = launch.args[name].double().reshape(exact.shape)
            bound = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-18}[launch.args[name].dtype]
            assert float((got - exact).abs().max() / exact.abs().max()) < bound, (kernel.name, name)


@needs_compiler
def test_wrong_arguments_are_refused_all_at_once():
    import native_cases

    kernel = compile_kernel(native_cases.scaled, {"x": "*fp32", "out": "*fp32", "factor": "fp32", "n": "i32"},
                            {"BLOCK": 64}, "ascend910b")
    wrong = {"x": torch.zeros(64).half(), "out": torch.zeros(64, 2)[:, 0], "factor": "two", "extra": 1}
    with pytest.raises(InputError, match="'n' is missing") as error:
        native.native(kernel)(wrong, (1,))
    for part in ("'x': it must be a torch.float32", "'out': it is not contiguous", "'extra' is no argument",
                 "'factor': required argument is not a float"):
        assert part in str(error.value)


@needs_compiler
def test_a_kernel_is_built_once_and_kept_by_content(run, tmp_path, monkeypatch):
    monkeypatch.setattr(native.cache, "cache_folder", lambda kind="ascend": tmp_path / kind)
    args = {"x": torch.ones(64), "out": torch.zeros(64), "factor": 3.0, "n": 64}
    run("scaled", args, {"BLOCK": 64})
    monkeypatch.setattr(native, "lower", None)  # a second build would call it
    args["out"].zero_()
    run("scaled", args, {"BLOCK": 64})
    assert (args["out"] == 3).all() and len(list((tmp_path / "native").iterdir())) == 1


@needs_compiler
def test_an_unknown_library_function_is_named():
    from anychip.ascend.native_calls import define_calls

    text = "module {\n  func.func private @triton_index_put(tensor<4xf32>, i32) -> tensor<4xf32>\n}\n"
    with pytest.raises(KernelError, match="calls @triton_index_put.*it has triton_cumprod"):
        define_calls(text)
