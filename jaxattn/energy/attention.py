"""Energy-gated softmax attention with every normalisation."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.call import check_qkv
from jaxattn.core.checks import check_choice
from jaxattn.core.explicit import automatic_axes, but_width
from jaxattn.energy.gate import (
    NORMALIZATIONS,
    PerHead,
    check_energy,
    check_leak,
    clean_energy,
    energy_gate,
    is_causal_mask,
)
from jaxattn.energy.keys import add_bias, ungated, valid_keys
from jaxattn.energy.prefix import attend_to_prefixes
from jaxattn.energy.statistics import prefix_statistics
from jaxattn.softmax import check_window, dot_product_attention


@automatic_axes(but_width)
def energy_gated_attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K V"],
    energy: Float[Array, "*B S N"],
    *,
    alpha: PerHead,
    tau: PerHead,
    normalization: str | None = "running",
    token_mask: Bool[Array, "*B S"] | None = None,
    mask: Bool[Array, "*#B #N #T #S"] | None = None,
    key_bias: Float[Array, "*#B S #N"] | None = None,
    bias: Float[Array, "*#B #N #T #S"] | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    local_window_size: int | tuple[int, int] | None = None,
    logits_soft_cap: float | None = None,
    sinks: Float[Array, " N"] | None = None,
    segment_ids: Int[Array, "*B T"] | tuple[Int[Array, "*B T"], Int[Array, "*B S"]] | None = None,
    allow_leak: bool = False,
    implementation: str | None = None,
) -> Float[Array, "*B T N V"]:
    r"""Softmax attention whose weights are multiplied by a gate of the key token's energy and renormalised.

    $$ A_{ij} = \frac{p_{ij}\, g_{ij}}{\sum_{j'} p_{ij'}\, g_{ij'}}
              = \operatorname{softmax}_j(s\, q_i \cdot k_j + \log g_{ij}), \qquad
       g_{ij} = \operatorname{sigmoid}(\alpha\,(z_{ij} - \tau)), \quad z_{ij} = (e_j - \mu)/\sigma, $$

    with statistics over all tokens ("sequence"), the tokens <= j ("running") or the tokens <= i ("prefix"), or z = e
    (None). Under "prefix" query i sees the published formula applied to the prefix that ends with it; the gate then
    depends on i and j, and is built for a few hundred queries at a time, never for all T×S pairs. The other
    normalisations give one number per key and cost no more than plain attention.

    Args:
        query: (B, T, N, H), or without B, as are all others then.
        key: (B, S, K, H), K dividing N.
        value: (B, S, K, V).
        energy: energies of the key tokens for every query head, (B, S, N), any float dtype.
        alpha: steepness of the gate, (N,) or a scalar.
        tau: the z at which the gate is half open, (N,) or a scalar.
        normalization: "running", "sequence", "prefix" or None.
        token_mask: True at real tokens, (B, S). Padding is neither attended to nor counted in the statistics, even if
            it is NaN. Queries are not masked: the output of a padded query depends on what it holds.
        mask: True where query i may attend to key j, broadcastable to (B, N, T, S). It does not
            change the statistics.
        key_bias: additional bias on the keys, broadcastable to (B, S, N); −inf removes a key, also from statistics.
        bias: bias on the scores, broadcastable to (B, N, T, S).
        scale: factor on q·k, 1/sqrt(H) when None.
        is_causal: query i attends to keys j <= i.
        local_window_size: as in `dot_product_attention`. It does not change the statistics.
        logits_soft_cap: as in `dot_product_attention`.
        sinks: as in `dot_product_attention`.
        segment_ids: (B, T), or a pair (B, T) and (B, S), for packed sequences, each a contiguous run; attention
            and statistics stay inside them.
        allow_leak: permits "sequence" with `is_causal`, for reproducing the published numbers.
        implementation: a backend of `dot_product_attention`.

    Returns:
        (B, T, N, V) in the query's dtype; a row without any allowed key is 0.

    Raises:
        ValueError: a wrong shape, dtype or name; "sequence" with `is_causal` and not `allow_leak`; "prefix"
            without `is_causal` or with T != S.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxattn import energy_gated_attention
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
        >>> energy = jax.random.normal(jax.random.key(1), (2, 16, 4))
        >>> energy_gated_attention(q, k, v, energy, alpha=2.0, tau=0.0, is_causal=True).shape
        (2, 16, 4, 8)

    Reference:
        Energy-gated attention, arXiv 2605.21842 and 2605.26355; "running" and "prefix" are its causal forms.
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    # A window without a right side is causal.
    causal = is_causal or check_window(local_window_size)[1] == 0
    check_leak(normalization, causal or is_causal_mask(mask), allow_leak)
    check_qkv(query, key, value)
    check_energy(energy, (*key.shape[:-2], query.shape[-2]), "(B, S, N)", alpha, tau)
    valid = valid_keys(token_mask, key_bias, energy)
    pair = segment_ids if isinstance(segment_ids, tuple | list) else (segment_ids, segment_ids)
    if normalization == "prefix":
        _check_prefix(query, key, is_causal)
        batched = query.ndim == 4

        def with_batch(x: Any) -> Any:
            return x if batched or x is None else x[None]

        energy, valid, key_bias, query_ids, key_ids = map(with_batch, (energy, valid, key_bias, *pair))
        energy = clean_energy(energy, valid)
        out = attend_to_prefixes(
            with_batch(query),
            with_batch(key),
            with_batch(value),
            energy,
            prefix_statistics(energy, valid, key_ids),
            jnp.arange(query.shape[-3])[None],
            alpha=alpha,
            tau=tau,
            key_bias=ungated(key_bias, valid),
            mask=with_batch(mask),
            bias=with_batch(bias),
            segment_ids=None if key_ids is None else (query_ids, key_ids),
            scale=scale,
            local_window_size=local_window_size,
            logits_soft_cap=logits_soft_cap,
            sinks=sinks,
            implementation=implementation,
        )
        return out if batched else out[0]
    gate = energy_gate(
        energy,
        alpha=alpha,
        tau=tau,
        normalization=normalization,
        mask=valid,
        segment_ids=pair[-1],
        is_causal=causal,
        allow_leak=allow_leak,
    )
    return dot_product_attention(
        query,
        key,
        value,
        key_bias=add_bias(gate, key_bias, valid),
        mask=mask,
        bias=bias,
        scale=scale,
        is_causal=is_causal,
        local_window_size=local_window_size,
        logits_soft_cap=logits_soft_cap,
        sinks=sinks,
        segment_ids=segment_ids,
        implementation=implementation,
    )


def _check_prefix(query: Array, key: Array, is_causal: bool) -> None:
    if not is_causal:
        raise ValueError(
            "is_causal must be True with normalization 'prefix': query i takes its statistics from the tokens "
            "<= i. Without a causal mask use 'sequence'."
        )
    length, key_length = query.shape[-3], key.shape[-3]
    if key_length != length:
        raise ValueError(
            f"key must be as long as query with normalization 'prefix'; got S = {key_length}, T = {length}."
        )
