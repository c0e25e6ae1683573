"""The registry of mechanisms and gates by their names in configs and on the command line."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxattn.core.mechanism import Gate, Mechanism


@dataclasses.dataclass(frozen=True)
class MechanismRow:
    """One mechanism: how it is spelled, what `--help` says of it, and its implementations for benchmarks.

    A spelling is `name:option:option`; `name` alone must be one too.

    Attributes:
        name: the first word.
        syntax: the whole spelling, with what may be left out in brackets: "lags[:LAGS]".
        help: one line on what it is.
        mechanism: the class of what `parse` returns.
        parse: the options, as strings, to the mechanism. Whatever is wrong with them raises ValueError.
        spell: the mechanism to its options, such that `parse(*spell(mechanism)) == mechanism`.
        implementations: what `benchmarks` compares: names of the backends, for mechanisms with a field
            `implementation`, or one name for the only kernel there is.
    """

    name: str
    syntax: str
    help: str
    mechanism: type[Mechanism]
    parse: Callable[..., Mechanism]
    spell: Callable[[Any], tuple[str, ...]]
    implementations: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class GateRow:
    """One gate, a mechanism around another: `+name` or `+name=option` behind the spelling of the other.

    Attributes:
        name: the word after the plus sign.
        syntax: the whole spelling: "+gate[=running|none]".
        help: one line on what it is.
        mechanism: the class of what `wrap` returns.
        wrap: (inner, option if there is one, allow_leak=...) to the mechanism. `allow_leak` says whether the caller
            permits a gate that reads later tokens in a causal model.
        spell: the mechanism to its option, or to an empty tuple.
    """

    name: str
    syntax: str
    help: str
    mechanism: type[Gate]
    wrap: Callable[..., Mechanism]
    spell: Callable[[Any], tuple[str, ...]]


MECHANISMS: dict[str, MechanismRow] = {}
GATES: dict[str, GateRow] = {}


def register_mechanism(row: MechanismRow) -> None:
    """Adds a mechanism to what `parse_mechanism`, all commands and the benchmarks accept.

    Args:
        row: its name, spelling and class.

    Raises:
        ValueError: the name is taken or cannot be spelled.

    Examples:
        >>> from jaxattn.nn import MechanismRow, Softmax, parse_mechanism, register_mechanism
        >>> class Exact(Softmax):
        ...     pass
        >>> register_mechanism(MechanismRow("exact", "exact", "softmax", Exact, Exact, lambda mechanism: ()))
        >>> parse_mechanism("exact")
        Exact(implementation=None, local_window_size=None, logits_soft_cap=None, sinks=False)
        >>> _ = MECHANISMS.pop("exact")
    """
    _register(MECHANISMS, row)


def register_gate(row: GateRow) -> None:
    """Adds a gate to what `parse_mechanism` and all commands accept.

    Args:
        row: its name, spelling and class.

    Raises:
        ValueError: the name is taken or cannot be spelled.

    Examples:
        >>> from jaxattn.nn import GATES, register_gate
        >>> register_gate(GATES["gate"])  # the same class again is no error: a notebook's cell may run twice
        >>> GATES["gate"].syntax
        '+gate[=running|prefix|none|sequence]'
    """
    _register(GATES, row)


def _register(table: dict[str, Any], row: Any) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", row.name):
        raise ValueError(f"name must be lower-case letters, digits, _ and -; got {row.name!r}.")
    known = table.get(row.name)
    # A notebook's cell may run twice.
    if known is not None and known.mechanism.__qualname__ != row.mechanism.__qualname__:
        raise ValueError(f"name {row.name!r} is registered already, for {known.mechanism.__qualname__}.")
    table[row.name] = row


def accepted_spellings() -> str:
    """All spellings on one line, for error messages."""
    mechanisms, gates = (", ".join(row.syntax for row in _rows(table)) for table in (MECHANISMS, GATES))
    return f"{mechanisms}; each with any of {gates}"


def mechanism_help() -> str:
    """Every spelling and what it is, for --help.

    Returns:
        Two lines for each mechanism and gate.

    Examples:
        >>> from jaxattn.nn import mechanism_help
        >>> print(mechanism_help())
          features...
          softmax
              ...
    """
    rows = [*_rows(MECHANISMS), *_rows(GATES)]
    return "\n".join(f"  {row.syntax}\n      {row.help}" for row in rows)


def _rows(table: Mapping[str, Any]) -> list[Any]:
    """By name, whatever was imported first."""
    return [table[name] for name in sorted(table)]


def parse_mechanism(text: str, *, allow_leak: bool = False) -> Mechanism:
    """The mechanism that `text` spells, such as "softmax", "lags:8", "features:oprf-orf:128", "softmax+gate=running".

    Args:
        text: a mechanism's name, its options after colons, and any number of gates, each with its option after an
            equals sign. `jaxattn.nn.mechanism_help()` lists them.
        allow_leak: permits gates that read later tokens in a causal model, such as the published energy gate,
            `+gate=sequence`.

    Returns:
        The frozen dataclass that describes the mechanism.

    Raises:
        ValueError: an unknown name or malformed options; the message lists what is accepted.

    Examples:
        >>> from jaxattn.nn import parse_mechanism
        >>> parse_mechanism("lags:4+gate=none")
        EnergyGated(inner=CrossCorrelation(lags=4, implementation=None), normalization=None, allow_leak=False)
    """
    base, *additions = text.strip().split("+")
    name, *options = base.split(":")
    row = _find(MECHANISMS, name, text)
    mechanism = _call(row, text, row.parse, *options)
    for addition in additions:
        word, *option = addition.split("=", 1)
        gate = _find(GATES, word, text, prefix="+")
        mechanism = _call(gate, text, gate.wrap, mechanism, *option, allow_leak=allow_leak)
    return mechanism


def _find(table: Mapping[str, Any], name: str, text: str, prefix: str = "") -> Any:
    if name not in table:
        raise ValueError(
            f"attention {text!r}: {prefix + name!r} is not known; accepted: {accepted_spellings()}."
        )
    return table[name]


def _call(row: Any, text: str, function: Callable[..., Mechanism], *args: Any, **keywords: Any) -> Mechanism:
    try:
        inspect.signature(function).bind(*args, **keywords)
    except TypeError:
        options = [arg for arg in args if isinstance(arg, str)]
        raise ValueError(
            f"attention {text!r}: {row.name} does not take the options {', '.join(map(repr, options))}; "
            f"accepted: {row.syntax}."
        ) from None
    try:
        return function(*args, **keywords)
    except ValueError as error:
        raise ValueError(f"attention {text!r}: {str(error).rstrip('.')}; accepted: {row.syntax}.") from error


def spell_mechanism(mechanism: Mechanism) -> str:
    """The spelling of a mechanism with all options written out: the inverse of `parse_mechanism`.

    Args:
        mechanism: of a registered class.

    Returns:
        A spelling that `parse_mechanism` reads.

    Raises:
        ValueError: no spelling says all of its options.

    Examples:
        >>> from jaxattn.nn import EnergyGated, RandomFeatures, parse_mechanism, spell_mechanism
        >>> spell_mechanism(EnergyGated(inner=RandomFeatures(num_features=64)))
        'features:oprf-orf:64+gate=running'
        >>> spell_mechanism(parse_mechanism("lags"))
        'lags:8'
    """
    base, gates, leaks = mechanism, "", False
    rows = {gate.mechanism: gate for gate in GATES.values()}
    while isinstance(base, Gate) and type(base) in rows:
        gate = rows[type(base)]
        gates = f"+{'='.join((gate.name, *gate.spell(base)))}{gates}"
        leaks |= getattr(base, "allow_leak", False)
        base = base.inner
    row = next((row for row in MECHANISMS.values() if row.mechanism is type(base)), None)
    if row is None:
        raise ValueError(f"mechanism must be of a registered class; got {base!r}.")
    text = ":".join((row.name, *row.spell(base))) + gates
    if parse_mechanism(text, allow_leak=leaks) != mechanism:
        raise ValueError(f"mechanism {mechanism!r} has options that no spelling says; nearest is {text!r}.")
    return text


def whole_number(name: str, text: str) -> int:
    """An option that is a whole number.

    Args:
        name: of the option, for the message.
        text: the option as spelled.

    Returns:
        The number.

    Raises:
        ValueError: it is none; the message has `name`.

    Examples:
        >>> from jaxattn.nn import whole_number
        >>> whole_number("lags", "8")
        8
        >>> whole_number("lags", "8.5")
        Traceback (most recent call last):
        ...
        ValueError: lags must be a whole number; got '8.5'
    """
    if not re.fullmatch(r"-?[0-9]+", text):
        raise ValueError(f"{name} must be a whole number; got {text!r}")
    return int(text)
