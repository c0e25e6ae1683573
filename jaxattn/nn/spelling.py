"""One spelling of every mechanism, for configs and the command line."""

from collections.abc import Callable

from jaxattn.core.mechanism import Mechanism
from jaxattn.energy.mechanism import EnergyGated
from jaxattn.lags.mechanism import CrossCorrelation
from jaxattn.random_features.mechanism import RandomFeatures
from jaxattn.softmax.mechanism import Softmax
from jaxattn.tree.mechanism import Hierarchical


def _features(pair: str = "oprf-orf", num_features: str = "128", redraw: str | None = None) -> RandomFeatures:
    component, dash, weights = pair.partition("-")
    if not dash:
        raise ValueError(f"features need a pair COMPONENT-WEIGHTS, such as oprf-orf; got {pair!r}")
    every = None
    if redraw is not None:
        word, equals, steps = redraw.partition("=")
        if word != "redraw" or not equals:
            raise ValueError(f"the third option of features is redraw=STEPS; got {redraw!r}")
        every = int(steps)
    return RandomFeatures(component, weights, int(num_features), redraw_every=every)


def _tree(sizes: str | None = None, *options: str) -> Hierarchical:
    include_self, sibling_bias = True, None
    for option in options:
        word, equals, kind = option.partition("=")
        if option == "noself":
            include_self = False
        elif word == "bias" and equals:
            sibling_bias = kind
        else:
            raise ValueError(
                f"options of tree are noself and bias=learned|sinusoidal|fourier; got {option!r}"
            )
    branching = tuple(int(size) for size in sizes.split("x")) if sizes and sizes != "given" else None
    return Hierarchical(branching, include_self=include_self, sibling_bias=sibling_bias)


# A new mechanism adds one line: its first word, and what makes it from the words after the colons.
SPELLINGS: dict[str, Callable[..., Mechanism]] = {
    "softmax": lambda: Softmax(),
    "lags": lambda lags="8": CrossCorrelation(lags=int(lags)),
    "features": _features,
    "tree": _tree,
}
GATES = {"running": "running", "prefix": "prefix", "none": None, "sequence": "sequence"}
ACCEPTED = (
    f"accepted: {', '.join(SPELLINGS)} (as in 'softmax', 'lags:8', 'features:oprf-orf:128' or 'tree:64x16'), each "
    f"with +gate or +gate={'|'.join(GATES)}"
)


def parse_mechanism(text: str, *, allow_leak: bool = False) -> Mechanism:
    """The mechanism that `text` spells, such as "softmax", "lags:8", "features:oprf-orf:128", "softmax+gate=running".

    Args:
        text: a mechanism's name, its numbers after colons, and optionally `+gate` (running statistics) or
            `+gate=running|prefix|none|sequence`.
        allow_leak: passed to the gate; "sequence" in a causal model needs it.

    Returns:
        The frozen dataclass that describes the mechanism.

    Raises:
        ValueError: an unknown name or a malformed number, with the accepted spellings.

    Examples:
        >>> from jaxattn.nn import parse_mechanism
        >>> parse_mechanism("lags:4+gate=none")
        EnergyGated(inner=CrossCorrelation(lags=4, implementation=None), normalization=None, allow_leak=False)
    """
    base, *additions = text.strip().split("+")
    name, *numbers = base.split(":")
    if name not in SPELLINGS:
        raise ValueError(f"attention {text!r} is not known; {ACCEPTED}.")
    try:
        mechanism = SPELLINGS[name](*numbers)
    except (TypeError, ValueError) as error:
        raise ValueError(f"attention {text!r} is malformed ({error}); {ACCEPTED}.") from error
    for addition in additions:
        word, _, normalization = addition.partition("=")
        if word != "gate" or (normalization or "running") not in GATES:
            raise ValueError(f"attention {text!r}: {'+' + addition!r} is not known; {ACCEPTED}.")
        mechanism = EnergyGated(
            inner=mechanism, normalization=GATES[normalization or "running"], allow_leak=allow_leak
        )
    return mechanism
