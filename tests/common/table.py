"""One row a kernel. `test_kernels.py` runs every check over every row.

A row says how to call the kernel, its naive reference in `naive.py`, which arrays of its own it takes, and how it
decodes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxattn
from tests.common import naive


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Batch, length, query heads, key/value heads (grouped queries unless said otherwise), width of a head."""

    batch: int = 2
    length: int = 10
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 4


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        name: of the row.
        call: (query, key, value, key_bias, *own, mask, segment_ids, is_causal) -> output.
        naive: the same in `naive.py`.
        own: the mechanism's own arrays, by name from `OWN`.
        init: (sizes, dtype) -> decoding state.
        step: (state, query, key, value, key_bias, *own, query_seq_lengths) -> (state, output).
        only_causal: whether the mechanism exists with a causal mask only.
        long: a length at which the kernel works in several blocks, if it does.
        sharp: whether scores of any size come out right; else only finite.
        segments: whether there are segment ids.
        shifts: whether tokens behind left padding give what they give without it; a tree is cut by position.
        any_length: whether it can be exported with a symbol for the length.
    """

    name: str
    call: Callable[..., Any]
    naive: Callable[..., Any]
    own: tuple[str, ...]
    init: Callable[[Sizes, Any], Any]
    step: Callable[..., Any]
    only_causal: bool = False
    long: int | None = None
    sharp: bool = True
    segments: bool = True
    shifts: bool = True
    any_length: bool = True


# The arrays a mechanism may take besides query, key, value and key_bias: (shape, sequence axis).
OWN: dict[str, tuple[Callable[[Sizes], tuple[int, ...]], int | None]] = {
    "energy": (lambda s: (s.batch, s.length, s.heads), 1),
    "alpha": (lambda s: (s.heads,), None),
    "tau": (lambda s: (s.heads,), None),
    "log_decay": (lambda s: (s.batch, s.length, s.heads), 1),
    "lag_logits": (lambda s: (s.heads, 5), None),
}


def _softmax(implementation: str) -> Callable[..., Any]:
    def call(query, key, value, key_bias, *, mask, segment_ids, is_causal):
        return jaxattn.dot_product_attention(
            query,
            key,
            value,
            key_bias=jaxattn.padding_key_bias(mask, key_bias),
            segment_ids=segment_ids,
            is_causal=is_causal,
            implementation=implementation,
        )

    return call


def _softmax_init(sizes: Sizes, dtype: Any) -> Any:
    return jaxattn.dot_product_attention_init_state(
        sizes.batch, sizes.length, sizes.kv_heads, sizes.head_dim, num_heads=sizes.heads, dtype=dtype
    )


def _softmax_step(state, query, key, value, key_bias, **options):
    return jaxattn.dot_product_attention_step(state, query, key, value, key_bias=key_bias, **options)


def _gated(normalization: str | None, allow_leak: bool = False) -> Callable[..., Any]:
    def call(query, key, value, key_bias, energy, alpha, tau, *, mask, segment_ids, is_causal):
        return jaxattn.energy_gated_attention(
            query,
            key,
            value,
            energy,
            alpha=alpha,
            tau=tau,
            normalization=normalization,
            token_mask=mask,
            key_bias=key_bias,
            segment_ids=segment_ids,
            is_causal=is_causal,
            allow_leak=allow_leak,
        )

    return call


def _gated_init(sizes: Sizes, dtype: Any) -> Any:
    return jaxattn.energy_gated_attention_init_state(
        sizes.batch, sizes.length, sizes.kv_heads, sizes.head_dim, num_heads=sizes.heads, dtype=dtype
    )


def _gated_step(normalization: str | None) -> Callable[..., Any]:
    def step(state, query, key, value, key_bias, energy, alpha, tau, **options):
        return jaxattn.energy_gated_attention_step(
            state,
            query,
            key,
            value,
            energy,
            alpha=alpha,
            tau=tau,
            normalization=normalization,
            key_bias=key_bias,
            **options,
        )

    return step


def _lags(query, key, value, key_bias, lag_logits, *, mask, segment_ids, is_causal):
    return jaxattn.cross_correlation_attention(
        query,
        key,
        value,
        lag_logits,
        token_mask=mask,
        key_bias=key_bias,
        segment_ids=segment_ids,
        is_causal=is_causal,
    )


def _lags_init(sizes: Sizes, dtype: Any) -> Any:
    return jaxattn.cross_correlation_attention_init_state(
        sizes.batch,
        sizes.length,
        sizes.kv_heads,
        sizes.head_dim,
        jnp.zeros((sizes.heads, 5)),
        num_heads=sizes.heads,
        dtype=dtype,
    )


def _lags_step(state, query, key, value, key_bias, lag_logits, **options):
    return jaxattn.cross_correlation_attention_step(
        state, query, key, value, lag_logits, key_bias=key_bias, **options
    )


def _gated_lags(query, key, value, key_bias, lag_logits, energy, alpha, tau, *, mask, segment_ids, is_causal):
    gate = jaxattn.energy_gate(energy, alpha=alpha, tau=tau, mask=mask, segment_ids=segment_ids)
    return _lags(
        query,
        key,
        value,
        key_bias + gate,
        lag_logits,
        mask=mask,
        segment_ids=segment_ids,
        is_causal=is_causal,
    )


def _gated_lags_init(sizes: Sizes, dtype: Any) -> Any:
    return _lags_init(sizes, dtype), jaxattn.energy_gate_init_state(sizes.batch, sizes.heads)


def _gated_lags_step(
    state, query, key, value, key_bias, lag_logits, energy, alpha, tau, query_seq_lengths=None
):
    inner, statistics = state
    mask = None if query_seq_lengths is None else jnp.arange(query.shape[1]) < query_seq_lengths[:, None]
    statistics, gate = jaxattn.energy_gate_step(statistics, energy, alpha=alpha, tau=tau, mask=mask)
    inner, out = _lags_step(
        inner, query, key, value, key_bias + gate, lag_logits, query_seq_lengths=query_seq_lengths
    )
    return (inner, statistics), out


def _positive(x):
    return 0.1 + abs(x)


def _linear(query, key, value, key_bias, *, mask, segment_ids, is_causal):
    return jaxattn.linear_attention(
        _positive(query),
        _positive(key),
        value,
        key_bias=jaxattn.padding_key_bias(mask, key_bias),
        segment_ids=segment_ids,
        is_causal=is_causal,
    )


def _linear_init(sizes: Sizes, dtype: Any) -> Any:
    return jaxattn.linear_attention_init_state(
        sizes.batch, sizes.kv_heads, sizes.head_dim, num_heads=sizes.heads
    )


def _linear_step(state, query, key, value, key_bias, **options):
    return jaxattn.linear_attention_step(
        state, _positive(query), _positive(key), value, key_bias=key_bias, **options
    )


def _decayed(query, key, value, key_bias, log_decay, *, mask, segment_ids, is_causal):
    log_decay = -abs(log_decay)
    return jaxattn.linear_attention(
        query,
        key,
        value,
        key_bias=jaxattn.padding_key_bias(mask, key_bias),
        log_decay=log_decay if mask is None else jnp.where(mask[..., None], log_decay, 0),
        normalize=False,
        segment_ids=segment_ids,
        is_causal=is_causal,
    )


def _decayed_step(state, query, key, value, key_bias, log_decay, **options):
    return jaxattn.linear_attention_step(
        state, query, key, value, key_bias=key_bias, log_decay=-abs(log_decay), normalize=False, **options
    )


def _naive_decayed(query, key, value, key_bias, log_decay, **keywords):
    return naive.decayed(query, key, value, key_bias, -abs(log_decay), **keywords)


def _tree_over(length: int) -> jaxattn.Tree:
    return jaxattn.Tree.uniform(length, (3, 2))


def _tree(query, key, value, key_bias, *, mask, segment_ids, is_causal):
    assert segment_ids is None
    return jaxattn.hierarchical_attention(
        query,
        key,
        value,
        _tree_over(query.shape[-3]),
        key_bias=jaxattn.padding_key_bias(mask, key_bias),
        is_causal=is_causal,
    )


def _tree_init(sizes: Sizes, dtype: Any) -> Any:
    return jaxattn.hierarchical_attention_init_state(
        sizes.batch, sizes.kv_heads, sizes.head_dim, _tree_over(sizes.length), num_heads=sizes.heads
    )


def _tree_step(state, query, key, value, key_bias, **options):
    return jaxattn.hierarchical_attention_step(
        state, query, key, value, _tree_over(Sizes.length), key_bias=key_bias, **options
    )


FEATURE_MAP = jaxattn.FeatureMap.create(jax.random.key(3), Sizes.head_dim, 14)


def _features(query, key, value, key_bias, *, mask, segment_ids, is_causal):
    return jaxattn.random_feature_attention(
        query,
        key,
        value,
        FEATURE_MAP,
        key_bias=jaxattn.padding_key_bias(mask, key_bias),
        segment_ids=segment_ids,
        is_causal=is_causal,
    )


def _features_init(sizes: Sizes, dtype: Any) -> Any:
    return jaxattn.random_feature_attention_init_state(
        sizes.batch, sizes.kv_heads, sizes.head_dim, FEATURE_MAP, num_heads=sizes.heads
    )


def _features_step(state, query, key, value, key_bias, **options):
    return jaxattn.random_feature_attention_step(
        state, query, key, value, FEATURE_MAP, key_bias=key_bias, **options
    )


def _gated_row(normalization: str | None, **options: Any) -> Kernel:
    return Kernel(
        f"energy-{normalization}".lower(),
        _gated(normalization),
        functools.partial(naive.energy_gated, normalization=normalization),
        ("energy", "alpha", "tau"),
        _gated_init,
        _gated_step(normalization),
        **options,
    )


KERNELS = (
    Kernel("softmax-xla", _softmax("xla"), naive.softmax, (), _softmax_init, _softmax_step),
    Kernel(
        "softmax-blockwise",
        _softmax("blockwise"),
        naive.softmax,
        (),
        _softmax_init,
        _softmax_step,
        long=600,
        any_length=False,
    ),
    _gated_row("running"),
    _gated_row("prefix", only_causal=True, long=300),
    _gated_row(None),
    Kernel("lags", _lags, naive.cross_correlation, ("lag_logits",), _lags_init, _lags_step),
    Kernel(
        "lags-energy-running",
        _gated_lags,
        naive.gated_cross_correlation,
        ("lag_logits", "energy", "alpha", "tau"),
        _gated_lags_init,
        _gated_lags_step,
    ),
    Kernel(
        "linear",
        _linear,
        functools.partial(naive.linear, features=_positive),
        (),
        _linear_init,
        _linear_step,
        long=300,
    ),
    Kernel(
        "linear-decay",
        _decayed,
        _naive_decayed,
        ("log_decay",),
        _linear_init,
        _decayed_step,
        only_causal=True,
        long=300,
        sharp=False,
    ),
    Kernel(
        "features",
        _features,
        functools.partial(naive.random_features, feature_map=FEATURE_MAP),
        (),
        _features_init,
        _features_step,
        long=300,
        sharp=False,
    ),
    Kernel(
        "tree",
        _tree,
        naive.hierarchical,
        (),
        _tree_init,
        _tree_step,
        sharp=False,
        segments=False,
        shifts=False,
        any_length=False,
    ),
)

# As published, and not causal: the checks must say so.
LEAKING = Kernel(
    "energy-sequence",
    _gated("sequence", allow_leak=True),
    functools.partial(naive.energy_gated, normalization="sequence"),
    ("energy", "alpha", "tau"),
    _gated_init,
    _gated_step("prefix"),
)
