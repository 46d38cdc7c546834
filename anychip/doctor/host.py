"""What every machine needs, and what an NVIDIA GPU needs: Python, compiler, driver, torch, triton."""

from __future__ import annotations

from collections.abc import Iterator

from anychip.doctor.finding import NOT_NEEDED, Finding
from anychip.doctor.install import install_compiler, install_nvidia_driver, install_torch
from anychip.doctor.probe import Probe
from anychip.doctor.table import Table, major, release, within


def check_python(probe: Probe, table: Table) -> Iterator[Finding]:
    """The interpreter that runs this."""
    wanted = table.anychip["python"]
    if within(probe.python, wanted):
        yield Finding("Python", probe.python, wanted, "ok")
    else:
        yield Finding("Python", probe.python, wanted, "wrong", "uv venv --python 3.11 .venv")


def check_system(probe: Probe, _table: Table) -> Iterator[Finding]:
    """Operating system and processor, for information."""
    found = f"{probe.system} {probe.distribution} {probe.machine}".replace("  ", " ")
    yield Finding("system", found, "any; NVIDIA and Ascend chips need Linux", "ok")
    yield Finding("CPU", f"{probe.cpu}, {probe.num_cores} cores", "any", "ok")


def check_compiler(probe: Probe, table: Table) -> Iterator[Finding]:
    """A C++ compiler new enough to build the cpu chip's kernels."""
    gcc = table.anychip["gcc"]
    wanted = f"g++ {gcc}, for the cpu chip's kernels"
    found = ", ".join(f"{name} {version}" for name, version in probe.compilers.items()) or "none"
    if within(probe.compilers.get("g++", "0"), gcc):
        yield Finding("C++ compiler", found, wanted, "ok")
    else:
        yield Finding(
            "C++ compiler", found, wanted, "wrong" if probe.compilers else "missing", install_compiler(probe)
        )


def check_nvidia_driver(probe: Probe, table: Table) -> Iterator[Finding]:
    """The driver, where a GPU is; whether it fits torch's CUDA is said at torch."""
    name, oldest = "NVIDIA driver", min(row.min_driver for row in table.cuda)
    install = install_nvidia_driver(probe)
    if not probe.has_nvidia:
        yield Finding(name, NOT_NEEDED, "only with an NVIDIA GPU", "ok")
    elif probe.nvidia_driver is None:
        yield Finding(name, "none, but an NVIDIA GPU is on the bus", f">={oldest}", "missing", install)
    elif major(probe.nvidia_driver) < oldest:
        yield Finding(name, probe.nvidia_driver, f">={oldest}", "wrong", install)
    else:
        yield Finding(name, probe.nvidia_driver, f">={oldest}", "ok")


def check_torch(probe: Probe, table: Table) -> Iterator[Finding]:
    """torch: its version, and a CUDA build that the driver can run where a GPU is."""
    wanted, found = table.anychip["torch"], probe.packages.get("torch")
    if found is None:
        yield Finding("torch", "none", _torch_wanted(probe, table), "missing", install_torch(probe, table))
        return
    shown = f"{found} ({'CUDA ' + probe.torch_cuda if probe.torch_cuda else 'no CUDA'})"
    if not within(release(found), wanted):
        yield Finding("torch", shown, wanted, "wrong", install_torch(probe, table))
    elif probe.has_nvidia and probe.torch_cuda is None:
        command = install_torch(probe, table, force=True)
        yield Finding("torch", shown, f"{wanted} built with CUDA for the GPU", "wrong", command)
    elif probe.torch_cuda and probe.nvidia_driver and _driver_is_too_old(probe, table):
        row = next(row for row in table.cuda if row.major == major(probe.torch_cuda or ""))
        wanted = f"driver >={row.min_driver} for CUDA {row.major}, found {probe.nvidia_driver}"
        yield Finding("torch", shown, wanted, "wrong", install_torch(probe, table, force=True))
    else:
        yield Finding("torch", shown, wanted, "ok")


def check_triton(probe: Probe, table: Table) -> Iterator[Finding]:
    """Whose triton it is. Both distributions own the folder `triton`; the one installed last wins."""
    community, ascend = probe.packages.get("triton"), probe.packages.get("triton-ascend")
    found = _triton_found(probe)
    if probe.has_nvidia and ascend is not None and "nvidia" not in probe.triton_backends:
        version = f"triton=={community}" if community else "triton"
        command = f"pip uninstall -y triton-ascend triton && pip install {version}"
        yield Finding("triton", found, "the NVIDIA backend: triton_ascend has replaced it", "wrong", command)
    elif ascend is not None and probe.triton_backends and "ascend" not in probe.triton_backends:
        command = f"pip uninstall -y triton triton-ascend && pip install triton-ascend=={ascend}"
        yield Finding(
            "triton", found, "the Ascend backend: triton has replaced triton_ascend", "wrong", command
        )
    elif community is not None and ascend is not None and not _declares_triton(ascend, table):
        command = f"pip uninstall -y triton triton-ascend && pip install triton-ascend=={ascend}"
        yield Finding("triton", found, "one of the two: they share the folder triton", "warn", command)
    elif community is None and probe.has_nvidia and probe.torch_cuda:
        yield Finding(
            "triton", found, "triton, for kernels on the NVIDIA GPU", "missing", "pip install triton"
        )
    else:
        yield Finding("triton", found, "at most one of triton, triton_ascend", "ok")


def check_transformers(probe: Probe, table: Table) -> Iterator[Finding]:
    """transformers, which only the tests need."""
    wanted, found = table.anychip["transformers"], probe.packages.get("transformers")
    shown = f"{wanted}, for the tests against it"
    if found is not None and within(release(found), wanted):
        yield Finding("transformers", found, shown, "ok")
    else:
        yield Finding("transformers", found or "none", shown, "warn", f"pip install 'transformers{wanted}'")


def _torch_wanted(probe: Probe, table: Table) -> str:
    kind = " with CUDA" if probe.nvidia_driver else " for torch_npu" if probe.has_ascend else ""
    return table.anychip["torch"] + kind


def _driver_is_too_old(probe: Probe, table: Table) -> bool:
    needs = next((row.min_driver for row in table.cuda if row.major == major(probe.torch_cuda or "")), 0)
    return major(probe.nvidia_driver or "") < needs


def _declares_triton(package: str, table: Table) -> bool:
    return any(row.declares_triton for row in table.triton_ascend if row.package == package)


def _triton_found(probe: Probe) -> str:
    names = ", ".join(f"{n} {probe.packages[n]}" for n in ("triton", "triton-ascend") if n in probe.packages)
    backends = f"; backends {', '.join(probe.triton_backends)}" if probe.triton_backends else ""
    return (names or "none") + backends
