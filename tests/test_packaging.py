"""What an installed wheel holds: the library and the application, with all that they import."""

import ast
import importlib.metadata
import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = CONFIG["project"]


def _required(*extras):
    """Names of the distributions that the extras bring along."""
    names, found = [*PROJECT["dependencies"]], set()
    for extra in extras:
        names += PROJECT["optional-dependencies"][extra]
    for name, more in (re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", line).groups() for line in names):
        found |= _required(*more.split(",")) if name == PROJECT["name"] else {name.lower()}
    return found


def _imported(folder):
    """Names of the packages that the files of a folder import, wherever they do."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module.partition(".")[0]


def test_the_extra_train_brings_what_the_application_imports():
    required, distributions = _required("train"), importlib.metadata.packages_distributions()
    names = set(_imported("jaxattn_train")) - sys.stdlib_module_names - {"jaxattn", "jaxattn_train"}
    assert not [x for x in names if not {one.lower() for one in distributions[x]} & required]


def test_the_wheel_holds_the_application_and_its_command():
    packages = CONFIG["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["jaxattn", "jaxattn_train"], "no name that others use as well, such as train"
    (script,) = PROJECT["scripts"].values()
    assert callable(importlib.metadata.EntryPoint("jaxattn-train", script, "console_scripts").load())
