"""The examination: each component of a machine against the table."""

from __future__ import annotations

from anychip.doctor import ascend, host
from anychip.doctor.finding import Finding
from anychip.doctor.probe import Probe
from anychip.doctor.table import Table, load_table

_CHECKS = (
    host.check_python,
    host.check_system,
    host.check_compiler,
    host.check_nvidia_driver,
    ascend.check_ascend_driver,
    ascend.check_ascend_devices,
    ascend.check_cann,
    host.check_torch,
    ascend.check_torch_npu,
    host.check_triton,
    ascend.check_triton_ascend,
    ascend.check_ascendnpu_ir,
    host.check_transformers,
)


def examine(probe: Probe, table: Table | None = None) -> list[Finding]:
    """Compare a machine with the table. Findings come in the order in which problems are to be mended.

    What an absent kind of hardware would need is reported as not needed, never as missing.
    """
    table = load_table() if table is None else table
    return [finding for check in _CHECKS for finding in check(probe, table)]
