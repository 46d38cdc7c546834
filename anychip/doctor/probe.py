"""What is on a machine, as plain data: read from metadata and small files, importing none of it.

A test makes a Probe of a machine that it does not have.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "triton", "triton-ascend", "torch-npu", "ascendnpu-ir", "transformers")
COMPILERS = {"g++": "-dumpfullversion", "clang++": "-dumpversion"}  # what makes each print its version

_NVIDIA_VENDOR, _HUAWEI_VENDOR = "0x10de", "0x19e5"
_ACCELERATOR_CLASSES = ("0x0300", "0x0302", "0x1200")  # VGA, 3D controller, processing accelerator
_ASCEND_HOMES = ("usr/local/Ascend/cann", "usr/local/Ascend/ascend-toolkit/latest")


@dataclass(frozen=True)
class Probe:
    """One machine. None and empty mean: not there. Versions are as printed by their owners.

    `packages` has distribution names with hyphens; `triton_backends` the folders of triton/backends on disk,
    which tell whose triton it is; `accelerators` the vendors ("nvidia", "ascend") seen on the PCI bus or as
    device files, which needs no driver tools.
    """

    python: str
    system: str = "Linux"
    distribution: str = ""
    machine: str = "x86_64"
    cpu: str = ""
    num_cores: int = 1
    packages: Mapping[str, str] = field(default_factory=dict)
    compilers: Mapping[str, str] = field(default_factory=dict)
    torch_cuda: str | None = None
    triton_backends: tuple[str, ...] = ()
    accelerators: frozenset[str] = frozenset()
    nvidia_driver: str | None = None
    ascend_driver: str | None = None
    ascend_chips: tuple[str, ...] = ()
    ascend_devices: int | None = None  # device files; None: not looked for
    cann: str | None = None
    cann_home: str | None = None
    cann_is_sourced: bool = False

    @property
    def has_nvidia(self) -> bool:
        """Whether an NVIDIA GPU or its driver is on this machine."""
        return "nvidia" in self.accelerators or self.nvidia_driver is not None

    @property
    def has_ascend(self) -> bool:
        """Whether an Ascend NPU or its driver is on this machine."""
        return "ascend" in self.accelerators or self.ascend_driver is not None or bool(self.ascend_chips)

    @classmethod
    def of_this_machine(cls, env: Mapping[str, str], root: Path = Path("/")) -> Probe:
        """Read this machine. `env`: its variables (ASCEND_HOME_PATH, PATH, HOME). `root`: not / in tests."""
        cann_home = _cann_home(env, root)
        return cls(
            python=platform.python_version(),
            system=platform.system(),
            distribution=_field(root / "etc/os-release", r'^ID="?([\w.-]+)') or "",
            machine=platform.machine(),
            cpu=_field(root / "proc/cpuinfo", r"^model name\s*:\s*(.+)") or platform.processor() or "unknown",
            num_cores=_num_cores(),
            packages=_packages(),
            compilers=_compilers(env),
            torch_cuda=_torch_cuda(),
            triton_backends=_triton_backends(),
            accelerators=_accelerators(root),
            nvidia_driver=_nvidia_driver(env, root),
            ascend_driver=_field(root / "usr/local/Ascend/driver/version.info", r"^Version\s*=\s*(\S+)"),
            ascend_chips=_ascend_chips(env),
            ascend_devices=sum(p.name[7:].isdigit() for p in (root / "dev").glob("davinci*")),
            cann=None if cann_home is None else _cann_version(cann_home),
            cann_home=None if cann_home is None else str(cann_home),
            cann_is_sourced=bool(env.get("ASCEND_HOME_PATH")),
        )


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _field(path: Path, pattern: str) -> str | None:
    """Return the first group of the first match in a small text file, or None without file or match."""
    try:
        found = re.search(pattern, path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return found.group(1).strip() if found else None


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _package_folder(name: str) -> Path | None:
    """Return a package's folder without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _torch_cuda() -> str | None:
    folder = _package_folder("torch")
    return None if folder is None else _field(folder / "version.py", r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]")


def _triton_backends() -> tuple[str, ...]:
    folder = _package_folder("triton")
    if folder is None or not (folder / "backends").is_dir():
        return ()
    return tuple(
        sorted(p.name for p in (folder / "backends").iterdir() if p.is_dir() and p.name[0] not in "_.")
    )


def _run(command: list[str], env: Mapping[str, str]) -> str:
    """Return what a query tool prints, or an empty string when it is absent, fails or takes over 10 s."""
    tool = shutil.which(command[0], path=env.get("PATH", os.defpath))
    if tool is None:
        return ""
    try:
        done = subprocess.run([tool, *command[1:]], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _compilers(env: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for name, option in COMPILERS.items():
        version = re.search(r"\d+\.\d+(\.\d+)?", _run([name, option], env))
        if version:
            found[name] = version.group(0)
    return found


def _accelerators(root: Path) -> frozenset[str]:
    """Return the vendors of accelerators on the PCI bus, or whose device files a container was given."""
    names = {_NVIDIA_VENDOR: "nvidia", _HUAWEI_VENDOR: "ascend"}
    files = {"nvidia": root / "dev/nvidia0", "ascend": root / "dev/davinci0"}
    found = {vendor for vendor, file in files.items() if file.exists()}
    for device in (root / "sys/bus/pci/devices").glob("*"):
        vendor, kind = _field(device / "vendor", r"(0x\w+)"), _field(device / "class", r"(0x\w{4})")
        if vendor in names and kind in _ACCELERATOR_CLASSES:
            found.add(names[vendor])
    return frozenset(found)


def _nvidia_driver(env: Mapping[str, str], root: Path) -> str | None:
    pattern = r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s"
    from_proc = _field(root / "proc/driver/nvidia/version", pattern)
    if from_proc:
        return from_proc
    lines = _run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], env).split()
    return lines[0] if lines else None


def _ascend_chips(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the chip names that npu-smi lists, one a device."""
    return tuple(
        re.findall(r"^\|\s*\d+\s+(?:Ascend)?(9[15]0\w*)\s*\|", _run(["npu-smi", "info"], env), re.MULTILINE)
    )


def _cann_home(env: Mapping[str, str], root: Path) -> Path | None:
    """Return the CANN folder: the sourced one, else a default one of root or of the user."""
    sourced = [Path(env["ASCEND_HOME_PATH"])] if env.get("ASCEND_HOME_PATH") else []
    defaults = [root / home for home in _ASCEND_HOMES]
    own = [Path(env["HOME"]) / home.removeprefix("usr/local/") for home in _ASCEND_HOMES if env.get("HOME")]
    return next((home for home in [*sourced, *defaults, *own] if home.is_dir()), None)


def _cann_version(home: Path) -> str | None:
    """Return the toolkit's version as its install record has it, or None when there is no record."""
    records = sorted(home.glob("*-linux/ascend_toolkit_install.info")) + [
        home / "compiler/version.info",
        home / "runtime/version.info",
    ]
    found = (_field(record, r"^[Vv]ersion\s*=\s*(\S+)") for record in records)
    return next((version for version in found if version), None)
