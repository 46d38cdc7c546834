"""The doctor on machines that are not here: what it finds, and the command that mends it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anychip.doctor import Finding, Probe, examine, is_healthy, load_table, to_rows

GXX = {"g++": "12.2.0"}
LAPTOP: dict[str, Any] = {
    "python": "3.11.7",
    "distribution": "debian",
    "compilers": GXX,
    "packages": {"torch": "2.13.0+cpu", "transformers": "5.23.0"},
}
ASCEND: dict[str, Any] = {
    "python": "3.11.7",
    "distribution": "ubuntu",
    "machine": "aarch64",
    "compilers": GXX,
    "accelerators": frozenset({"ascend"}),
    "ascend_driver": "25.5.0",
    "ascend_chips": ("910B2",) * 8,
    "cann": "8.5.0",
    "cann_home": "/usr/local/Ascend/cann",
    "cann_is_sourced": True,
    "triton_backends": ("ascend",),
}
ASCEND_PACKAGES = {"torch": "2.9.0", "torch-npu": "2.9.0", "triton-ascend": "3.2.0", "transformers": "5.23.0"}
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def findings(**machine: Any) -> dict[str, Finding]:
    """Examine one machine; findings by component."""
    return {finding.component: finding for finding in examine(Probe(**machine))}


def problems(**machine: Any) -> dict[str, str]:
    """Component -> status of everything that is not ok."""
    return {name: f.status for name, f in findings(**machine).items() if f.status != "ok"}


def test_a_bare_laptop_has_no_problem_and_is_not_told_to_install_drivers() -> None:
    assert problems(**LAPTOP) == {}
    assert is_healthy(examine(Probe(**LAPTOP)))
    assert findings(**LAPTOP)["CANN"].wanted == "only with an Ascend NPU"


def test_a_good_ascend_machine_has_no_problem() -> None:
    assert problems(**ASCEND, packages=ASCEND_PACKAGES) == {}
    assert findings(**ASCEND, packages=ASCEND_PACKAGES)["Ascend driver"].found == "25.5.0, 8 x 910B2"


def test_every_problem_has_exactly_one_command_and_ok_has_none() -> None:
    for finding in examine(Probe(python="3.9.1", accelerators=frozenset({"nvidia", "ascend"}))):
        assert bool(finding.command) == (finding.status != "ok"), finding
        assert "\n" not in finding.command
    with pytest.raises(ValueError, match="torch: status 'ok' with command 'pip'"):
        Finding("torch", "1", "2", "ok", "pip")


def test_no_torch_on_a_machine_without_accelerator_installs_the_cpu_build() -> None:
    found = findings(**{**LAPTOP, "packages": {}})
    assert found["torch"].status == "missing"
    assert found["torch"].command == f"pip install 'torch>=2.7' --index-url {CPU_WHEELS}"
    assert found["transformers"].status == "warn"


def test_old_python_and_old_torch_are_wrong() -> None:
    found = findings(**{**LAPTOP, "python": "3.10.2", "packages": {"torch": "2.1.0"}})
    assert found["Python"].status == "wrong" and found["Python"].wanted == ">=3.11"
    assert found["torch"].status == "wrong" and "2.1.0" in found["torch"].found


@pytest.mark.parametrize(
    ("distribution", "command"),
    [
        ("debian", "sudo apt-get install -y g++"),
        ("openEuler", "sudo dnf install -y gcc-c++"),
        ("nixos", "conda install"),
    ],
)
def test_a_missing_compiler_is_installed_the_way_of_the_distribution(distribution: str, command: str) -> None:
    found = findings(**{**LAPTOP, "compilers": {}, "distribution": distribution})["C++ compiler"]
    assert found.status == "missing" and found.command.startswith(command)
    assert findings(**{**LAPTOP, "compilers": {"g++": "7.5.0"}})["C++ compiler"].status == "wrong"
    assert findings(**{**LAPTOP, "compilers": {"clang++": "17.0.6"}})["C++ compiler"].status == "wrong"


def test_cuda_torch_with_an_old_driver_gets_a_wheel_that_the_driver_runs() -> None:
    packages = {"torch": "2.13.0+cu130", "triton": "3.6.0", "transformers": "5.23.0"}
    gpu = {**LAPTOP, "packages": packages, "torch_cuda": "13.0", "nvidia_driver": "550.54.15"}
    found = findings(**gpu, triton_backends=("amd", "nvidia"))
    assert found["NVIDIA driver"].status == "ok"
    assert found["torch"].status == "wrong"
    assert found["torch"].wanted == "driver >=580 for CUDA 13, found 550.54.15"
    assert found["torch"].command == (
        "pip install --force-reinstall torch==2.9.1 --index-url https://download.pytorch.org/whl/cu126"
    )


def test_a_gpu_without_driver_is_seen_on_the_bus() -> None:
    found = findings(**LAPTOP, accelerators=frozenset({"nvidia"}))
    assert found["NVIDIA driver"].status == "missing"
    assert found["NVIDIA driver"].command == "sudo apt-get install -y nvidia-driver"
    assert found["torch"].status == "wrong" and "whl/cu130" in found["torch"].command


def test_a_driver_older_than_any_cuda_of_the_table_is_wrong() -> None:
    assert problems(**LAPTOP, nvidia_driver="390.157")["NVIDIA driver"] == "wrong"


def test_triton_over_triton_ascend_is_wrong_and_names_the_remedy() -> None:
    packages = {**ASCEND_PACKAGES, "triton": "3.5.0"}
    found = findings(**{**ASCEND, "triton_backends": ("amd", "nvidia")}, packages=packages)["triton"]
    assert found.status == "wrong" and "triton has replaced triton_ascend" in found.wanted
    assert found.command == "pip uninstall -y triton triton-ascend && pip install triton-ascend==3.2.0"


def test_triton_ascend_over_triton_breaks_the_gpu() -> None:
    packages = {"torch": "2.13.0", "triton": "3.6.0", "triton-ascend": "3.2.0", "transformers": "5.23.0"}
    gpu = {**LAPTOP, "packages": packages, "torch_cuda": "13.0", "nvidia_driver": "580.65.06"}
    found = findings(**gpu, triton_backends=("ascend",))["triton"]
    assert found.status == "wrong" and "triton_ascend has replaced it" in found.wanted
    assert found.command == "pip uninstall -y triton-ascend triton && pip install triton==3.6.0"


def test_both_tritons_are_a_warning_unless_triton_ascend_asked_for_both() -> None:
    both = {**ASCEND_PACKAGES, "triton": "3.2.0"}
    assert problems(**ASCEND, packages=both) == {"triton": "warn"}
    newer = {**both, "triton-ascend": "3.2.1", "torch-npu": "2.9.0.post2"}
    assert problems(**{**ASCEND, "cann": "9.0.0"}, packages=newer) == {}


def test_torch_npu_for_another_cann_is_replaced_by_the_one_for_this_cann() -> None:
    packages = {**ASCEND_PACKAGES, "torch": "2.12.0", "torch-npu": "2.12.0"}
    found = findings(**ASCEND, packages=packages)["torch_npu"]
    assert found.status == "wrong" and found.wanted == "CANN 9.1.0 (found 8.5.0)"
    assert found.command == f"pip install torch==2.9.0 torch_npu==2.9.0 --extra-index-url {CPU_WHEELS}"


def test_torch_npu_keeps_the_installed_torch_where_the_cann_has_one_for_it() -> None:
    packages = {**ASCEND_PACKAGES, "torch": "2.8.0", "torch-npu": "2.8.0"}
    found = findings(**ASCEND, packages=packages)["torch_npu"]
    assert found.wanted == "CANN 8.3.RC1 (found 8.5.0)" and "torch_npu==2.8.0.post2" in found.command


def test_torch_npu_without_cann_on_a_laptop_is_to_be_removed_for_torch_to_load() -> None:
    found = findings(**{**LAPTOP, "packages": {"torch": "2.13.0", "torch-npu": "2.13.0"}})["torch_npu"]
    assert found.status == "wrong" and "`import torch` fails" in found.wanted
    assert found.command == "pip uninstall -y torch-npu"


def test_an_npu_without_device_files_is_a_container_that_was_not_given_them() -> None:
    found = findings(**ASCEND, packages=ASCEND_PACKAGES, ascend_devices=0)["Ascend devices"]
    assert found.status == "wrong" and "--device /dev/davinci0" in found.command
    assert problems(**ASCEND, packages=ASCEND_PACKAGES, ascend_devices=8) == {}


def test_torch_of_another_version_than_torch_npu_is_wrong() -> None:
    packages = {**ASCEND_PACKAGES, "torch": "2.13.0+cpu"}
    found = findings(**{**ASCEND, "machine": "x86_64"}, packages=packages)["torch_npu"]
    assert found.wanted == "torch 2.9.0 (found 2.13.0+cpu)"
    assert found.command == f"pip install torch==2.9.0+cpu torch_npu==2.9.0 --extra-index-url {CPU_WHEELS}"


def test_all_reasons_against_a_torch_npu_are_given_at_once() -> None:
    packages = {**ASCEND_PACKAGES, "torch": "2.13.0"}
    found = findings(**{**ASCEND, "python": "3.14.0", "cann": "7.0.0"}, packages=packages)["torch_npu"]
    assert found.wanted == (
        "torch 2.9.0 (found 2.13.0); CANN 8.5.0 (found 7.0.0); Python 3.10, 3.11, 3.12, 3.13 (found 3.14.0)"
    )
    assert found.command == "bash Ascend-cann-toolkit_8.5.0_linux-aarch64.run --install"


def test_a_torch_npu_outside_the_table_is_a_warning_not_a_verdict() -> None:
    packages = {**ASCEND_PACKAGES, "torch": "2.13.0", "torch-npu": "2.13.0"}
    found = findings(**ASCEND, packages=packages)["torch_npu"]
    assert found.status == "warn" and load_table().version in found.wanted


def test_an_empty_ascend_machine_gets_driver_cann_torch_npu_and_triton_in_that_order() -> None:
    probe = Probe(python="3.11.7", compilers=GXX, machine="aarch64", accelerators=frozenset({"ascend"}))
    missing = [finding for finding in examine(probe) if finding.status == "missing"]
    assert [f.component for f in missing] == ["Ascend driver", "CANN", "torch", "torch_npu", "triton_ascend"]
    assert "npu-driver_26.1*_linux-aarch64.run --full" in missing[0].command
    assert missing[1].command == "bash Ascend-cann-toolkit_9.1.0_linux-aarch64.run --install"
    assert "torch==2.12.0 torch_npu==2.12.0" in missing[3].command


def test_a_driver_too_old_for_the_cann_is_wrong() -> None:
    machine = {**ASCEND, "cann": "9.1.0", "ascend_driver": "25.0.RC1"}
    packages = {**ASCEND_PACKAGES, "torch": "2.12.0", "torch-npu": "2.12.0"}
    found = findings(**machine, packages=packages)["Ascend driver"]
    assert found.status == "wrong" and found.wanted.startswith("one of 25.2, ") and "9.1.0" in found.wanted


def test_cann_that_is_not_sourced_says_what_to_source() -> None:
    found = findings(**{**ASCEND, "cann_is_sourced": False}, packages=ASCEND_PACKAGES)["CANN"]
    assert found.status == "wrong" and found.command == "source /usr/local/Ascend/cann/set_env.sh"


def test_triton_ascend_for_another_cann_or_python_is_wrong() -> None:
    found = findings(**{**ASCEND, "python": "3.12.1"}, packages=ASCEND_PACKAGES)["triton_ascend"]
    assert found.status == "wrong" and found.wanted == "Python 3.9, 3.10, 3.11 (found 3.12.1)"
    newer = {**ASCEND_PACKAGES, "torch-npu": "2.9.0.post2"}
    found = findings(**{**ASCEND, "cann": "9.0.0"}, packages=newer)["triton_ascend"]
    assert found.status == "wrong" and found.command.endswith("pip install triton-ascend==3.2.1")


def test_rows_are_text_for_a_table_or_json() -> None:
    rows = to_rows(examine(Probe(**LAPTOP)))
    assert all(len(row) == 5 and all(isinstance(cell, str) for cell in row) for row in rows)
    assert ("torch", "2.13.0+cpu (no CUDA)", ">=2.7", "ok", "") in rows


def test_the_table_has_a_source_for_every_part_and_no_row_twice() -> None:
    table = load_table()
    assert set(table.sources) >= {"torch_npu", "triton_ascend", "hdk", "cuda_driver", "cuda_wheel"}
    assert all(source.startswith("https://") for source in table.sources.values())
    packages = [row.package for row in table.torch_npu]
    assert len(packages) == len(set(packages))
    assert all(row.package.startswith(row.torch) for row in table.torch_npu)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_probe_reads_an_ascend_machine_from_its_files(tmp_path: Path) -> None:
    _write(tmp_path / "etc/os-release", 'NAME="openEuler"\nID="openEuler"\n')
    _write(tmp_path / "usr/local/Ascend/driver/version.info", "Version=25.5.1\nascendhal_version=7.35\n")
    _write(tmp_path / "usr/local/Ascend/cann/aarch64-linux/ascend_toolkit_install.info", "version=8.5.0\n")
    _write(tmp_path / "sys/bus/pci/devices/0000:01:00.0/vendor", "0x19e5\n")
    _write(tmp_path / "sys/bus/pci/devices/0000:01:00.0/class", "0x120000\n")
    probe = Probe.of_this_machine({"PATH": str(tmp_path)}, root=tmp_path)
    assert (probe.distribution, probe.ascend_driver, probe.cann) == ("openEuler", "25.5.1", "8.5.0")
    assert probe.has_ascend and not probe.has_nvidia and not probe.cann_is_sourced
    assert probe.compilers == {}


@pytest.mark.parametrize(
    "module", ["NVIDIA UNIX x86_64 Kernel Module", "NVIDIA UNIX Open Kernel Module for x86_64"]
)
def test_a_probe_reads_the_nvidia_driver_of_both_kernel_modules(tmp_path: Path, module: str) -> None:
    _write(tmp_path / "proc/driver/nvidia/version", f"NVRM version: {module}  580.65.06  Sun Jul 27 2025\n")
    assert Probe.of_this_machine({"PATH": ""}, root=tmp_path).nvidia_driver == "580.65.06"


def test_a_probe_reads_npu_smi_and_a_compiler_from_the_path(tmp_path: Path) -> None:
    table = "| 0     910B2     | OK     | 93.6    |\n| 1     910B2     | OK     | 90.1    |\n"
    for tool, output in (("npu-smi", table), ("g++", "13.3.0\n")):
        _write(tmp_path / tool, f"#!/bin/sh\nprintf '%s' '{output}'\n")
        (tmp_path / tool).chmod(0o755)
    probe = Probe.of_this_machine({"PATH": str(tmp_path)}, root=tmp_path)
    assert probe.ascend_chips == ("910B2", "910B2") and probe.compilers == {"g++": "13.3.0"}


def test_a_probe_takes_the_sourced_cann_before_the_default_one(tmp_path: Path) -> None:
    _write(tmp_path / "usr/local/Ascend/cann/x86_64-linux/ascend_toolkit_install.info", "version=8.5.0\n")
    _write(tmp_path / "own/x86_64-linux/ascend_toolkit_install.info", "package=x\nversion=9.0.0\n")
    probe = Probe.of_this_machine({"PATH": "", "ASCEND_HOME_PATH": str(tmp_path / "own")}, root=tmp_path)
    assert probe.cann == "9.0.0" and probe.cann_is_sourced


def test_a_probe_of_this_machine_imports_no_torch() -> None:
    code = "import os, sys; from anychip.doctor import Probe; Probe.of_this_machine(os.environ)"
    command = [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
