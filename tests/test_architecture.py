"""The project's structure: which folder may import which, what no file may name, and how long files may be."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "anychip"
# A folder may import folders of a smaller rank, and itself.
RANK = {"errors": 0, "config": 0, "record": 0, "presets": 0, "cpp": 0, "ops": 1, "model": 2, "sim": 2, "kernels": 2,
        "ascend": 2, "faults": 2, "chips": 3, "doctor": 3, "checkpoint": 4, "text": 4, "chat": 4,
        "weights": 4, "parallel": 4, "train": 5, "serve": 5, "plan": 5, "bench": 6, "eval": 6, "gap": 6, "conform": 6,
        "cli": 7}
# sim reads a chip's facts for their type only; chips time their events with sim.
SAME = {("sim", "chips")}
FILES = sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    found = set()
    package = ("anychip", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            names = [f"{base}.{node.module}" if base and node.module else node.module or f"{base}.{a.name}"
                     for a in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("anychip.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    here = part(path)
    if here in ("__init__", "__main__"):
        return
    wrong = {there for there in imported_parts(path)
             if there in RANK and RANK[there] > RANK[here] and (here, there) not in SAME}
    assert not wrong, f"{here} (rank {RANK[here]}) imports {sorted(wrong)}"


def test_every_folder_has_a_rank() -> None:
    parts = {part(path) for path in FILES} - {"__init__", "__main__"}
    assert parts <= set(RANK), sorted(parts - set(RANK))


def test_the_model_names_no_chip() -> None:
    named = [f"{path.name}: {word}" for path in (ROOT / "model").glob("*.py")
             for word in re.findall(r"\b(cuda|npu|ascend|nvidia|huawei)\b", path.read_text().lower())]
    assert not named


def test_no_file_is_longer_than_300_lines() -> None:
    assert not [f"{path.name}: {n}" for path in FILES if (n := len(path.read_text().splitlines())) > 300]


def test_every_config_field_is_read() -> None:
    config = sorted((ROOT / "config").glob("*.py"))
    fields = {node.target.id for path in config for node in ast.walk(ast.parse(path.read_text()))
              if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.islower()}
    text = "\n".join(path.read_text() for path in FILES)
    assert not [name for name in sorted(fields) if f".{name}" not in text and name not in ("type",)]
