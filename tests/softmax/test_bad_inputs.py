"""What dot_product_attention refuses, and what it says."""

import jax.numpy as jnp
import pytest

from jaxattn.softmax import dot_product_attention
from tests.softmax.test_attention import B, K, N, S, T, qkv

BAD = {
    "rank of query": (
        lambda q, k, v: {"query": q[0, 0]},
        r"query .*\(T, N, H\) or \(B, T, N, H\); got shape",
    ),
    "rank of key": (lambda q, k, v: {"key": k[0]}, r"key must have shape .*S, K, H"),
    "rank of value": (lambda q, k, v: {"value": v[..., None]}, r"value must have shape .*S, K, V"),
    "head width": (lambda q, k, v: {"key": k[..., :-1]}, r"key must have shape \(B, S, K, H\)"),
    "batch": (lambda q, k, v: {"key": k[:1]}, "key must have shape"),
    "key/value length": (lambda q, k, v: {"value": v[:, :-1]}, "value must have shape"),
    "integer query": (
        lambda q, k, v: {"query": q.astype(int)},
        "query must be floating point; got dtype int32",
    ),
    "groups": (lambda q, k, v: {"query": q[:, :, :3]}, "multiple of key's heads.*N = 3, K = 2"),
    "key_bias shape": (lambda q, k, v: {"key_bias": jnp.zeros((B, S, K))}, r"key_bias .*\(B, S, N\)"),
    "key_bias rank": (lambda q, k, v: {"key_bias": jnp.zeros((B, S))}, r"key_bias .*\(B, S, N\)"),
    "key_bias length": (
        lambda q, k, v: {"key_bias": jnp.zeros((B, 1, N))},
        "key_bias must have one entry a key",
    ),
    "key_bias bool": (lambda q, k, v: {"key_bias": jnp.zeros((B, S, N), bool)}, "key_bias must be floating"),
    "mask shape": (lambda q, k, v: {"mask": jnp.ones((B, S), bool)}, r"mask .*\(B, N, T, S\)"),
    "mask float": (lambda q, k, v: {"mask": jnp.ones((1, 1, T, S))}, "mask must be boolean"),
    "bias shape": (lambda q, k, v: {"bias": jnp.ones((B, K, T, S))}, r"bias .*\(B, N, T, S\)"),
    "lengths shape": (
        lambda q, k, v: {"key_value_seq_lengths": jnp.ones((B, 1), int)},
        "key_value_seq_lengths",
    ),
    "lengths float": (
        lambda q, k, v: {"query_seq_lengths": jnp.ones(B)},
        "query_seq_lengths must be integer",
    ),
    "segments shape": (lambda q, k, v: {"segment_ids": jnp.ones((B, T), int)}, r"segment_ids .*\(B, S\)"),
    "segments three": (lambda q, k, v: {"segment_ids": (jnp.ones((B, T), int),) * 3}, "segment_ids .*pair"),
    "scale": (lambda q, k, v: {"scale": jnp.ones(())}, "scale must be None or a number"),
    "window of three": (lambda q, k, v: {"local_window_size": (1, 2, 3)}, "local_window_size must be .*pair"),
    "window negative": (lambda q, k, v: {"local_window_size": (1, -1)}, r"local_window_size .*got \(1, -1\)"),
    "window fraction": (lambda q, k, v: {"local_window_size": 1.5}, "local_window_size must be .*got 1.5"),
    "window bool": (lambda q, k, v: {"local_window_size": True}, "local_window_size must be .*got True"),
    "cap of zero": (
        lambda q, k, v: {"logits_soft_cap": 0},
        "logits_soft_cap must be .*positive number.*got 0",
    ),
    "cap traced": (
        lambda q, k, v: {"logits_soft_cap": jnp.ones(())},
        "logits_soft_cap must be .*known at trace",
    ),
    "cap beyond float32": (
        lambda q, k, v: {"logits_soft_cap": 1e39},
        r"logits_soft_cap must be .*got 1e\+39",
    ),
    "cap bool": (lambda q, k, v: {"logits_soft_cap": True}, "logits_soft_cap must be .*got True"),
    "head width of zero": (
        lambda q, k, v: {"query": q[..., :0], "key": k[..., :0]},
        "query must have a head width H of at least 1; got 0",
    ),
    "sinks shape": (
        lambda q, k, v: {"sinks": jnp.zeros(K)},
        r"sinks must have shape \(N,\) = \(4,\); got \(2,\)",
    ),
    "sinks integer": (lambda q, k, v: {"sinks": jnp.zeros(N, int)}, "sinks must be floating point"),
    "offset without positions": (
        lambda q, k, v: {"query_offset": 3},
        "query_offset is for is_causal and local",
    ),
    "offset float": (
        lambda q, k, v: {"query_offset": 3.0, "is_causal": True},
        "query_offset must be integer",
    ),
    "offset shape": (
        lambda q, k, v: {"query_offset": jnp.ones((T,), int), "is_causal": True},
        r"query_offset must have shape \(\) or \(2,\); got \(13,\)",
    ),
    "implementation": (lambda q, k, v: {"implementation": "flash"}, "implementation must be one of .*'xla'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_inputs(no_typecheck, case):
    query, key, value = qkv()
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        dot_product_attention(
            **dict({"query": query, "key": key, "value": value}, **change(query, key, value))
        )
