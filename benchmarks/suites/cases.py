"""What is measured: one case is one attention call of one mechanism on one implementation at one size."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.suites import feature_cases, tree_cases

PASSES = ("forward", "backward", "both")
# Implementations that are not this project's, to compare with in the same run: plain softmax attention, ...
SOFTMAX_PEERS = ("jax", "jax-cudnn", "torch")
# ... random features, and attention over trees.
PEERS = (*SOFTMAX_PEERS, feature_cases.PEER, tree_cases.PEER)
# What the ratios of a row are taken to, besides softmax.
YARDSTICKS = (*PEERS, tree_cases.UNIFORM)


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement. `mechanism` is spelled as everywhere else: softmax, lags:8, softmax+gate=running, ..."""

    mechanism: str
    implementation: str
    direction: str
    length: int
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    causal: bool

    @property
    def group(self) -> tuple[int, int, str]:
        """Cases of one group do the same work and are timed in turns."""
        return self.head_dim, self.length, self.direction

    @property
    def name(self) -> str:
        """What tells the cases of a group apart."""
        return f"{self.mechanism}/{self.implementation}"


def spell_mechanism(text: str) -> str:
    """The project's spelling of a mechanism; `ega-NAME` is short for `softmax+gate=NAME`.

    Raises:
        ValueError: an unknown mechanism.
    """
    if text.startswith("ega-"):
        text = f"softmax+gate={text.removeprefix('ega-')}"
    if feature_cases.spells_features(text):
        return str(feature_cases.parse(text))
    if tree_cases.spells_tree(text):
        tree_cases.branching(text)
    from jaxattn.nn import parse_mechanism

    parse_mechanism(text, allow_leak=True)
    return f"{text}=running" if text.endswith("+gate") else text


def all_cases(
    *,
    mechanisms: Iterable[str],
    implementations: Iterable[str],
    passes: Iterable[str],
    lengths: Iterable[int],
    head_dims: Iterable[int],
    batch: int,
    heads: int,
    kv_heads: int,
    dtype: str,
    causal: bool,
) -> list[Case]:
    """Every combination that exists; peers take part with the one mechanism that they have."""
    mechanisms, implementations, passes = list(mechanisms), list(implementations), list(passes)
    cases = [
        Case(mechanism, implementation, direction, length, batch, heads, kv_heads, head_dim, dtype, causal)
        for head_dim in head_dims
        for length in lengths
        for direction in passes
        for implementation in implementations
        for mechanism in mechanisms_of(implementation, mechanisms)
    ]
    if not cases:
        raise ValueError(f"none of {implementations} implements any of {mechanisms}.")
    return cases


def mechanisms_of(implementation: str, mechanisms: Iterable[str]) -> list[str]:
    """The mechanisms that an implementation is measured with."""
    if implementation in SOFTMAX_PEERS:
        return ["softmax"]
    features = [m for m in mechanisms if feature_cases.spells_features(m)]
    if implementation == feature_cases.PEER:
        return list(dict.fromkeys(feature_cases.peer_mechanism(m) for m in features))
    if implementation == feature_cases.OURS:
        return features
    trees = [m for m in mechanisms if tree_cases.spells_tree(m)]
    if implementation == tree_cases.PEER:
        return list(dict.fromkeys(tree_cases.peer_mechanism(m) for m in trees))
    if implementation in tree_cases.OURS:
        return trees
    return [m for m in mechanisms if m not in features and m not in trees]


def inputs(case: Case) -> tuple[Any, ...]:
    """Query, key, value, and the mechanism's own arrays; all of them get gradients."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 4)
    dtype = jnp.dtype(case.dtype)

    def normal(i: int, *shape: int) -> jax.Array:
        return jax.random.normal(keys[i], shape, jnp.float32).astype(dtype)

    query = normal(0, case.batch, case.length, case.heads, case.head_dim)
    key = normal(1, case.batch, case.length, case.kv_heads, case.head_dim)
    value = normal(2, case.batch, case.length, case.kv_heads, case.head_dim)
    base, _, gate = case.mechanism.partition("+")
    own: list[jax.Array] = []
    if base.startswith("lags"):
        lags = int(base.partition(":")[2] or 8)
        own.append(jnp.zeros((case.heads, 2 * lags + 1)))
    if gate:
        own += [
            normal(3, case.batch, case.length, case.heads),
            jnp.full((case.heads,), 2.0),
            jnp.full((case.heads,), 0.1),
        ]
    return (query, key, value, *own)


def calibration_case(case: Case) -> Case:
    """The case whose queries and keys the features are fitted to: so few tokens that it costs nothing."""
    return dataclasses.replace(case, length=min(case.length, 256))


def attention(case: Case) -> Callable[..., Any]:
    """The function of `inputs(case)` to be measured.

    Raises:
        NotImplementedError: a mechanism that this harness cannot call.
    """
    import jax

    import jaxattn

    if case.implementation in ("jax", "jax-cudnn"):
        implementation: Any = "xla" if case.implementation == "jax" else "cudnn"
        return lambda query, key, value: jax.nn.dot_product_attention(
            query, key, value, is_causal=case.causal, implementation=implementation
        )
    if feature_cases.spells_features(case.mechanism):
        return feature_cases.attention(case, inputs(calibration_case(case)))
    if tree_cases.spells_tree(case.mechanism):
        return tree_cases.attention(case)
    common: dict[str, Any] = {"is_causal": case.causal, "implementation": case.implementation}
    base, _, gate = case.mechanism.partition("+")
    normalization = {"none": None}.get(gate.partition("=")[2], gate.partition("=")[2])
    if base == "softmax" and not gate:
        return lambda query, key, value: jaxattn.dot_product_attention(query, key, value, **common)
    if base == "softmax":
        return lambda query, key, value, energy, alpha, tau: jaxattn.energy_gated_attention(
            query,
            key,
            value,
            energy,
            alpha=alpha,
            tau=tau,
            normalization=normalization,
            allow_leak=normalization == "sequence",
            **common,
        )
    if base.startswith("lags"):

        def cross_correlation(query: Any, key: Any, value: Any, lag_logits: Any, *own: Any) -> Any:
            key_bias = None
            if own:
                energy, alpha, tau = own
                key_bias = jaxattn.energy_gate(energy, alpha=alpha, tau=tau, normalization=normalization)
            return jaxattn.cross_correlation_attention(
                query, key, value, lag_logits, key_bias=key_bias, **common
            )

        return cross_correlation
    raise NotImplementedError(f"the benchmark cannot call mechanism {case.mechanism!r} yet.")
