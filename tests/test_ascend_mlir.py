"""The reader of MLIR's generic form, and the lowering to the machine's program."""

from __future__ import annotations

import pytest
import torch
from machine_cases import constant, function, memref, module, run

from anychip.ascend.lower import lower
from anychip.ascend.memref import integers, name_of
from anychip.ascend.memref import memref as memref_type
from anychip.ascend.mlir import Location, parse
from anychip.errors import KernelError, NotSupported


def test_an_op_is_read_with_results_operands_attributes_and_types() -> None:
    text = (
        '#map = affine_map<()[s0] -> (s0)>\n"builtin.module"() ({\n'
        '%0:2 = "a.b"(%x#1, %y) <{k = array<i64: 1, 2>, unit}> {m = #map, "odd key" = [{a = 1}, {}]} : '
        "(vector<4xf32>, memref<?x4xf32, strided<[?, 1], offset: ?>>) -> (i32, memref<f32>)\n}) : () -> ()\n"
    )
    found = parse(text)
    op = found.top.regions[0].ops[0]
    assert (op.name, op.results, op.operands) == ("a.b", ["0#0", "0#1"], ["x#1", "y"])
    assert op.attributes == {"k": "array<i64: 1, 2>", "unit": "unit", "m": "#map", "odd key": "[{a = 1}, {}]"}
    assert op.operand_types == ["vector<4xf32>", "memref<?x4xf32, strided<[?, 1], offset: ?>>"]
    assert op.result_types == ["i32", "memref<f32>"]
    assert found.aliases["map"] == "affine_map<()[s0] -> (s0)>"


def test_regions_nest_and_keep_their_arguments() -> None:
    text = (
        '"builtin.module"() ({\n"scf.for"(%a, %b, %c) ({\n^bb0(%i: index loc("x.py":1:2), %v: '
        'f32):\n"y.z"(%i) : (index) -> ()'
        "\n}, {\n}) : (index, index, index) -> ()\n}) : () -> ()\n"
    )
    loop = parse(text).top.regions[0].ops[0]
    assert loop.regions[0].arguments == [("i", "index"), ("v", "f32")]
    assert [op.name for op in loop.regions[0].ops] == ["y.z"] and loop.regions[1].ops == []


def test_a_location_leads_to_the_source_line_through_aliases_and_calls() -> None:
    text = (
        '#loc1 = loc("kernel.py":12:5)\n"builtin.module"() ({\n"a.a"() : () -> () loc(#loc2)\n'
        '"a.b"() : () -> () loc(unknown)\n}) : () -> () loc(#loc)\n#loc = loc(unknown)\n#loc2 = '
        'loc(callsite(#loc1 at #loc))\n'
    )
    first, second = parse(text).top.regions[0].ops
    assert first.location == Location("kernel.py", 12) and second.location == Location()


def test_text_that_is_no_generic_form_is_refused_with_its_line() -> None:
    with pytest.raises(KernelError, match="line 2 .*generic form"):
        parse('"builtin.module"() ({\n%0 = arith.constant 3 : i32\n}) : () -> ()\n')


def test_types_and_attributes_are_read() -> None:
    found = memref_type("memref<16x?xbf16, strided<[?, 1], offset: ?>, #hivm.address_space<cbuf>>")
    assert found is not None and (found.shape, found.element, found.space) == ((16, None), "bf16", "l1")
    assert memref_type("index") is None
    assert integers("array<i64: 3, -4>") == (3, -4) and integers("array<i64>") == ()
    assert name_of("#hivm.pipe<PIPE_MTE2>") == "PIPE_MTE2" and name_of("#ave<layout_change UNCHANGED>") != ""


def test_an_unknown_op_is_named_with_its_source_line() -> None:
    body = '"hivm.hir.vteleport"() : () -> () loc("rope.py":33:1)'
    with pytest.raises(NotSupported, match=r"hivm.hir.vteleport \(rope.py:33\)"):
        lower(module(function(body, [])))


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("s0 floordiv 4", -2),
        ("s0 mod 4", 1),
        ("s0 ceildiv 4", -1),
        ("-s0 + s1 * 2 - 3", 22),
        ("(s0 + 15) floordiv 16", 0),
        ("(s0 floordiv 4) * 8 + (s1 mod 4) * 2", -14),
        ("s1 * -2", -18),
    ],
)
def test_affine_expressions_follow_mlirs_rules(expression: str, wanted: int) -> None:
    out = torch.zeros(1, dtype=torch.int64)
    body = (
        constant("zero", 0, "index")
        + '%a = "memref.load"(%arg1, %zero) : (memref<?xi64, #hivm.address_space<gm>>, index) -> i64\n'
        '%s0 = "arith.index_cast"(%a) : (i64) -> index\n'
        + constant("s1", 9, "index")
        + f'%r = "affine.apply"(%s0, %s1) <{{map = affine_map<()[s0, s1] -> ({expression})>}}> : (index, '
        f'index) -> index\n'
        '%c = "arith.index_cast"(%r) : (index) -> i64\n'
        '"memref.store"(%c, %arg0, %zero) : (i64, memref<?xi64, #hivm.address_space<gm>>, index) -> ()'
    )
    given = torch.tensor([-7])
    run(module(function(body, [memref(out, "gm", dims=False)] * 2)), [out, given])
    assert out.item() == wanted


def test_a_loop_carries_swapped_values() -> None:
    out = torch.zeros(1, dtype=torch.int64)
    body = (
        constant("zero", 0, "index")
        + constant("one", 1, "index")
        + constant("n", 10, "index")
        + constant("a", 0, "i64")
        + constant("b", 1, "i64")
        + '%r:2 = "scf.for"(%zero, %n, %one, %a, %b) ({\n^bb0(%i: index, %x: i64, %y: i64):\n'
        '%s = "arith.addi"(%x, %y) : (i64, i64) -> i64\n"scf.yield"(%y, %s) : (i64, i64) -> ()\n'
        "}) : (index, index, index, i64, i64) -> (i64, i64)\n"
        '"memref.store"(%r#0, %arg0, %zero) : (i64, memref<?xi64, #hivm.address_space<gm>>, index) -> ()'
    )
    run(module(function(body, [memref(out, "gm", dims=False)])), [out])
    assert out.item() == 55  # the tenth Fibonacci number
