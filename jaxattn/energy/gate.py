"""The energy gate: energies of the key tokens turned into a key bias."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxattn.core.checks import check_choice, check_dtype, check_rank, check_shape
from jaxattn.core.explicit import automatic_axes, same
from jaxattn.core.sequence import check_axis
from jaxattn.energy.statistics import (
    Statistics,
    continue_from_devices,
    empty_statistics,
    kept,
    merge,
    prefix_statistics,
    run_statistics,
    scale_of,
    standardize,
)

NORMALIZATIONS = ("running", "sequence", "prefix", None)

PerHead = Float[Array, "#N"] | Float[Array, ""] | float


@automatic_axes(same)
def energy_gate(
    energy: Float[Array, "*B S N"],
    *,
    alpha: PerHead,
    tau: PerHead,
    normalization: str | None = "running",
    mask: Bool[Array, "*B S"] | Bool[Array, "*B S N"] | None = None,
    segment_ids: Int[Array, "*B S"] | None = None,
    is_causal: bool = False,
    allow_leak: bool = False,
    axis_name: str | None = None,
) -> Float[Array, "*B S N"]:
    r"""The logarithm of a gate on every key token, to be used as `key_bias` of any attention.

    $$ key\_bias_j = \log \operatorname{sigmoid}(\alpha\,(z_j - \tau)), \qquad z_j = (e_j - \mu_j)/\sigma_j, $$

    with sigma the population standard deviation, at least 1e-6 and 8e-6 |mu|: a smaller one is that of rounding
    errors, as of equal tokens (where that floor applies, z has a zero gradient). mu_j and sigma_j are taken over

    - "running": the tokens <= j. Causal; `energy_gate_step` streams it. The first token has z = 0.
    - "sequence": all tokens, as published. Under a causal mask this leaks information about later tokens.
    - None: no tokens; z = e. Causal.

    ("prefix" depends on the query as well, so it is not a key bias: see `energy_gated_attention`.)

    Args:
        energy: energies of the key tokens, (B, S, N) or (S, N), N query heads, any float dtype.
        alpha: steepness of the gate, (N,) or a scalar; trained models start at 2.
        tau: the z at which the gate is half open, (N,) or a scalar; trained models start at 0.
        normalization: "running", "sequence" or None.
        mask: True at the tokens that count, (B, S), or (B, S, N) for one mask per head. Other tokens are left out of
            the statistics and get −inf; their energies have no effect, even if they are NaN.
        segment_ids: (B, S) for packed sequences, each a contiguous run of one id; the statistics restart at every
            run.
        is_causal: whether the attention that will use the bias is causal; only checked against "sequence".
        allow_leak: permits "sequence" with `is_causal`, for reproducing the published numbers.
        axis_name: an axis of a mesh over which `jax.shard_map` cuts the tokens; not with "sequence". Every segment is
            then a single run.

    Returns:
        The key bias, float32, in the shape of `energy`.

    Raises:
        ValueError: a wrong shape, dtype or name; "prefix"; "sequence" with `is_causal` and not `allow_leak`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import energy_gate
        >>> gate = energy_gate(jnp.array([[0.0], [1.0], [-1.0]]), alpha=2.0, tau=0.0)
        >>> [round(float(g), 3) for g in jnp.exp(gate[:, 0])]  # z = 0, 1, −1.22
        [0.5, 0.881, 0.079]

    Reference:
        Energy-gated attention, arXiv 2605.21842 and 2605.26355: the gate is "sequence"; "running" is its causal
        counterpart.
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    if normalization == "prefix":
        raise ValueError(
            "normalization 'prefix' makes the gate depend on the query, so it is not a key bias; "
            "use energy_gated_attention(..., normalization='prefix')."
        )
    check_axis(axis_name, normalization=normalization if normalization == "sequence" else None)
    check_leak(normalization, is_causal, allow_leak)
    check_rank("energy", energy, (2, 3), "(B, S, N) or (S, N)")
    check_energy(energy, energy.shape, "(B, S, N)", alpha, tau)
    valid = broadcast_mask("mask", mask, energy)
    if segment_ids is not None:
        check_dtype("segment_ids", segment_ids, jnp.integer, "integer")
        check_shape("segment_ids", segment_ids, energy.shape[:-1], "(B, S)")
    if energy.ndim == 2:
        energy, valid, segment_ids = jax.tree.map(lambda x: x[None], (energy, valid, segment_ids))
        return _gate(energy, valid, alpha, tau, normalization, segment_ids, axis_name)[0]
    return _gate(energy, valid, alpha, tau, normalization, segment_ids, axis_name)


def _gate(energy, valid, alpha, tau, normalization, segment_ids, axis_name) -> Float[Array, "B S N"]:
    energy = clean_energy(energy, valid)
    z = energy
    if normalization is not None:
        statistics = prefix_statistics(energy, valid, segment_ids)
        if axis_name is not None:
            statistics = continue_from_devices(statistics, segment_ids, axis_name)
        if normalization == "sequence":
            statistics = run_statistics(statistics, segment_ids)
        z = standardize(energy, scale_of(statistics))
    return kept(log_gate(z, alpha, tau), valid, -jnp.inf)


def energy_gate_init_state(batch: int, num_heads: int) -> Statistics:
    """Empty statistics, for `energy_gate_step`.

    Args:
        batch: sequences decoded together, B.
        num_heads: query heads, N.

    Returns:
        A pytree of four float32 arrays (B, N); its size does not grow with the sequence.

    Examples:
        >>> from jaxattn import energy_gate_init_state
        >>> energy_gate_init_state(2, 4).count.shape
        (2, 4)
    """
    return empty_statistics((batch, num_heads))


@automatic_axes(same, same)
def energy_gate_step(
    state: Statistics,
    energy: Float[Array, "B T N"],
    *,
    alpha: PerHead,
    tau: PerHead,
    normalization: str | None = "running",
    mask: Bool[Array, "B T"] | Bool[Array, "B T N"] | None = None,
) -> tuple[Statistics, Float[Array, "B T N"]]:
    """The gate of the next T tokens; any split of a sequence into steps gives `energy_gate` of the whole.

    Args:
        state: from `energy_gate_init_state` or the step before.
        energy: energies of the new tokens, (B, T, N), T >= 1.
        alpha: as in `energy_gate`.
        tau: as in `energy_gate`.
        normalization: "running" or None; the other two need energies that have not arrived yet.
        mask: True at the new tokens that count, (B, T) or (B, T, N).

    Returns:
        (new state, key bias of the new tokens (B, T, N), float32).

    Raises:
        ValueError: a wrong shape, dtype or name, or a normalisation that cannot stream.

    Examples:
        >>> import jax.numpy as jnp
        >>> from jaxattn import energy_gate_init_state, energy_gate_step
        >>> state = energy_gate_init_state(1, 2)
        >>> state, key_bias = energy_gate_step(state, jnp.ones((1, 3, 2)), alpha=2.0, tau=0.0)
        >>> key_bias.shape, int(state.count[0, 0])
        ((1, 3, 2), 3)
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    if normalization in ("sequence", "prefix"):
        raise ValueError(
            f"normalization {normalization!r} changes the gates of earlier tokens with every new one; "
            "use energy_gated_attention_step, or 'running' or None."
        )
    check_rank("energy", energy, (3,), "(B, T, N)")
    check_energy(energy, energy.shape, "(B, T, N)", alpha, tau)
    check_shape("state.count", state.count, (energy.shape[0], energy.shape[2]), "energy's (B, N)")
    valid = broadcast_mask("mask", mask, energy)
    energy = clean_energy(energy, valid)
    statistics = continue_statistics(state, energy, valid)
    z = energy if normalization is None else standardize(energy, scale_of(statistics))
    return jax.tree.map(lambda s: s[:, -1], statistics), kept(log_gate(z, alpha, tau), valid, -jnp.inf)


def continue_statistics(
    state: Statistics, energy: Float[Array, "B T N"], valid: Bool[Array, "B T N"] | None
) -> Statistics:
    """Statistics (B, T, N) after each of T new tokens that follow those in `state`, (B, N)."""
    before = jax.tree.map(lambda s: s[:, None], state)
    return merge(before, prefix_statistics(energy, valid))


def log_gate(z: Array, alpha: Array | float, tau: Array | float) -> Array:
    """log sigmoid(alpha (z − tau)), exact also where the sigmoid underflows; heads on the last axis."""
    return log_sigmoid(jnp.asarray(alpha, jnp.float32) * (z - jnp.asarray(tau, jnp.float32)))


@jax.custom_jvp
def log_sigmoid(x: Array) -> Array:
    """log(1 / (1 + e^-x)), in a third of the operations of `jax.nn.log_sigmoid` with its gradient."""
    return jnp.minimum(x, 0) - jnp.log1p(jnp.exp(-jnp.abs(x)))


log_sigmoid.defjvps(lambda tangent, out, x: tangent * jax.nn.sigmoid(-x))


def clean_energy(energy: Array, valid: Array | None) -> Array:
    """Float32 energies, 0 where not valid, set before any arithmetic so that NaN there reaches no gradient."""
    return kept(energy, valid).astype(jnp.float32)


def broadcast_mask(name: str, mask: Array | None, energy: Array) -> Array | None:
    """The mask (..., S) or (..., S, N) as bool (..., S, N); None stays None."""
    if mask is None:
        return None
    check_dtype(name, mask, jnp.bool_, "boolean, True at the tokens that count")
    if mask.shape == energy.shape:
        return mask
    check_shape(name, mask, energy.shape[:-1], "(B, S)")
    return jnp.broadcast_to(mask[..., None], energy.shape)


def is_causal_mask(mask: Array | None) -> bool:
    """Whether the mask (..., T, S) hides every later key from every query; False if it is traced, without values."""
    if mask is None or isinstance(mask, jax.core.Tracer):
        return False
    length, key_length = jnp.shape(mask)[-2:]
    return 1 < length == key_length and not np.triu(np.asarray(mask), 1).any()


def check_leak(normalization: str | None, is_causal: bool, allow_leak: bool) -> None:
    """Raises for statistics that include later tokens under a causal mask, unless `allow_leak`."""
    if normalization == "sequence" and is_causal and not allow_leak:
        raise ValueError(
            "normalization 'sequence' under a causal mask lets every token see statistics of later ones; use "
            "'running', 'prefix' or None, or pass allow_leak=True to reproduce published numbers."
        )


def check_energy(
    energy: Array, shape: tuple[int, ...], layout: str, alpha: Array | float, tau: Array | float
) -> None:
    """Raises unless the energies have the given shape, and alpha and tau are scalars or have one entry per head."""
    check_shape("energy", energy, shape, layout)
    check_dtype("energy", energy, jnp.floating, "floating point")
    num_heads = shape[-1]
    for name, parameter in (("alpha", alpha), ("tau", tau)):
        if jnp.shape(parameter) not in ((), (1,), (num_heads,)):
            raise ValueError(
                f"{name} must be a scalar or have shape (N,) = ({num_heads},); got {jnp.shape(parameter)}."
            )
