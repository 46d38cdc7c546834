"""Tile ops, matrix products, flags and checks of the virtual Ascend's machine, against PyTorch."""

from __future__ import annotations

import math
import os

import pytest
import torch
from machine_cases import CHIP, TYPES, constant, cross, flag, function, memref, module, pointer, run, tile, view
from torch import Tensor

from anychip.ascend.findings import KINDS
from anychip.ascend.run import run_kernel
from anychip.ascend.targets import find_target
from anychip.errors import InputError

F32, F16, BF16, I8, I16, I32, I64 = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0, scale: float = 3.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def whole(*shape: int, dtype: torch.dtype = I32, seed: int = 0, high: int = 100) -> Tensor:
    return torch.randint(-high, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


def kinds(found) -> list[str]:  # noqa: ANN001
    return [KINDS[f.kind][0] for f in found.findings]


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize(
    ("op", "wanted"),
    [
        ("vadd", torch.add),
        ("vsub", torch.sub),
        ("vmul", torch.mul),
        ("vdiv", torch.div),
        ("vmax", torch.maximum),
        ("vmin", torch.minimum),
    ],
)
def test_float_arithmetic_rounds_once_in_its_own_format(op: str, wanted, dtype: torch.dtype) -> None:  # noqa: ANN001
    x, y = normal(3000, dtype=dtype), normal(3000, dtype=dtype, seed=1)
    x[7], y[9] = math.nan, math.inf
    exact(tile(op, [x, y], [x])[0], wanted(x, y))


@pytest.mark.parametrize("dtype", [I8, I16, I32, I64])
@pytest.mark.parametrize(
    ("op", "wanted"),
    [
        ("vadd", torch.add),
        ("vsub", torch.sub),
        ("vmul", torch.mul),
        ("vmax", torch.maximum),
        ("vmin", torch.minimum),
        ("vand", torch.bitwise_and),
        ("vor", torch.bitwise_or),
        ("vxor", torch.bitwise_xor),
    ],
)
def test_integer_arithmetic_wraps(op: str, wanted, dtype: torch.dtype) -> None:  # noqa: ANN001
    x, y = whole(777, dtype=dtype, high=2**31), whole(777, dtype=dtype, seed=1, high=2**31)
    exact(tile(op, [x, y], [x])[0], wanted(x, y))


@pytest.mark.parametrize(
    ("op", "wanted"),
    [
        ("vexp", torch.exp),
        ("vln", torch.log),
        ("vsqrt", torch.sqrt),
        ("vabs", torch.abs),
        ("vrsqrt", torch.rsqrt),
        ("vtanh", torch.tanh),
        ("verf", torch.erf),
    ],
)
def test_functions_are_within_two_units_in_the_last_place(op: str, wanted) -> None:  # noqa: ANN001
    x = torch.cat(
        [normal(5000, scale=30), torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, 88.7, -103.9])]
    )
    got, right = tile(op, [x], [x])[0].double(), wanted(x.double())
    right = right.float().double()
    spacing = torch.nextafter(right.float().abs(), torch.tensor(math.inf)).double() - right.float().abs().double()
    close = (got - right).abs() <= 2 * spacing.nan_to_num(0)
    assert bool((close | (got == right) | (got.isnan() & right.isnan())).all())


def test_every_half_widens_exactly_and_floats_narrow_to_the_nearest_even() -> None:
    halves = torch.arange(-32768, 32768, dtype=I16).view(F16)
    mode = "round_mode = #hivm.round_mode<rint>"
    exact(tile("vcast", [halves[:32768]], [torch.zeros(32768)], mode)[0], halves[:32768].float())
    bits = torch.randint(-(2**31), 2**31, (20000,), generator=torch.Generator().manual_seed(3)).to(I32)
    x = torch.cat([bits.view(F32), normal(8000), torch.tensor([65519.9, 65520.0, 2**-24, 2**-25, 1e-45])])
    for dtype in (F16, BF16):
        exact(tile("vcast", [x], [x.to(dtype)], mode)[0], x.to(dtype))


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("rint", torch.round),
        ("floor", torch.floor),
        ("ceil", torch.ceil),
        ("trunc", torch.trunc),
        ("round", lambda x: x.abs().add(0.5).floor() * x.sign()),
    ],
)
def test_casts_to_integers_round_as_asked_and_saturate(mode: str, wanted) -> None:  # noqa: ANN001
    x = torch.cat([normal(999), torch.tensor([0.5, 1.5, -2.5, 1e20, -1e20, math.nan, 126.5])])
    right = wanted(x.double()).nan_to_num(0, 1e30, -1e30).clamp(-(2**31), 2**31 - 1).to(I64)
    exact(tile("vcast", [x], [right.to(I32)], f"round_mode = #hivm.round_mode<{mode}>")[0], right.to(I32))


def test_casts_between_integers_wrap_and_integers_become_floats() -> None:
    x = whole(600, high=70000)
    exact(tile("vcast", [x], [x.to(I8)], "round_mode = #hivm.round_mode<truncwithoverflow>")[0], x.to(I8))
    exact(tile("vcast", [x], [x.float()])[0], x.float())
    exact(tile("vcast", [x.to(I8)], [x.half()])[0], x.to(I8).half())


def test_an_operand_of_size_one_is_broadcast_and_a_scalar_too() -> None:
    x, row, column = normal(20, 48), normal(1, 48, seed=1), normal(20, 1, seed=2)
    exact(tile("vmul", [x, row], [x], "broadcast = array<i64: 0>")[0], x * row)
    exact(tile("vsub", [x, column], [x], "broadcast = array<i64: 1>")[0], x - column)
    exact(tile("vadd", [x, 2.5], [x])[0], x + 2.5)


@pytest.mark.parametrize("mode", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons_pack_bits_that_select_reads(mode: str) -> None:
    x, y, out = whole(100, high=5), whole(100, high=5, seed=1), torch.zeros(100)
    kind = memref(x, "ub")
    body = (
        pointer("x", 0, kind) + pointer("y", 512, kind) + pointer("m", 1024, "memref<100xi1, #hivm.address_space<ub>>")
    )
    body += pointer("o", 2048, memref(out, "ub")) + constant("yes", 1.5, "f32") + constant("no", -2.0, "f32")
    for name, argument, tensor in (("x", 0, x), ("y", 1, y)):
        body += view(f"g{name}", f"arg{argument}", tensor)
        body += f'"hivm.hir.load"(%g{name}, %{name}) : ({memref(tensor, "gm")}, {kind}) -> ()\n'
    body += (
        f'"hivm.hir.vcmp"(%x, %y, %m) <{{compare_mode = #hivm.compare_mode<{mode}>, operandSegmentSizes '
        f'= array<i32: 2, 1>'
        f"}}> : ({kind}, {kind}, memref<100xi1, #hivm.address_space<ub>>) -> ()\n"
        '"hivm.hir.vsel"(%m, %yes, %no, %o) <{operandSegmentSizes = array<i32: 3, 1, 0>}> : '
        f"(memref<100xi1, #hivm.address_space<ub>>, f32, f32, {memref(out, 'ub')}) -> ()\n"
        + view("go", "arg2", out)
        + f'"hivm.hir.store"(%o, %go) : ({memref(out, "ub")}, {memref(out, "gm")}) -> ()\n'
    )
    run(module(function(body, [memref(t, "gm", dims=False) for t in (x, y, out)])), [x, y, out])
    exact(out, torch.where(getattr(torch, mode)(x, y), 1.5, -2.0))


@pytest.mark.parametrize("dims", [[0], [1], [2], [1, 2], [0, 1, 2]])
def test_reductions_over_any_dimensions(dims: list[int]) -> None:
    x = normal(5, 12, 70)
    for kind, wanted in (
        ("sum", x.double().sum(dims, keepdim=True).float()),
        ("max", x.amax(dims, keepdim=True)),
        ("min", x.amin(dims, keepdim=True)),
    ):
        attributes = f"arith = #hivm.reduce_op<{kind}>, reduce_dims = array<i64: {', '.join(map(str, dims))}>"
        got = tile("vreduce", [x], [wanted], attributes)[0]
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-4 if kind == "sum" else 0)


def test_a_maximum_with_index_takes_the_leftmost_of_equals() -> None:
    x = whole(7, 33, high=4).float()
    attributes = "arith = #hivm.reduce_op<max_with_index_left>, reduce_dims = array<i64: 1>"
    value, index = tile("vreduce", [x], [x[:, :1].contiguous(), whole(7, 1)], attributes)
    exact(value, x.amax(1, keepdim=True))
    exact(index, (x == value).int().argmax(1, keepdim=True).to(I32))


def test_sort_gather_and_running_sums() -> None:
    x, index = normal(4, 60), whole(4, 60, high=59).abs()
    exact(tile("vsort", [x], [x], "descending = true, sort_axis = 1 : i64")[0], x.sort(1, descending=True)[0])
    exact(tile("vgather", [x, index], [x], segments=False)[0], x.gather(1, index.long()))
    whole_numbers = whole(4, 60)
    exact(
        tile("vcumsum", [whole_numbers], [whole_numbers], "cum_dims = array<i64: 1>", segments=False)[0],
        whole_numbers.cumsum(1).to(I32),
    )


def test_elements_interleave_transpose_and_broadcast() -> None:
    x, y = normal(64, dtype=BF16), normal(64, dtype=BF16, seed=1)
    both = torch.stack([x, y], 1).view(-1)
    exact(tile("vinterleave", [x, y], [both], "interleave_channel_nums = 2 : i64")[0], both)
    attributes = "channel_num = 2 : i64, index_mode = #hivm.deinterleave_mode<CHANNEL_1>"
    exact(tile("vdeinterleave", [both], [y], attributes, segments=False)[0], y)
    z = normal(6, 40)
    exact(tile("vtranspose", [z], [z.T.contiguous()], "permutation = array<i64: 1, 0>", segments=False)[0], z.T)
    exact(
        tile("vbrc", [z[:, :1].contiguous()], [z], "broadcast_dims = array<i64: 1>", segments=False)[0],
        z[:, :1].expand(6, 40),
    )


def matmul(a: Tensor, b: Tensor, out: Tensor, transpose: bool, rounds: int = 1) -> None:
    """C = rounds * A x B through L1 and L0C: nd2nz, mmadL1, fixpipe."""
    (m, k), n = a.shape, out.shape[1]
    c0, kind = 32 // a.element_size(), TYPES[a.dtype]

    def blocks(rows: int, columns: int) -> str:
        return f"memref<{-(-columns // c0)}x{-(-rows // 16)}x16x{c0}x{kind}, #hivm.address_space<cbuf>>"

    sum_kind = "i32" if kind == "i8" else "f32"
    at_a, at_b = blocks(m, k), blocks(*b.shape)
    at_c = f"memref<{-(-n // 16)}x{-(-m // 16)}x16x16x{sum_kind}, #hivm.address_space<cc>>"
    body = pointer("a", 0, at_a) + pointer("b", 256 << 10, at_b) + pointer("c", 0, at_c) + constant("none", -1, "i64")
    for name, argument, tensor, place in (("a", 0, a, at_a), ("b", 1, b, at_b)):
        body += view(f"g{name}", f"arg{argument}", tensor)
        body += (
            f'"hivm.hir.nd2nz"(%g{name}, %{name}) <{{operandSegmentSizes = array<i32: 1, 1, 0, 0>}}> : '
            f"({memref(tensor, 'gm')}, {place}) -> ()\n"
        )
    body += "".join(constant(name, value, "index") for name, value in (("m", m), ("k", k), ("n", n)))
    for turn in range(rounds):
        body += f'%first{turn} = "arith.constant"() <{{value = {"true" if turn == 0 else "false"}}}> : () -> i1\n'
        body += (
            f'"hivm.hir.mmadL1"(%a, %b, %first{turn}, %m, %k, %n, %c{", %none" * 7}) '
            f'<{{{"b_transpose, " if transpose else ""}'
            f"operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 1, 7, 0, 0>}}> : ({at_a}, {at_b}, i1, "
            f"index, index, index, "
            f"{at_c}{', i64' * 7}) -> ()\n"
        )
    body += view("go", "arg2", out) + (
        f'"hivm.hir.fixpipe"(%c, %go) <{{operandSegmentSizes = array<i32: 1, 1, 0, 0>}}> : '
        f"({at_c}, {memref(out, 'gm')}) -> ()\n"
    )
    found = run(module(function(body, [memref(t, "gm", dims=False) for t in (a, b, out)], core="AIC")), [a, b, out])
    assert not found.error and not found.findings


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("transpose", [False, True])
def test_products_of_odd_sizes_accumulate_in_fp32(dtype: torch.dtype, transpose: bool) -> None:
    a, b = normal(37, 75, dtype=dtype), normal(75, 29, dtype=dtype, seed=1)
    out = torch.zeros(37, 29)
    matmul(a, b.T.contiguous() if transpose else b, out, transpose, rounds=2)
    torch.testing.assert_close(out.double(), 2 * a.double() @ b.double(), rtol=1e-5, atol=1e-3)


def test_products_of_bytes_are_exact() -> None:
    a, b, out = whole(40, 300, dtype=I8), whole(300, 21, dtype=I8, seed=1), torch.zeros(40, 21, dtype=I32)
    matmul(a, b, out, transpose=False)
    exact(out, (a.long() @ b.long()).to(I32))


@pytest.mark.parametrize(("kind", "wanted"), [("add", torch.add), ("max", torch.maximum), ("min", torch.minimum)])
def test_atomic_stores_combine_with_what_lies_in_memory(kind: str, wanted) -> None:  # noqa: ANN001
    x, out = normal(90), normal(90, seed=1)
    before = out.clone()
    body = view("g", "arg0", x) + view("o", "arg1", out) + pointer("u", 0, memref(x, "ub"))
    body += f'"hivm.hir.load"(%g, %u) : ({memref(x, "gm")}, {memref(x, "ub")}) -> ()\n'
    body += (
        f'"hivm.hir.store"(%u, %o) <{{atomic_kind = #hivm.atomic_kind<{kind}>}}> : ({memref(x, "ub")}, '
        f"{memref(out, 'gm')}) -> ()\n"
    )
    run(module(function(body, [memref(t, "gm", dims=False) for t in (x, out)])), [x, out])
    exact(out, wanted(before, x))


def test_reads_and_writes_outside_an_argument_are_found_and_touch_nothing() -> None:
    around = torch.full((64,), 7.0)
    x, out = around[16:32], around[32:48]  # neighbours in memory
    wide = torch.zeros(20)
    body = view("g", "arg0", wide) + view("o", "arg1", wide) + pointer("u", 0, memref(wide, "ub"))
    body += f'"hivm.hir.load"(%g, %u) : ({memref(wide, "gm")}, {memref(wide, "ub")}) -> ()\n'
    body += f'"hivm.hir.store"(%u, %o) : ({memref(wide, "ub")}, {memref(wide, "gm")}) -> ()\n'
    found = run(module(function(body, ["memref<?xf32, #hivm.address_space<gm>>"] * 2)), [x, out])
    assert kinds(found) == ["outside_read", "outside_write"]
    assert [(f.low, f.high, f.buffer) for f in found.findings] == [(0, 80, 0), (0, 80, 1)]
    exact(around, torch.full((64,), 7.0))


def test_a_pointer_beyond_the_chips_memory_is_found() -> None:
    x = torch.zeros(64)
    body = view("g", "arg0", x) + pointer("u", CHIP["ub"] - 128, memref(x, "ub"))
    body += f'"hivm.hir.load"(%g, %u) : ({memref(x, "gm")}, {memref(x, "ub")}) -> ()\n'
    assert kinds(run(module(function(body, [memref(x, "gm", dims=False)])), [x])) == ["outside_write"]


def test_unmatched_flags_are_found() -> None:
    body = flag("wait_flag", "MTE2", "V") + flag("set_flag", "V", "MTE3", 3) * 2
    found = run(module(function(body, [])), [])
    assert kinds(found) == ["wait_without_set", "flag_overrun", "flag_left"]
    assert found.findings[1].event == 3


def test_cores_that_wait_for_each_other_are_a_deadlock() -> None:
    cube = function(cross("wait", "CUBE", 1) + cross("set", "CUBE", 2), [], core="AIC", name="k_mix_aic")
    vector = function(cross("wait", "VECTOR", 2) + cross("set", "VECTOR", 1), [], name="k_mix_aiv")
    found = run(module(cube, vector), [])
    assert kinds(found) == ["deadlock"] * 2 and [f.count for f in found.findings] == [1, 2]  # both vector cores
    swapped = function(cross("set", "VECTOR", 1) + cross("wait", "VECTOR", 2), [], name="k_mix_aiv")
    assert kinds(run(module(cube, swapped), [])) == []


def test_each_block_knows_its_number_and_memory_is_poisoned_between_blocks() -> None:
    out = torch.zeros(3)
    kind = "memref<1xf32, #hivm.address_space<ub>>"
    body = (
        '%b = "hivm.hir.get_block_idx"() : () -> i64\n%i = "arith.index_cast"(%b) : (i64) -> index\n'
        + pointer("u", 0, kind)
        + constant("zero", 0, "index")
        + '%r = "memref.load"(%u, %zero) : ('
        + kind
        + ", index) -> f32\n"
        '"memref.store"(%r, %arg0, %i) : (f32, memref<?xf32, #hivm.address_space<gm>>, index) -> ()\n'
        + constant("one", 1.0, "f32")
        + '"memref.store"(%one, %u, %zero) : (f32, '
        + kind
        + ", index) -> ()\n"
    )
    run(module(function(body, ["memref<?xf32, #hivm.address_space<gm>>"])), [out], blocks=3)
    assert bool(out.isnan().all())


def test_a_vector_function_of_the_950_runs_on_registers() -> None:
    x, out = normal(100, dtype=BF16), torch.zeros(100)
    ub, f32 = memref(x, "ub"), memref(out, "ub")
    mask = "{element_alignment_bit_width = 32 : i32, functionType = #ave.func_dist_type<pb32>}"
    inner = (
        constant("z", 0, "index")
        + constant("step", 64, "index")
        + constant("end", 100, "index")
        + constant("two", 2.0, "f32")
        + '"scf.for"(%z, %end, %step) ({\n^bb0(%i: index):\n%left = "arith.subi"(%end, %i) : (index, index) -> index\n'
        f'%m:2 = "ave.hir.plt"(%left) {mask} : (index) -> (vector<64xi1>, index)\n'
        f'%v = "ave.hir.vload"(%p, %i) <{{pattern = #ave.load_dist<UNPK_B16>}}> : ({ub}, index) -> vector<64xbf16>\n'
        '%w = "ave.hir.vextf"(%v, %m#0) <{part = #ave.vcvt_part_type<part_even>}> : (vector<64xbf16>, '
        'vector<64xi1>) -> vector<64xf32>\n'
        '%y = "ave.hir.vmuls"(%w, %two, %m#0) : (vector<64xf32>, f32, vector<64xi1>) -> vector<64xf32>\n'
        f'"ave.hir.masked_store"(%q, %i, %m#0, %y) <{{pattern = #ave.store_dist<NORM_B32>}}> : '
        f"({f32}, index, vector<64xi1>, vector<64xf32>) -> ()\n"
        '"scf.yield"() : () -> ()\n}) : (index, index, index) -> ()\n'
    )
    called = (
        f'"func.func"() <{{sym_name = "vf"}}> ({{\n^bb0(%p: {ub}, %q: {f32}):\n{inner}"func.return"() : () -> ()\n}}) '
        "{hivm.vector_function} : () -> ()\n"
    )
    body = view("g", "arg0", x) + view("o", "arg1", out) + pointer("u", 0, ub) + pointer("w", 1024, f32)
    body += f'"hivm.hir.load"(%g, %u) : ({memref(x, "gm")}, {ub}) -> ()\n'
    body += f'"func.call"(%u, %w) <{{callee = @vf}}> : ({ub}, {f32}) -> ()\n'
    body += f'"hivm.hir.store"(%w, %o) : ({f32}, {memref(out, "gm")}) -> ()\n'
    found = run(module(called, function(body, [memref(t, "gm", dims=False) for t in (x, out)])), [x, out])
    assert not found.error and not found.findings
    exact(out, x.float() * 2)


def test_arguments_that_do_not_fit_are_refused_all_at_once() -> None:
    from anychip.ascend.compile import CompiledKernel

    kernel = CompiledKernel(
        "k",
        find_target("ascend910b"),
        "AIV",
        {"x": "*fp32", "y": "*bf16", "n": "i32", "z": "*i32"},
        {},
        "",
        "",
        module(function("", ["i32"])),
        {},
        "k.py",
    )
    with pytest.raises(InputError) as refused:
        run_kernel(kernel, {"x": torch.zeros(4, 4).T, "y": torch.zeros(3), "n": 1.5, "w": 1}, (1,))
    for part in (
        "x is not contiguous",
        "y has the type float32, the kernel takes bfloat16",
        "n is 1.5",
        "missing: z",
        "signature: w",
    ):
        assert part in str(refused.value)
    with pytest.raises(InputError, match="grid"):
        run_kernel(kernel, {}, (0,))


@pytest.mark.parametrize("target", ["ascend910b", "ascend910c", "ascend950"])
def test_compiled_kernels_give_pytorchs_results_with_no_finding(target: str) -> None:
    pytest.importorskip("ascendnpuir", reason="needs pip install 'anychip[ascend]'")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton's interpreter does not compile")
    from ascend_cases import double, product

    from anychip.ascend.compile import compile_kernel

    x, y = normal(200), torch.zeros(200)
    signature = {"x": "*fp32", "y": "*fp32", "n": "i32"}
    found = run_kernel(compile_kernel(double, signature, {"BLOCK": 64}, target), {"x": x, "y": y, "n": 200}, (4,))
    exact(y, x * 2)
    a, b, c = normal(32, 64, dtype=F16), normal(64, 48, dtype=F16, seed=1), torch.zeros(32, 48)
    kernel = compile_kernel(product, {"a": "*fp16", "b": "*fp16", "c": "*fp32"}, {"M": 32, "N": 48, "K": 64}, target)
    again = run_kernel(kernel, {"a": a, "b": b, "c": c}, (1,))
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-4, atol=1e-3)
    assert not found.findings and not again.findings
