"""Random features among the measured cases: how they are spelled, and how they are called."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from benchmarks.suites.cases import Case

# The implementations that take features: ours, and performer-pytorch's FastAttention.
OURS, PEER = "linear", "performer"
GATES = {"running": "running", "none": None}
_SPELLING = re.compile(
    r"features(:(?P<component>\w+)-(?P<weights>\w+)(:(?P<num>\d+))?)?(?P<gated>\+gate(=(?P<gate>\w+))?)?"
)


class Features(NamedTuple):
    """`features:COMPONENT-WEIGHTS:M` or the same with `+gate=running|none`; `gate` is "" without one."""

    component: str
    weights: str
    num_features: int
    gate: str

    def __str__(self) -> str:
        gate = f"+gate={self.gate}" if self.gate else ""
        return f"features:{self.component}-{self.weights}:{self.num_features}{gate}"


def spells_features(mechanism: str) -> bool:
    """Whether this is a spelling of random features, well formed or not."""
    return re.split(r"[:+]", mechanism)[0] == "features"


def parse(mechanism: str) -> Features:
    """What the spelling says.

    Raises:
        ValueError: it is malformed, or names no component, no weights or no gate; the message lists what there is.
    """
    from jaxattn.random_features import COMPONENTS, WEIGHTS

    found = _SPELLING.fullmatch(mechanism)
    features = found and Features(
        component=found["component"] or "oprf",
        weights=found["weights"] or "orf",
        num_features=int(found["num"] or 128),
        gate=(found["gate"] or "running") if found["gated"] else "",
    )
    if not features or not features.num_features:
        raise ValueError(
            f"mechanism {mechanism!r} is malformed; accepted: features:COMPONENT-WEIGHTS:M, as in "
            f"'features:oprf-orf:128', with +gate or +gate={'|'.join(GATES)}."
        )
    for name, known in (("component", COMPONENTS), ("weights", WEIGHTS), ("gate", ("", *GATES))):
        value = getattr(features, name)
        if value not in known:
            accepted = ", ".join(filter(None, known))
            raise ValueError(f"mechanism {mechanism!r}: unknown {name} {value!r}; accepted: {accepted}.")
    return features


def peer_mechanism(mechanism: str) -> str:
    """What performer-pytorch computes: the positive features of FAVOR+ on orthogonal rows, as many as `mechanism`."""
    return f"features:posrf-orf:{parse(mechanism).num_features}"


def peer_name(num_features: int) -> str:
    """The name of the peer among the cases, as in `ratios`."""
    return f"features:posrf-orf:{num_features}/{PEER}"


def attention(case: "Case", calibration: tuple[Any, ...]) -> Callable[..., Any]:
    """Our function of the case's inputs; the feature map is fitted to `calibration` and then a constant.

    Raises:
        NotImplementedError: the case's implementation does not take features.
    """
    import jax

    import jaxattn

    if case.implementation != OURS:
        raise NotImplementedError(f"features run on implementation {OURS!r}, not on {case.implementation!r}.")
    features = parse(case.mechanism)

    @jax.jit
    def fitted(query: Any, key: Any) -> Any:
        feature_map = jaxattn.FeatureMap.create(
            jax.random.key(1), case.head_dim, features.num_features, features.component, features.weights
        )
        return feature_map.calibrate(query, key)

    feature_map = fitted(*calibration[:2])

    def gated(query: Any, key: Any, value: Any, *own: Any) -> Any:
        key_bias = None
        if own:
            energy, alpha, tau = own
            key_bias = jaxattn.energy_gate(energy, alpha=alpha, tau=tau, normalization=GATES[features.gate])
        return jaxattn.random_feature_attention(
            query, key, value, feature_map, key_bias=key_bias, is_causal=case.causal
        )

    return gated
