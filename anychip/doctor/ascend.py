"""What an Ascend NPU needs: driver, CANN, torch_npu, triton_ascend."""

from __future__ import annotations

from collections.abc import Iterator

from anychip.doctor.finding import NOT_NEEDED, Finding
from anychip.doctor.install import arch, install_cann, install_torch_npu
from anychip.doctor.probe import Probe
from anychip.doctor.table import Table, TorchNpuRow, TritonAscendRow, cann_matches, minor, release


def check_ascend_driver(probe: Probe, table: Table) -> Iterator[Finding]:
    """The driver (Ascend HDK) against the installed CANN.

    It is no package of a registry: its file is chosen by product at hiascend.com/hardware/firmware-drivers.
    """
    name, found = "Ascend driver", probe.ascend_driver
    if not probe.has_ascend:
        yield Finding(name, NOT_NEEDED, "only with an Ascend NPU", "ok")
        return
    cann = probe.cann or table.advised["cann"]
    drivers = table.drivers_of(cann) or ()
    wanted = f"one of {', '.join(drivers)} for CANN {cann}" if drivers else f"unknown for CANN {cann}"
    newest = drivers[-1] if drivers else ""
    verb = "--full" if found is None else "--upgrade"
    command = f"sudo bash Ascend-hdk-*-npu-driver_{newest}*_linux-{arch(probe)}.run {verb}"
    if found is None:
        yield Finding(name, "none, but an Ascend NPU is there", wanted, "missing", command)
    elif drivers and minor(found) not in drivers:
        yield Finding(name, found, wanted, "wrong", command)
    else:
        yield Finding(name, _with_chips(found, probe), wanted, "ok")


def check_ascend_devices(probe: Probe, _table: Table) -> Iterator[Finding]:
    """The device files, which a container sees only where it was given them."""
    if not probe.has_ascend or probe.ascend_devices is None:
        return
    if probe.ascend_devices:
        yield Finding("Ascend devices", f"/dev/davinci, {probe.ascend_devices} of them", "at least one", "ok")
    else:
        yield Finding("Ascend devices", "an NPU on the bus, no /dev/davinci*", "the device files, in a container too",
                      "wrong", "docker run --device /dev/davinci0 --device /dev/davinci_manager --device "
                      "/dev/devmm_svm --device /dev/hisi_hdc -v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro "
                      "IMAGE")


def check_cann(probe: Probe, table: Table) -> Iterator[Finding]:
    """CANN and its environment; whether it fits torch_npu is said there, where a pip command mends it."""
    if not probe.has_ascend and probe.cann_home is None:
        yield Finding("CANN", NOT_NEEDED, "only with an Ascend NPU", "ok")
        return
    row = next((r for r in table.torch_npu if r.package == probe.packages.get("torch-npu")), None)
    wanted = row.cann if row else table.advised["cann"]
    if probe.cann_home is None or probe.cann is None:
        found = "none" if probe.cann_home is None else f"{probe.cann_home} without a version record"
        yield Finding("CANN", found, wanted, "missing", install_cann(probe, wanted))
    elif not probe.cann_is_sourced:
        script = probe.cann_home.removesuffix("/latest") + "/set_env.sh"
        yield Finding(
            "CANN", f"{probe.cann}, not in this shell", "ASCEND_HOME_PATH set", "wrong", f"source {script}"
        )
    else:
        yield Finding("CANN", probe.cann, wanted if row else "any with a torch_npu", "ok")


def check_torch_npu(probe: Probe, table: Table) -> Iterator[Finding]:
    """torch_npu against torch, CANN and Python. The command keeps CANN where a torch_npu exists for it."""
    name, found, torch = "torch_npu", probe.packages.get("torch-npu"), probe.packages.get("torch")
    if found is None and not probe.has_ascend:
        yield Finding(name, NOT_NEEDED, "only with an Ascend NPU", "ok")
        return
    if not probe.has_ascend and probe.cann_home is None:  # torch loads it by itself, and it needs CANN's libraries
        yield Finding(name, f"{found}, without CANN", "none here: `import torch` fails with it", "wrong",
                      "pip uninstall -y torch-npu")
        return
    fitting = table.torch_npu_for(probe.cann, probe.python, torch) if probe.cann else None
    package = fitting.package if fitting else table.advised["torch_npu"]
    row = next((row for row in table.torch_npu if row.package == found), None)
    if found is None:
        wanted = f"{package}{_for_cann(probe)}"
        yield Finding(name, "none", wanted, "missing", install_torch_npu(probe, package))
    elif row is None:
        wanted = f"a version of the table of {table.version}, for example {package}{_for_cann(probe)}"
        yield Finding(name, found, wanted, "warn", install_torch_npu(probe, package))
    elif problems := _torch_npu_problems(probe, table, row):
        yield Finding(name, found, "; ".join(problems.values()), "wrong", _mend(probe, table, row, problems))
    else:
        yield Finding(name, found, f"torch {row.torch}, CANN {row.cann}", "ok")


def _torch_npu_problems(probe: Probe, table: Table, row: TorchNpuRow) -> dict[str, str]:
    """Return what does not fit an installed torch_npu: component -> what is wanted and found."""
    torch, problems = probe.packages.get("torch"), {}
    if torch is None or release(torch) != row.torch:
        problems["torch"] = f"torch {row.torch} (found {torch or 'none'})"
    if probe.cann is not None and not cann_matches(probe.cann, row.cann):
        problems["cann"] = f"CANN {row.cann} (found {probe.cann})"
    if not table.takes_python(row, probe.python):
        problems["python"] = f"Python {', '.join(table.python_of_torch[row.torch])} (found {probe.python})"
    return problems


def _mend(probe: Probe, table: Table, row: TorchNpuRow, problems: dict[str, str]) -> str:
    """Return the one command: another torch, another torch_npu for this CANN, or another CANN or Python."""
    if set(problems) == {"torch"}:
        return install_torch_npu(probe, row.package)
    fitting = (
        table.torch_npu_for(probe.cann, probe.python, probe.packages.get("torch")) if probe.cann else None
    )
    if fitting is not None:
        return install_torch_npu(probe, fitting.package)
    if "cann" in problems:  # no torch_npu is published for this CANN and Python
        return install_cann(probe, row.cann)
    return f"uv venv --python {table.python_of_torch[row.torch][-1]} .venv"


def check_triton_ascend(probe: Probe, table: Table) -> Iterator[Finding]:
    """triton_ascend against CANN and Python."""
    name, found = "triton_ascend", probe.packages.get("triton-ascend")
    if found is None and not probe.has_ascend:
        yield Finding(name, NOT_NEEDED, "only to compile kernels for Ascend", "ok")
        return
    fitting = _triton_ascend_row(probe, table)
    package = fitting.package if fitting else table.advised["triton_ascend"]
    command = f"pip uninstall -y triton triton-ascend; pip install triton-ascend=={package}"
    row = next((row for row in table.triton_ascend if row.package == found), None)
    if found is None:
        yield Finding(
            name, "none", f"{package}{_for_cann(probe)}", "missing", f"pip install triton-ascend=={package}"
        )
    elif row is None:
        versions = ", ".join(r.package for r in table.triton_ascend)
        yield Finding(name, found, f"a version of the table of {table.version}: {versions}", "warn", command)
    elif minor(probe.python) not in row.python:
        wanted = f"Python {', '.join(row.python)} (found {probe.python})"
        yield Finding(name, found, wanted, "wrong", f"uv venv --python {row.python[-1]} .venv")
    elif probe.cann is not None and not cann_matches(probe.cann, row.cann):
        wanted = f"CANN {row.cann} (found {probe.cann})"
        if fitting is None:  # no triton_ascend is published for this CANN: the CANN has to change
            command = install_cann(probe, row.cann)
        yield Finding(name, found, wanted, "wrong", command)
    else:
        yield Finding(name, found, f"CANN {row.cann}, Python {row.python[0]} to {row.python[-1]}", "ok")


def check_ascendnpu_ir(probe: Probe, _table: Table) -> Iterator[Finding]:
    """The compiler wheel for Ascend, which nothing requires."""
    found = probe.packages.get("ascendnpu-ir", NOT_NEEDED)
    yield Finding("ascendnpu_ir", found, "optional: compiles for Ascend without an NPU", "ok")


def _triton_ascend_row(probe: Probe, table: Table) -> TritonAscendRow | None:
    """Return the newest triton_ascend for the installed CANN and Python, or None when none is published."""
    return next(
        (
            row
            for row in table.triton_ascend
            if minor(probe.python) in row.python
            and (probe.cann is None or cann_matches(probe.cann, row.cann))
        ),
        None,
    )


def _with_chips(found: str, probe: Probe) -> str:
    return f"{found}, {len(probe.ascend_chips)} x {probe.ascend_chips[0]}" if probe.ascend_chips else found


def _for_cann(probe: Probe) -> str:
    return f" for CANN {probe.cann}" if probe.cann else ""
