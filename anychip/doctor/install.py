"""The command that installs each component on a given machine."""

from __future__ import annotations

from anychip.doctor.probe import Probe
from anychip.doctor.table import Table, major, release

_INSTALL_COMPILER = {
    "debian": "sudo apt-get install -y g++",
    "ubuntu": "sudo apt-get install -y g++",
    "fedora": "sudo dnf install -y gcc-c++",
    "rhel": "sudo dnf install -y gcc-c++",
    "centos": "sudo dnf install -y gcc-c++",
    "openEuler": "sudo dnf install -y gcc-c++",
    "arch": "sudo pacman -S --noconfirm gcc",
    "alpine": "sudo apk add g++",
}
_INSTALL_NVIDIA_DRIVER = {
    "ubuntu": "sudo apt-get install -y nvidia-driver-580-server",
    "debian": "sudo apt-get install -y nvidia-driver",
}
_CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def install_compiler(probe: Probe) -> str:
    """Return the command that installs a C++ compiler."""
    if probe.system == "Darwin":
        return "xcode-select --install"
    return _INSTALL_COMPILER.get(probe.distribution, "conda install -y -c conda-forge gxx")


def install_nvidia_driver(probe: Probe) -> str:
    """Return the command that installs or renews the NVIDIA driver."""
    return _INSTALL_NVIDIA_DRIVER.get(
        probe.distribution, "sudo dnf module install -y nvidia-driver:latest-dkms"
    )


def install_cann(probe: Probe, version: str) -> str:
    """Return the command that installs a CANN toolkit, whose file is at https://www.hiascend.com/cann/download.

    A minor version such as 9.1 stands for any of its patch releases.
    """
    patch = version if version.count(".") > 1 else f"{version}.*"
    return f"bash Ascend-cann-toolkit_{patch}_linux-{arch(probe)}.run --install"


def install_torch(probe: Probe, table: Table, *, force: bool = False) -> str:
    """Return the command that installs the torch that this machine's chips need."""
    if probe.has_ascend:
        fitting = table.torch_npu_for(probe.cann, probe.python) if probe.cann else None
        return install_torch_npu(probe, fitting.package if fitting else table.advised["torch_npu"])
    again = "--force-reinstall " if force else ""
    if probe.has_nvidia:
        driver = major(probe.nvidia_driver) if probe.nvidia_driver else 0
        # Without a usable driver its own finding comes first and installs the newest.
        usable = [row for row in table.cuda if driver >= row.min_driver] or list(table.cuda)
        row = max(usable, key=lambda row: row.major)
        return f"pip install {again}torch=={row.torch} --index-url {row.index}"
    return f"pip install {again}'torch{table.anychip['torch']}' --index-url {_CPU_WHEELS}"


def install_torch_npu(probe: Probe, package: str) -> str:
    """Return the command that installs a torch_npu with its torch: the CPU build, plus the NPU."""
    torch = f"torch=={release(package)}" + ("+cpu" if probe.machine == "x86_64" else "")
    return f"pip install {torch} torch_npu=={package} --extra-index-url {_CPU_WHEELS}"


def arch(probe: Probe) -> str:
    """Return the processor architecture as Linux spells it."""
    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(probe.machine, probe.machine)
