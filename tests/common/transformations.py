"""Transformations of fused kernels, by the interpreter that rematerialisation allows."""

import functools

import jax
import numpy as np
from jax.experimental import pallas as pl


def assert_transforms(attend, x, monkeypatch):
    """`attend(x, implementation)` under vmap, in a scan over rematerialised layers, and its second derivative."""
    # Rematerialisation takes no callbacks, of which the other interpreter is made.
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))

    @functools.partial(jax.jit, static_argnums=1)
    def derivatives(x, implementation):
        @jax.checkpoint
        def layer(x, _):
            return x + jax.vmap(lambda x: attend(x, implementation))(x), None

        def once(x):
            return (layer(x, None)[0] ** 2).mean()

        def in_scan(x):
            return (jax.lax.scan(layer, x, None, length=2)[0] ** 2).mean()

        return jax.grad(in_scan)(x), jax.jvp(jax.grad(once), (x,), (x,))[1]

    got, expected = derivatives(x, "pallas"), derivatives(x, "xla")
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * abs(b).max())
