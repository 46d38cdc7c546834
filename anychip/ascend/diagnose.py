"""A compiler's own words for a failure, turned into one message: which kernel, where, what is true, what to do."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

from ..errors import KernelError
from .targets import Target
from .toolchain import Output

# The compiler's name of an on-chip memory, ours, and what fills it.
SPACES = {"ub": ("UB", "the tiles that the vector core holds at one time"),
          "cbuf": ("L1", "the operand tiles of tl.dot, twice where double-buffered"),
          "cc": ("L0C", "the fp32 result tiles of tl.dot"),
          "ca": ("L0A", "the left operand of tl.dot"), "cb": ("L0B", "the right operand of tl.dot")}
OVERFLOW = re.compile(r"(\w+) overflow, requires (\d+) bits while (\d+) bits available", re.IGNORECASE)
ASSERTION = re.compile(r"(\w+\.(?:cpp|h|td|inc)):(\d+):.*?Assertion [`'](.*?)' failed", re.DOTALL)
# What the compilers print although nothing is wrong with the kernel.
NOISE = ("hivmc", "Failed to run BiSheng", "warning: linalg.yield", "note: see current operation")
# Known failures: words of the compiler, and what to write instead.
REMEDIES = (
    ("InterleaveOptimization", "a constant is added to the pointer of a stride-2 access; pass the constant offset as a "
                            "run-time int argument, or load the contiguous tile and tl.split(tl.reshape(...)) it"),
    ("failed to legalize operation 'linalg.reduce'", "reductions that return indices (tl.argmax, tl.max(..., "
     "return_indices=True)) do not compile here; write tl.min(tl.where(x == tl.max(x, 0), index, BIG), 0)"),
    ("unexpected type fp8", "triton-ascend 3.2.0 takes no fp8 pointers; pass the bytes as int8 and decode them with "
                            "integer operations"),
    ("lhs matrix dtype must be bf16 or fp16", "tl.dot_scaled takes only a bf16 or fp16 left operand here"),
    ("unsupported datatype", "the chip has no such number format (910B: no fp64); use fp32, fp16, bf16 or integers"),
    ("type 'f64'", "the chip has no fp64; use fp32"),
)


def from_triton(error: Exception, fn: Any, target: Target) -> KernelError:
    """Return the error of Triton's front end, with file, line and text of the innermost source line."""
    inner: BaseException = error
    while inner.__cause__ is not None and hasattr(inner.__cause__, "node"):
        inner = inner.__cause__
    words = _plain(str(getattr(inner, "error_message", None) or f"{type(inner).__name__}: {inner}"))
    src, number = getattr(inner, "src", None) or "", getattr(getattr(inner, "node", None), "lineno", 0)
    where, line = "", ""
    if number:
        path, first = definition(next((f for f in functions(fn) if f.src == src), fn))
        where = f"{path}:{first + number - 1}"
        line = src.splitlines()[number - 1].strip() if number <= len(src.splitlines()) else ""
    text = f"{words}{f': {line}' if line else ''}"
    return _error(fn.fn.__name__, target, "source", where, text, _remedy(text))


def from_adapter(output: Output, name: str, target: Target) -> KernelError:
    """Return the error of triton-adapter-opt: a refusal with its place, or a crash with its assertion."""
    return _from_tool("triton-adapter-opt", output, name, target)


def of_doubles(error: KernelError, ttir: str, name: str, target: Target) -> KernelError:
    """Return the error that says fp64 where a kernel that uses it failed in the compilers, in whatever words."""
    if error.kind not in ("crash", "unsupported", "other") or not re.search(r"\bx?f64\b|<f64>", ttir):
        return error
    return _error(name, target, "unsupported", error.place, "it uses fp64, which the compiler cannot take",
                  "the chip has no fp64; use fp32")


def from_bishengir(output: Output, name: str, target: Target, constants: dict[str, Any]) -> KernelError:
    """Return the error of bishengir-compile: memory that is too small, a refusal, or a crash."""
    found = OVERFLOW.findall(output.stderr)
    if not found:
        return _from_tool(target.compiler, output, name, target)
    space, required, available = found[-1]
    memory, filled_by = SPACES.get(space.lower(), (space, "its tiles"))
    need, there = int(required) // 8, int(available) // 8
    sizes = ", ".join(f"{n}={v}" for n, v in constants.items() if isinstance(v, int) and not isinstance(v, bool))
    doubled = " (double buffering already off)" if "enable-auto-multi-buffer to false" in output.stderr else ""
    where, _ = _first_error(output.stderr)
    text = (f"{memory} overflow: {need:,} bytes are required{doubled} and {there:,} available, "
            f"{need / there:.1f} times what the chip has. {memory} holds {filled_by}")
    advice = f"make the tile smaller{f' ({sizes})' if sizes else ''} or loop over parts of it"
    return _error(name, target, "memory", where, text, advice)


def functions(fn: Any) -> list[Any]:
    """Return a `@triton.jit` function and all those that it names, itself or through a module."""
    found: dict[int, Any] = {}

    def visit(value: Any) -> None:
        if type(value).__name__ == "JITFunction" and id(value) not in found:
            found[id(value)] = value
            names, known = value.fn.__code__.co_names, value.fn.__globals__
            for used in (known.get(name) for name in names):
                visit(used)
                if isinstance(used, ModuleType):
                    for name in names:
                        visit(getattr(used, name, None))

    visit(fn)
    return list(found.values())


def definition(fn: Any) -> tuple[str, int]:
    """Return the file of a `@triton.jit` function and the line of its `def`."""
    lines, first = inspect.getsourcelines(fn.fn)
    offset = next((i for i, line in enumerate(lines) if line.lstrip().startswith("def ")), 0)
    return inspect.getsourcefile(fn.fn) or "<unknown>", first + offset


def notes(stderr: str) -> tuple[str, ...]:
    """Return what the compiler changed on its own to make the kernel fit, as sentences."""
    found = re.findall(r"\[NOTE\] (.*?overflow detected; automatically .*?) and retrying compilation", stderr)
    return tuple(dict.fromkeys(found))


def _from_tool(tool: str, output: Output, name: str, target: Target) -> KernelError:
    words = output.stderr
    if match := ASSERTION.search(words):
        text = f"{tool} crashed at its assertion {_plain(match[3])!r} ({match[1]}:{match[2]})"
        return _error(name, target, "crash", "", text, _remedy(words))
    if match := re.search(r"LLVM ERROR: (.*)", words):
        return _error(name, target, "crash", "", f"{tool} gave up: {_plain(match[1])}", _remedy(words))
    where, text = _first_error(words)
    if text:
        return _error(name, target, "unsupported", where, f"{tool}: {text}", _remedy(words))
    if output.code < 0:
        return _error(name, target, "crash", "", f"{tool} crashed (signal {-output.code}) without a word", "")
    last = [line for line in words.splitlines() if line.strip() and not any(n in line for n in NOISE)][-3:]
    return _error(name, target, "other", "", f"{tool} ended with {output.code}: {' | '.join(last) or 'no message'}", "")


def _first_error(stderr: str) -> tuple[str, str]:
    """The place and words of the first real error line: (`file.py:12`, `failed to legalize ...`)."""
    for match in re.finditer(r'^(?:loc\((.*)\)|(\S+:\d+:\d+)): error: (.*)$', stderr, re.MULTILINE):
        if not any(noise in match[3] for noise in NOISE):
            places = re.findall(r'"([^"]+\.py)":(\d+)', match[1] or "")
            own = [p for p in places if "triton/language" not in p[0]] or places
            return (f"{own[-1][0]}:{own[-1][1]}" if own else ""), _plain(match[3])
    return "", ""


def _error(name: str, target: Target, kind: str, where: str, text: str, advice: str) -> KernelError:
    at = f" ({where})" if where else ""
    todo = f". What to do: {advice}" if advice else ""
    return KernelError(f"kernel {name!r} does not compile for {target.name}{at}: {text}{todo}", kind=kind, place=where)


def _remedy(words: str) -> str:
    return next((advice for sign, advice in REMEDIES if sign in words), "")


def _plain(words: str) -> str:
    """One line, without the quotes of a repr such as NameError('x is not defined')."""
    words = " ".join(words.split())
    match = re.fullmatch(r"(\w+)\((['\"])(.*)\2\)", words)
    return f"{match[1]}: {match[3]}" if match else words
