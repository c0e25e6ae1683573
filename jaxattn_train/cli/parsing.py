"""Parsing of command lines with tyro: presets, flags passed on to other commands, the command that resumes a run."""

import dataclasses
import itertools
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxattn_train.cli.options import Options
from jaxattn_train.errors import UserError

Config = TypeVar("Config", bound=Options)


def parse(kind: type[Config], argv: Sequence[str], *, command: str, default: Config | None = None) -> Config:
    """Parses a command line into a dataclass, and checks it.

    Args:
        kind: the dataclass; nested ones become groups of flags.
        argv: the words after the subcommand.
        command: the subcommand, for --help.
        default: gives the defaults; None for those of the class.

    Raises:
        UserError: a value that makes no sense. Unknown flags and values of wrong types exit with code 2.
    """
    import tyro

    # Opened as files, these would be folders on the machine's own disk, and a run would be lost with the machine.
    # A prompt is text.
    for flag, word in itertools.pairwise(["", *argv]):
        found = re.search(r"^(?:--(?!prompt=)[\w-]+=)?([a-z][a-z0-9+.-]*://.*)", word)
        if found and flag != "--prompt":
            raise UserError(f"{found[1]} is not a local path; download it, or mount it and give its folder.")
    options: dict[str, Any] = {"prog": f"{program()} {command}", "config": (tyro.conf.OmitArgPrefixes,)}
    if default is not None:
        options["default"] = default
    if {"-h", "--help"} & set(argv) and kind.brief:
        print(f"The options used most; {program()} {command} --help-all lists all of them.\n")
        tyro.cli(kind, args=["--help"], registry=_rules(kind.brief), **options)
    # tyro takes every word that starts with -- for a flag, also a quoted value such as "--kernels 2 3".
    words = [f" {word}" if word.startswith("--") and " " in word.partition("=")[0] else word for word in argv]
    words = ["--help" if word == "--help-all" else word for word in words]
    config = tyro.cli(kind, args=words, registry=_rules(()), **options)
    config.check()
    return config


def _rules(shown: Collection[str]) -> Any:
    """How tyro reads dataclasses: docstrings as paragraphs, and of the fields only those in `shown`, if any are."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    suppress: Any = tyro.conf.Suppress
    asking: list[Any] = []

    @registry.struct_rule
    def keep(info: Any) -> Any:
        if info.type in asking:  # by the line that asks for what tyro would do
            return None
        asking.append(info.type)
        found = registry.get_struct_spec(info)
        asking.pop()
        if not isinstance(found, tyro.constructors.StructConstructorSpec):
            return None

        def kept(field: Any) -> Any:
            text = field.helptext() if callable(field.helptext) else field.helptext
            hidden = shown and field.name not in shown and not dataclasses.is_dataclass(field.default)
            kind = suppress[field.type] if hidden else field.type
            return dataclasses.replace(field, type=kind, helptext=text and " ".join(text.split()))

        return dataclasses.replace(found, fields=tuple(map(kept, found.fields)))

    return registry


def parse_with_presets(argv: Sequence[str], presets: Mapping[str, Config], *, command: str) -> Config:
    """Parses a command line whose --preset names the defaults; other flags replace single values.

    Args:
        argv: the words after the subcommand.
        presets: dataclasses by name; the first is the default.
        command: the subcommand, for --help.

    Returns:
        The checked configuration.

    Raises:
        UserError: an unknown preset, or a value that makes no sense.
    """
    preset = presets[named_in(argv, "--preset", presets)]
    try:
        return parse(type(preset), argv, command=command, default=preset)
    except SystemExit as stop:
        if stop.code == 0 and "--help-all" in argv:
            from jaxattn.nn import mechanism_help  # JAX takes seconds to import

            print(f"Attention mechanisms, followed by any gates:\n{mechanism_help()}")
        raise


def named_in(argv: Sequence[str], flag: str, choices: Iterable[str]) -> str:
    """The value of `flag` in `argv`, or the first of `choices`.

    Such a flag decides the defaults that --help shows, so it is read before the others.

    Raises:
        UserError: none of `choices`.

    Examples:
        >>> named_in(["--task", "text", "--steps", "3"], "--task", ["listops", "text"])
        'text'
    """
    names = list(choices)
    name = names[0]
    for word, following in itertools.pairwise([*argv, ""]):
        if word == flag:
            name = following
        elif word.startswith(f"{flag}="):
            name = word.removeprefix(f"{flag}=")
    if name not in names:
        raise UserError(f"{flag} must be one of {', '.join(names)}; got {name!r}.")
    return name


def slug(text: str) -> str:
    """The spelling of a mechanism, or any flags, as a folder name.

    Examples:
        >>> slug("features:oprf-orf:128+gate=running"), slug("--kernels 2 3")
        ('features-oprf-orf-128+gate=running', 'kernels-2-3')
    """
    return re.sub(r"[^\w.+=-]+", "-", text).strip("-")


def split_rest(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before and after `--`: a command's own flags, and those it passes on.

    Examples:
        >>> split_rest(["--seeds", "2", "--", "--lr", "1"])
        (['--seeds', '2'], ['--lr', '1'])
    """
    words = list(argv)
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]


def program() -> str:
    """How this program was started, for commands that users copy: `python -m train` in a checkout.

    Examples:
        >>> program()
        'jaxattn-train'
    """
    started = Path(sys.argv[0])
    own = started.name == "__main__.py" and started.parent.name in ("train", "jaxattn_train")
    return f"python -m {started.parent.name}" if own else "jaxattn-train"


def resume_command(command: str, argv: Sequence[str]) -> str:
    """The command line that resumes a run which was started with these words.

    Examples:
        >>> resume_command("charlm", ["--overwrite", "--out", "my run"])
        "jaxattn-train charlm --out 'my run'"
    """
    words = shlex.join([command, *(word for word in argv if word != "--overwrite")])
    return f"{program()} {words}"
