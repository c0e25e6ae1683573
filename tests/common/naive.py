"""Every mechanism once more, plainly: T×S arrays, no tricks, for float64. Masks are (B, T), True at tokens."""

import jax
import jax.numpy as jnp

import tests.tree.naive as naive_hierarchical
from jaxattn import Tree


def repeat_heads(x, num_heads):
    return jnp.repeat(x, num_heads // x.shape[-2], axis=-2)


def allowed_pairs(batch, length, mask, segment_ids, is_causal):
    """(B, T, S): query t may look at key s."""
    allowed = jnp.ones((batch, length, length), bool)
    if is_causal:
        allowed &= jnp.tril(jnp.ones((length, length), bool))
    if mask is not None:
        allowed &= mask[:, None, :]
    if segment_ids is not None:
        allowed &= segment_ids[:, :, None] == segment_ids[:, None, :]
    return allowed


def attend(scores, value, allowed):
    """Softmax over the allowed keys of (B, N, T, S) scores; a row without any is 0."""
    allowed = allowed[:, None]
    highest = jnp.max(jnp.where(allowed, scores, -jnp.inf), axis=-1, keepdims=True)
    highest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(highest), highest, 0.0))
    weights = jnp.where(allowed, jnp.exp(jnp.where(allowed, scores - highest, 0.0)), 0.0)
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1.0, total)
    return jnp.einsum("bnts,bsnh->btnh", weights, repeat_heads(value, scores.shape[1]))


def dot_products(query, key):
    return jnp.einsum("btnh,bsnh->bnts", query, repeat_heads(key, query.shape[2])) / query.shape[-1] ** 0.5


def softmax(query, key, value, key_bias, *, mask=None, segment_ids=None, is_causal=True):
    allowed = allowed_pairs(*query.shape[:2], mask, segment_ids, is_causal)
    return attend(dot_products(query, key) + jnp.moveaxis(key_bias, 1, 2)[:, :, None], value, allowed)


WINDOW, CAP = (4, 1), 1.5


def near(length):
    """(T, S): keys in `WINDOW` around a query."""
    i, j = jnp.arange(length)[:, None], jnp.arange(length)
    return (i - WINDOW[0] <= j) & (j <= i + WINDOW[1])


def with_sinks(scores, value, allowed, sinks):
    """A sink is a key in front, with the value 0."""
    sinks = jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:3], 1))
    allowed = jnp.concatenate([jnp.ones_like(allowed[..., :1]), allowed], axis=-1)
    value = jnp.concatenate([jnp.zeros_like(value[:, :1]), value], axis=1)
    return attend(jnp.concatenate([sinks, scores], axis=-1), value, allowed)


def softmax_with_options(query, key, value, key_bias, sinks, *, mask=None, segment_ids=None, is_causal=True):
    """A window, capped scores and sinks."""
    allowed = allowed_pairs(*query.shape[:2], mask, segment_ids, is_causal) & near(query.shape[1])
    scores = CAP * jnp.tanh(dot_products(query, key) / CAP) + jnp.moveaxis(key_bias, 1, 2)[:, :, None]
    return with_sinks(scores, value, allowed, sinks)


def standardised_energy(energy, normalization, mask, segment_ids):
    """z (B, N, T, S) of key s as query t sees it."""
    batch, length, _ = energy.shape
    e = jnp.moveaxis(energy, 1, 2)  # (B, N, S)
    if normalization is None:
        return jnp.broadcast_to(e[:, :, None], (*e.shape[:2], length, length))
    # member[b, x, m]: token m counts in the statistics that belong to position x.
    member = allowed_pairs(batch, length, mask, segment_ids, normalization != "sequence")[:, None].astype(
        e.dtype
    )
    count = jnp.maximum(member.sum(-1), 1.0)
    mean = (member * e[:, :, None]).sum(-1) / count
    variance = (member * (e[:, :, None] - mean[..., None]) ** 2).sum(-1) / count
    positive = variance > 1e-12
    deviation = jnp.sqrt(jnp.where(positive, variance, 1.0))

    def z(energies, mean, deviation, positive):
        return jnp.where(positive, (energies - mean) / deviation, 0.0)

    if normalization == "prefix":  # the statistics are the query's
        return z(e[:, :, None], mean[..., None], deviation[..., None], positive[..., None])
    own = z(e, mean, deviation, positive)
    return jnp.broadcast_to(own[:, :, None], (*e.shape[:2], length, length))


def energy_gated(
    query,
    key,
    value,
    key_bias,
    energy,
    alpha,
    tau,
    *,
    normalization,
    scores=None,
    mask=None,
    segment_ids=None,
    is_causal=True,
):
    allowed = allowed_pairs(*query.shape[:2], mask, segment_ids, is_causal)
    z = standardised_energy(energy, normalization, mask, segment_ids)
    log_gate = jax.nn.log_sigmoid(alpha[:, None, None] * (z - tau[:, None, None]))
    scores = dot_products(query, key) if scores is None else scores
    return attend(scores + log_gate + jnp.moveaxis(key_bias, 1, 2)[:, :, None], value, allowed)


def energy_gated_with_options(
    query, key, value, key_bias, energy, alpha, tau, sinks, *, normalization, **masks
):
    """`softmax_with_options` in its weights."""
    mask, segment_ids = masks.get("mask"), masks.get("segment_ids")
    allowed = allowed_pairs(*query.shape[:2], **masks) & near(query.shape[1])
    z = standardised_energy(energy, normalization, mask, segment_ids)
    log_gate = jax.nn.log_sigmoid(alpha[:, None, None] * (z - tau[:, None, None]))
    scores = CAP * jnp.tanh(dot_products(query, key) / CAP) + log_gate
    return with_sinks(scores + jnp.moveaxis(key_bias, 1, 2)[:, :, None], value, allowed, sinks)


def shifted(x, lag, segment_ids):
    """x_{t − lag}, 0 before the start of the sequence or of the segment."""
    length = x.shape[1]
    moved = jnp.concatenate([jnp.zeros_like(x[:, :lag]), x[:, : length - lag]], axis=1)
    if segment_ids is not None and lag:
        before = jnp.concatenate(
            [jnp.full_like(segment_ids[:, :lag], -1), segment_ids[:, : length - lag]], axis=1
        )
        moved = jnp.where((before == segment_ids)[..., None, None], moved, 0.0)
    return moved


def cross_correlation_scores(query, key, lag_logits, mask, segment_ids):
    key = repeat_heads(key, query.shape[2])
    if mask is not None:
        query, key = (jnp.where(mask[..., None, None], x, 0.0) for x in (query, key))
    weights = jax.nn.softmax(lag_logits, axis=-1)  # (N, 2L + 1), lags −L … L
    largest = lag_logits.shape[-1] // 2
    scores = 0.0
    for i, lag in enumerate(range(-largest, largest + 1)):
        q = shifted(query, -lag, segment_ids) if lag < 0 else query
        k = shifted(key, lag, segment_ids) if lag >= 0 else key
        scores += weights[:, i, None, None] * dot_products(q, k)
    return scores


def cross_correlation(
    query, key, value, key_bias, lag_logits, *, mask=None, segment_ids=None, is_causal=True
):
    allowed = allowed_pairs(*query.shape[:2], mask, segment_ids, is_causal)
    scores = cross_correlation_scores(query, key, lag_logits, mask, segment_ids)
    return attend(scores + jnp.moveaxis(key_bias, 1, 2)[:, :, None], value, allowed)


def gated_cross_correlation(
    query,
    key,
    value,
    key_bias,
    lag_logits,
    energy,
    alpha,
    tau,
    *,
    mask=None,
    segment_ids=None,
    is_causal=True,
):
    return energy_gated(
        query,
        key,
        value,
        key_bias,
        energy,
        alpha,
        tau,
        normalization="running",
        scores=cross_correlation_scores(query, key, lag_logits, mask, segment_ids),
        mask=mask,
        segment_ids=segment_ids,
        is_causal=is_causal,
    )


def linear_scores(phi_q, phi_k):
    """Logarithms of the weights φ_q·φ_k of positive features."""
    return jnp.log(jnp.einsum("btnm,bsnm->bnts", phi_q, repeat_heads(phi_k, phi_q.shape[2])))


def linear(query, key, value, key_bias, *, features, mask=None, segment_ids=None, is_causal=True):
    allowed = allowed_pairs(*query.shape[:2], mask, segment_ids, is_causal)
    scores = linear_scores(features(query), features(key))
    return attend(scores + jnp.moveaxis(key_bias, 1, 2)[:, :, None], value, allowed)


def elu(query, key, value, key_bias, **keywords):
    return linear(query, key, value, key_bias, features=lambda x: jax.nn.elu(x) + 1, **keywords)


def decayed(query, key, value, key_bias, log_decay, *, mask=None, segment_ids=None, is_causal=True):
    """Sums without normalisation, q_i·k_j e^(bias_j) v_j times e to the decays of tokens j + 1 to i."""
    if mask is not None:
        log_decay = jnp.where(mask[..., None], log_decay, 0.0)
    so_far = jnp.moveaxis(jnp.cumsum(log_decay, axis=1), 1, 2)
    allowed = allowed_pairs(*query.shape[:2], mask, segment_ids, is_causal)[:, None]
    decay = jnp.where(allowed, so_far[..., :, None] - so_far[..., None, :], -jnp.inf)
    products = jnp.einsum("btnm,bsnm->bnts", query, repeat_heads(key, query.shape[2]))
    weights = products * jnp.exp(decay + jnp.moveaxis(key_bias, 1, 2)[:, :, None])
    return jnp.einsum("bnts,bsnv->btnv", weights, repeat_heads(value, query.shape[2]))


def retention(query, key, value, key_bias, logits=None, **keywords):
    """Two heads with RetNet's decays, or gates of any."""
    fixed = jnp.log(1 - 2.0 ** jnp.asarray([-5.0, -6.0], key_bias.dtype))
    decay = jnp.broadcast_to(fixed, key_bias.shape) if logits is None else jax.nn.log_sigmoid(logits)
    out = decayed(query / query.shape[-1] ** 0.5, key, value, key_bias, decay, **keywords)
    return out / jnp.sqrt((out**2).mean(-1, keepdims=True) + 1e-6)


def alibi(query, key, value, key_bias, *, core, **keywords):
    """Slopes of two heads; the query's own position cancels."""
    slopes = jnp.asarray([2.0**-4, 2.0**-8], key_bias.dtype)
    return core(query, key, value, key_bias + jnp.arange(key.shape[1])[:, None] * slopes, **keywords)


def forgetting(query, key, value, key_bias, logits, *, core, mask=None, **keywords):
    """Decays of the tokens after each key, summed from the right: another order than a running sum."""
    logs = jax.nn.log_sigmoid(logits)
    if mask is not None:
        logs = jnp.where(mask[..., None], logs, 0.0)
    decay = jnp.flip(jnp.cumsum(jnp.flip(logs, 1), axis=1), 1) - logs
    return core(query, key, value, key_bias + decay, mask=mask, **keywords)


def random_feature_scores(query, key, feature_map):
    """log Σ_m f(w_m, x) f(w_m, y) of OPRF, from the rows and a; factors common to all pairs are left out."""
    rows = feature_map.weights.matrix().astype(query.dtype)
    heads, width = query.shape[2:]
    a = jnp.asarray(feature_map.component.a, query.dtype).reshape(-1)
    a = jnp.repeat(a, heads // len(a))[:, None]

    def logarithms(x):
        x = repeat_heads(x, heads) / width**0.25
        projected = jnp.sqrt(1 - 4 * a) * jnp.einsum("btnh,mh->btnm", x, rows)
        return projected + a * (rows**2).sum(-1) - 0.5 * (x**2).sum(-1, keepdims=True)

    pairs = logarithms(query)[:, :, None] + logarithms(key)[:, None]  # (B, T, S, N, M)
    return jnp.moveaxis(jax.nn.logsumexp(pairs, axis=-1), 3, 1)


def random_features(query, key, value, key_bias, *, feature_map, mask=None, segment_ids=None, is_causal=True):
    allowed = allowed_pairs(*query.shape[:2], mask, segment_ids, is_causal)
    scores = random_feature_scores(query, key, feature_map)
    return attend(scores + jnp.moveaxis(key_bias, 1, 2)[:, :, None], value, allowed)


def gated_random_features(query, key, value, key_bias, energy, alpha, tau, *, feature_map, **keywords):
    scores = random_feature_scores(query, key, feature_map)
    return energy_gated(
        query, key, value, key_bias, energy, alpha, tau, normalization="running", scores=scores, **keywords
    )


def hierarchical(query, key, value, key_bias, *, mask=None, segment_ids=None, is_causal=True):
    """Over a tree of threes and then pairs."""
    assert segment_ids is None
    key_bias = jnp.where(True if mask is None else mask[..., None], key_bias, -jnp.inf)
    nested = Tree.uniform(query.shape[1], (3, 2)).to_nested()
    form = naive_hierarchical.causal_tree_attention if is_causal else naive_hierarchical.tree_attention
    arrays = naive_hierarchical.heads_first(query, key, value, key_bias)
    out = form(*arrays, nested, scale=query.shape[-1] ** -0.5, include_self=True)[0]
    return jnp.swapaxes(out, 1, 2)


def gated_hierarchical(query, key, value, key_bias, energy, alpha, tau, *, mask=None, **keywords):
    z = standardised_energy(energy, "running", mask, None)[:, :, 0]  # the same for every query
    gate = jax.nn.log_sigmoid(alpha[:, None] * (z - tau[:, None]))
    return hierarchical(query, key, value, key_bias + jnp.moveaxis(gate, 1, 2), mask=mask, **keywords)


def layer(x, parameters, core, own, *, reads_keys, **keywords):
    """A multi-head layer around `core(query, key, value, key_bias, *own)`; parameters by path in the module.

    `own` names the mechanism's parameters; "energy" stands for the energies of a gate's projection.
    """

    def project(name):
        kernel, bias = parameters[f"{name}.kernel"], parameters[f"{name}.bias"]
        return jnp.einsum("btd,dnh->btnh", x, kernel) + bias

    query, key, value = project("query"), project("key"), project("value")
    found = {path.rpartition(".")[2]: p for path, p in parameters.items() if "mechanism" in path}
    if "energy" in own:
        # Built without a layer input, the module reads the keys instead.
        kernel = found["kernel"]
        found["energy"] = jnp.einsum("btnh,hn->btn", key, kernel) if reads_keys else x @ kernel
    if "forget" in own:
        kernel = found["kernel"]
        logits = jnp.einsum("btnh,hn->btn", key, kernel) if reads_keys else x @ kernel
        found["forget"] = logits + found["bias"]
    zero = jnp.zeros(query.shape[:3], x.dtype)
    out = core(query, key, value, zero, *(found[name] for name in own if name != "output"), **keywords)
    if "output" in own:
        equation = "btnh,nhv->btnv" if reads_keys else "btd,dnv->btnv"
        out = out * jax.nn.sigmoid(jnp.einsum(equation, query if reads_keys else x, found["kernel"]))
    return jnp.einsum("btnh,nhd->btd", out, parameters["out.kernel"]) + parameters["out.bias"]
