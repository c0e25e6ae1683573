"""Arrows between the packages run one way: train -> models -> nn -> features -> kernels, positions."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What each room may import of the project, itself included.
ALLOWED = {
    "jaxattn/kernels": {"jaxattn._checks", "jaxattn._pytree", "jaxattn.kernels"},
    "jaxattn/positions": {"jaxattn._checks", "jaxattn.positions"},
    "jaxattn/features": {"jaxattn._checks", "jaxattn._pytree", "jaxattn.kernels", "jaxattn.features"},
    "jaxattn/nn": {
        "jaxattn._checks",
        "jaxattn.kernels",
        "jaxattn.features",
        "jaxattn.positions",
        "jaxattn.nn",
    },
    "jaxattn/models": {
        "jaxattn._checks",
        "jaxattn.kernels",
        "jaxattn.features",
        "jaxattn.positions",
        "jaxattn.nn",
        "jaxattn.models",
    },
}


def _imports(path: pathlib.Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_lies_below(room):
    for path in (ROOT / room).rglob("*.py"):
        for name in _imports(path):
            if name.split(".")[0] in ("jaxattn", "train", "tests", "benchmarks"):
                assert any(name.startswith(f"{base}.") for base in ALLOWED[room]), f"{path} imports {name}"


def test_kernels_do_not_know_flax():
    for room in ("jaxattn/kernels", "jaxattn/features", "jaxattn/positions"):
        for path in (ROOT / room).rglob("*.py"):
            assert not any(name.split(".")[0] == "flax" for name in _imports(path)), path


def test_import_needs_no_training_dependency():
    code = (
        "import sys; import jaxattn, jaxattn.testing; "
        "heavy = {'grain', 'tyro', 'tensorboardX', 'matplotlib', 'beartype', 'torch', 'tokamax'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]", result.stdout
