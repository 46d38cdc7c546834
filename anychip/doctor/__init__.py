"""What is installed on a machine, whether it goes together, and the one command that mends each problem.

    findings = examine(Probe.of_this_machine(env))

Nothing heavy is imported to find out: versions come from package metadata and small files, so the doctor
works where torch is missing or broken. The versions that go together are data, in `table.toml`, with sources.
"""

from anychip.doctor.examine import examine
from anychip.doctor.finding import Finding, Status, is_healthy, to_rows
from anychip.doctor.probe import Probe
from anychip.doctor.table import Table, load_table

__all__ = ["Finding", "Probe", "Status", "Table", "examine", "is_healthy", "load_table", "to_rows"]
