"""Huawei's compilers as PyPI ships them: triton-ascend's front end and adapter, and the AscendNPU-IR binaries."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from ..errors import KernelError, NotSupported

INSTALL = "pip install 'anychip[ascend]'"
TIMEOUT_S = 300.0  # a kernel takes well under a second


@dataclass(frozen=True)
class Toolchain:
    """Where the compilers are. `versions` decides, with a kernel's content, what they produce."""

    adapter: Path
    binaries: Path
    versions: str


@dataclass(frozen=True)
class Output:
    """What a compiler printed. `code` is its exit status, negative where a signal ended it (a crash)."""

    code: int
    stdout: str
    stderr: str


@functools.cache
def find_toolchain() -> Toolchain:
    """Return the installed compilers. Raises NotSupported that says what to install."""
    triton = importlib.util.find_spec("triton")
    if triton is None or not triton.submodule_search_locations:
        raise NotSupported(f"compiling for Ascend needs triton-ascend and ascendnpu-ir: {INSTALL}{_python_advice()}")
    adapter = Path(triton.submodule_search_locations[0], "backends", "ascend", "triton-adapter-opt")
    if not adapter.is_file():
        raise NotSupported(f"the triton that is installed here ({_version('triton')}) has no Ascend back end; both "
                           "are named triton and cannot share an environment: in a new one, "
                           f"{INSTALL}{_python_advice()}")
    npuir = importlib.util.find_spec("ascendnpuir")
    if npuir is None or not npuir.submodule_search_locations:
        raise NotSupported(f"compiling for Ascend needs ascendnpu-ir: {INSTALL}{_python_advice()}")
    binaries = Path(npuir.submodule_search_locations[0], "bin")
    versions = [f"{name} {_version(name)}" for name in ("triton-ascend", "ascendnpu-ir")]
    sizes = [path.stat().st_size for path in (adapter, *sorted(binaries.glob("bishengir-compile*")))]
    return Toolchain(adapter, binaries, f"{'; '.join(versions)}; {sizes}")


def run(command: list[str], stdin: str, stop: tuple[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> Output:
    """Run a compiler on a text, in a folder of its own, and return what it printed.

    stop: two texts in lines of stderr; after the first and then the second nothing of interest comes, and the
    compiler is ended there.
    Raises KernelError where it takes longer than `timeout_s`.
    """
    with tempfile.TemporaryDirectory(prefix="anychip-") as folder:
        source = Path(folder, "kernel.mlir")
        source.write_text(stdin)
        with open(Path(folder, "stdout"), "w+") as stdout, subprocess.Popen(
                [*command, str(source)], cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
                text=True, errors="replace", env={**os.environ, "PATH": ""}) as process:
            # An empty PATH: a machine with CANN gives the same answer as one without.
            late = threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(timeout_s, end)
            timer.start()
            try:
                stderr = _read(process, stop)
                code = process.wait()
            finally:
                timer.cancel()
            if late.is_set():
                raise KernelError(f"{Path(command[0]).name} did not end within {timeout_s:.0f} s and was stopped",
                                  kind="timeout")
            stdout.seek(0)
            return Output(code, stdout.read(), stderr)


def _read(process: subprocess.Popen[str], stop: tuple[str, str] | None) -> str:
    lines: list[str] = []
    awaited = list(stop or ())
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if awaited and awaited[0] in line:
            awaited.pop(0)
            if not awaited:
                process.kill()
                break
    return "".join(lines)


def target_names(toolchain: Toolchain, compiler: str) -> list[str]:
    """Return the chip names that `bishengir-compile` or `bishengir-compile-a5` lists in its help."""
    text = run([str(toolchain.binaries / compiler), "--help"], "").stdout
    listed = text.split("--target=<value>", 1)[1].split("\n  --", 1)[0]
    return re.findall(r"=(Ascend[\w-]+) ", listed)


def target_spec(toolchain: Toolchain, compiler: str, target: str) -> dict[str, int | str]:
    """Return what a compiler holds a chip to have: entries of dlti.target_system_spec, memory sizes in bits."""
    tool = toolchain.binaries / compiler.replace("compile", "opt")
    text = run([str(tool), f"--hacc-append-device-spec=target={target}"], "module {}").stdout
    found = re.findall(r'dl_entry<"(\w+)", (?:(-?\d+) : i32|"([^"]+)")>', text)
    return {name: int(number) if number else word for name, number, word in found}


def _python_advice() -> str:
    """What pip would not say clearly: triton-ascend 3.2.0 has wheels for no Python after 3.11."""
    here = sys.version_info
    return (f" (with Python 3.11: triton-ascend 3.2.0 is not published for {here.major}.{here.minor})"
            if here >= (3, 12) else "")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
