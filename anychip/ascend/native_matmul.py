"""A matrix product for the processor, as MLIR: panels packed to fp32, 6x16 accumulators held in vector registers.

Each output element is the fp32 sum over k in rising order (fused multiply-adds), then added to what was there;
the cube core sums in blocks of 16, so results may differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Iterable

ROWS, COLUMNS = 6, 16  # 12 accumulators of 8 floats on AVX2, 2 of b and 1 of a: the 16 registers
_WIDEN = {"bf16": "arith.extf %v : bf16 to f32", "f16": "arith.extf %v : f16 to f32",
          "f32": "arith.addf %v, %zero : f32"}
TYPES = tuple(_WIDEN)


def matmul_name(element: str) -> str:
    """Return the function that multiplies matrices of an element type: (a[M, K], b[K, N], c[M, N] in f32)."""
    return f"anychip_matmul_{element}"


def operand_type(element: str) -> str:
    """Return the type that the function takes: any size, any strides."""
    return f"memref<?x?x{element}, strided<[?, ?], offset: ?>>"


def matmul_functions(elements: Iterable[str]) -> str:
    """Return the definitions, `c += a @ b`, for the element types of a and b."""
    return "\n".join(_FUNCTION.format(
        name=matmul_name(element), ab=operand_type(element), c=operand_type("f32"), rows=ROWS, columns=COLUMNS,
        pack_a=_pack("a", element, ROWS), pack_b=_pack("b", element, COLUMNS), tile=_tile(),
    ) for element in sorted(set(elements)))


def _pack(side: str, element: str, width: int) -> str:
    """Copy a matrix into panels [panel, k, width] of fp32; what lies beyond its edge is 0."""
    size, index = ("%m", "%line, %k") if side == "a" else ("%n", "%k, %line")
    return f"""
    %panels_{side} = arith.ceildivsi {size}, %width_{side} : index
    %packed_{side} = memref.alloc(%panels_{side}, %depth) {{alignment = 64 : i64}} : memref<?x?x{width}xf32>
    scf.for %panel = %c0 to %panels_{side} step %c1 {{
      %first = arith.muli %panel, %width_{side} : index
      scf.for %k = %c0 to %depth step %c1 {{
        scf.for %lane = %c0 to %width_{side} step %c1 {{
          %line = arith.addi %first, %lane : index
          %inside = arith.cmpi slt, %line, {size} : index
          %value = scf.if %inside -> f32 {{
            %v = memref.load %{side}[{index}] : {operand_type(element)}
            %w = {_WIDEN[element]}
            scf.yield %w : f32
          }} else {{
            scf.yield %zero : f32
          }}
          memref.store %value, %packed_{side}[%panel, %k, %lane] : memref<?x?x{width}xf32>
        }}
      }}
    }}"""


def _tile() -> str:
    """One 6x16 tile: the loop over k with a vector accumulator a row, then the rows put into %tile."""
    vector = f"vector<{COLUMNS}xf32>"
    names = [f"%sum{row}" for row in range(ROWS)]
    steps = "".join(f"""
          %lane{row} = arith.constant {row} : index
          %a{row} = memref.load %packed_a[%i, %k, %lane{row}] : memref<?x?x{ROWS}xf32>
          %s{row} = vector.splat %a{row} : {vector}
          %next{row} = vector.fma %s{row}, %line_b, {names[row]} : {vector}""" for row in range(ROWS))
    stores = "".join(f"""
        %row{row} = arith.constant {row} : index
        vector.store %total#{row}, %tile[%row{row}, %c0] : memref<{ROWS}x{COLUMNS}xf32>, {vector}"""
                     for row in range(ROWS))
    return f"""
        %none = arith.constant dense<0.0> : {vector}
        %total:{ROWS} = scf.for %k = %c0 to %depth step %c1
            iter_args({", ".join(f"{name} = %none" for name in names)}) -> ({", ".join([vector] * ROWS)}) {{
          %line_b = vector.load %packed_b[%j, %k, %c0] : memref<?x?x{COLUMNS}xf32>, {vector}{steps}
          scf.yield {", ".join(f"%next{row}" for row in range(ROWS))} : {", ".join([vector] * ROWS)}
        }}{stores}"""


_FUNCTION = """
  func.func private @{name}(%a: {ab}, %b: {ab}, %c: {c}) {{
    %c0 = arith.constant 0 : index
    %c1 = arith.constant 1 : index
    %width_a = arith.constant {rows} : index
    %width_b = arith.constant {columns} : index
    %zero = arith.constant 0.0 : f32
    %m = memref.dim %a, %c0 : {ab}
    %depth = memref.dim %a, %c1 : {ab}
    %n = memref.dim %b, %c1 : {ab}
    %tile = memref.alloca() {{alignment = 64 : i64}} : memref<{rows}x{columns}xf32>{pack_a}{pack_b}
    scf.for %j = %c0 to %panels_b step %c1 {{
      %column = arith.muli %j, %width_b : index
      %columns_left = arith.subi %n, %column : index
      %columns = arith.minsi %columns_left, %width_b : index
      scf.for %i = %c0 to %panels_a step %c1 {{
        %row = arith.muli %i, %width_a : index
        %rows_left = arith.subi %m, %row : index
        %rows = arith.minsi %rows_left, %width_a : index{tile}
        scf.for %r = %c0 to %rows step %c1 {{
          scf.for %s = %c0 to %columns step %c1 {{
            %to_row = arith.addi %row, %r : index
            %to_column = arith.addi %column, %s : index
            %sum = memref.load %tile[%r, %s] : memref<{rows}x{columns}xf32>
            %old = memref.load %c[%to_row, %to_column] : {c}
            %new = arith.addf %old, %sum : f32
            memref.store %new, %c[%to_row, %to_column] : {c}
          }}
        }}
      }}
    }}
    return
  }}
"""
