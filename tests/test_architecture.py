"""Arrows between the rooms run one way: jaxattn_train → models → encoders → nn → families → core, without circles."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = ("jaxattn", "jaxattn_train", "benchmarks", "tests")

CORE = {"jaxattn.core"}
# What each room may import of the project besides itself. A family imports another through its public functions only.
FAMILIES = {
    "jaxattn/core": set(),
    "jaxattn/positions": CORE,
    "jaxattn/convolution": CORE,
    "jaxattn/softmax": CORE,
    "jaxattn/linear": CORE,
    "jaxattn/tree": CORE,
    "jaxattn/energy": {*CORE, "jaxattn.softmax"},
    "jaxattn/lags": {*CORE, "jaxattn.softmax"},
    "jaxattn/output_gate": {*CORE, "jaxattn.softmax"},
    "jaxattn/recency": {*CORE, "jaxattn.softmax"},
    "jaxattn/random_features": {*CORE, "jaxattn.linear"},
    "jaxattn/retention": {*CORE, "jaxattn.linear"},
}
NN = CORE | {room.replace("/", ".") for room in FAMILIES}
ENCODERS = NN | {"jaxattn.nn"}
TRAIN = {"jaxattn_train.errors", "jaxattn"}
ALLOWED = {
    **FAMILIES,
    "jaxattn/nn": NN,
    "jaxattn/encoders": ENCODERS,
    "jaxattn/models": ENCODERS | {"jaxattn.encoders"},
    "jaxattn/testing": set(),
    "jaxattn_train/cli": TRAIN,
    "jaxattn_train/compiler": set(),
    "jaxattn_train/engine": TRAIN | {"jaxattn_train.cli", "jaxattn_train.data", "jaxattn_train.compiler"},
    "jaxattn_train/data": TRAIN,
    "jaxattn_train/tasks": TRAIN | {"jaxattn_train.cli", "jaxattn_train.engine", "jaxattn_train.data"},
    "jaxattn_train/studies": TRAIN | {f"jaxattn_train.{room}" for room in ("cli", "engine", "data", "tasks")},
    "benchmarks/measure": {"jaxattn"},
    "benchmarks/suites": {"benchmarks.measure", "jaxattn", "jaxattn_train"},
    "benchmarks/report": {"benchmarks.measure", "benchmarks.suites", "jaxattn"},
}
# The rooms that hold Flax modules, and the files of the others that do.
WITH_FLAX = ("jaxattn/nn", "jaxattn/models", "jaxattn/encoders")
FLAX_FILES = ("mechanism.py", "jaxattn/core/parameters.py", "jaxattn/tree/sibling_bias.py")


def _sources(room: str) -> list[pathlib.Path]:
    return sorted((ROOT / room).rglob("*.py"))


def _module(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(p): p for room in ("jaxattn", "jaxattn_train", "benchmarks") for p in _sources(room)}


def _imports(path: pathlib.Path, *, at_import: bool = False) -> set[str]:
    """Names of imported modules; `at_import` leaves out what functions import when they are called."""
    names: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in MODULES else node.module)
        todo.extend(ast.iter_child_nodes(node))
    return names


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_lies_below(room):
    assert _sources(room), f"{room} is empty"
    allowed = {room.replace("/", "."), *ALLOWED[room]}
    for path in _sources(room):
        for name in _imports(path):
            if name.split(".")[0] in PROJECT:
                assert any(_inside(name, base) for base in allowed), f"{path} imports {name}"


def test_every_room_is_listed():
    for top in ("jaxattn", "jaxattn_train", "benchmarks"):
        rooms = {f"{top}/{p.parent.name}" for p in (ROOT / top).glob("*/__init__.py")}
        assert rooms <= set(ALLOWED), rooms - set(ALLOWED)


def test_families_do_not_reach_into_each_other():
    for room in FAMILIES:
        package = room.replace("/", ".")
        for path in _sources(room):
            if path.name == "mechanism.py":  # gates hold other mechanisms
                continue
            for name in _imports(path):
                if (
                    _inside(name, "jaxattn")
                    and not _inside(name, package)
                    and not _inside(name, "jaxattn.core")
                ):
                    assert name.count(".") == 1, f"{path} imports the inside of a family: {name}"


@pytest.mark.parametrize("top", ["jaxattn", "jaxattn_train", "benchmarks"])
def test_no_import_circles(top):
    """No file imports itself through others, deferred imports included; a package's face is not one of its files."""
    graph = {
        name: {other for other in _imports(path) if other in MODULES and not _inside(name, other)}
        for name, path in MODULES.items()
        if _inside(name, top) and path.name != "__init__.py"
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name in done or name not in graph:
            return
        for other in sorted(graph[name]):
            visit(other, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_no_crowded_folder():
    """At most 15 modules in a folder; weights and components are tables with one file a row."""
    for top in ("jaxattn", "jaxattn_train", "benchmarks"):
        for folder in {p.parent for p in _sources(top)}:
            if folder.name not in ("weights", "components"):
                modules = [p for p in folder.glob("*.py") if p.name not in ("__init__.py", "__main__.py")]
                assert len(modules) <= 15, folder


def test_only_mechanisms_know_flax():
    for path in _sources("jaxattn"):
        if not path.relative_to(ROOT).as_posix().startswith(WITH_FLAX) and not str(path).endswith(FLAX_FILES):
            assert not any(_inside(name, "flax") for name in _imports(path)), path


def _loaded(statement: str, names: set[str]) -> list[str]:
    code = f"import sys; {statement}; print(*sorted({names!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return result.stdout.split()


HEAVY = {"grain", "tyro", "tensorboardX", "matplotlib", "beartype", "torch"}


def test_the_kernels_load_without_flax():
    names = HEAVY | {"flax", "optax", "orbax", "chex", "scipy"}
    assert (
        _loaded("import jaxattn; jaxattn.dot_product_attention, jaxattn.Tree, jaxattn.FeatureMap", names)
        == []
    )


def test_import_needs_no_training_dependency():
    statement = "import jaxattn; jaxattn.nn, jaxattn.models, jaxattn.encoders, jaxattn.testing"
    assert _loaded(statement, HEAVY) == []
