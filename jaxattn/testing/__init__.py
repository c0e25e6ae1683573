"""Checks for attention kernels and modules, yours as well as this library's.

Every check takes a function of arrays and a tuple of arguments, needs no test framework, and raises AssertionError
with the argument, the position and the size of what is wrong. Pass `jax.jit(fn)` to have `fn` compiled once.

    assert_causal                 no output depends on anything later, in value or in gradient
    assert_padding_invariant      padding reaches neither outputs nor gradients, whatever it holds
    assert_matches_reference      outputs and gradients equal a plain float64 reference, to rounding
    assert_close_to_reference     an approximation is within a stated relative error of the exact result
    assert_decode_matches         decoding with a state equals the whole forward pass

`axis` says which axis of each argument runs over the sequence: an integer for all arguments (1, as in (B, T, N, H)
queries, (B, S, N) energies, (B, T, D) activations and (B, T) tokens; 0 for unbatched arrays), or one entry an
argument, None for an argument which is no sequence (a parameter, say).
"""

from jaxattn.testing.causality import assert_causal
from jaxattn.testing.decoding import assert_decode_matches
from jaxattn.testing.padding import assert_padding_invariant
from jaxattn.testing.reference import assert_close_to_reference, assert_matches_reference

__all__ = [
    "assert_causal",
    "assert_close_to_reference",
    "assert_decode_matches",
    "assert_matches_reference",
    "assert_padding_invariant",
]
