"""Checks for attention kernels, modules and whole models, yours as well as this library's.

Every check takes a function of arrays and a tuple of arguments, needs no test framework, and raises AssertionError
with the argument, the position and the size of what is wrong. The function may be a kernel, a Flax NNX or Equinox
model, or `lambda x: model.apply(variables, x)` of a Linen one. Pass `jax.jit(fn)` to compile it once.

    assert_causal                 no output depends on anything later, in value or in gradient
    find_leaks                    where it does: which output depends on which input, drawn
    assert_prefix_matches         a prefix of the input gives the same prefix of the output, as generation assumes
    assert_padding_invariant      padding reaches neither outputs nor gradients, whatever it holds
    assert_matches_reference      outputs and gradients equal a plain float64 reference, to rounding
    assert_close_to_reference     an approximation is within a stated relative error of the exact result
    assert_decode_matches         decoding with a state equals the whole forward pass

`axis` says which axis of each argument runs over the sequence: one integer for all arguments (1, as in (B, T, N, H)
queries, (B, S, N) energies, (B, T, D) activations and (B, T) tokens; 0 for unbatched arrays), or one entry for each,
None for an argument that is not a sequence, such as a parameter.
"""

from jaxattn.testing.causality import assert_causal
from jaxattn.testing.decoding import assert_decode_matches
from jaxattn.testing.leaks import LeakReport, find_leaks
from jaxattn.testing.padding import assert_padding_invariant
from jaxattn.testing.prefix import assert_prefix_matches
from jaxattn.testing.reference import assert_close_to_reference, assert_matches_reference

__all__ = [
    "LeakReport",
    "assert_causal",
    "assert_close_to_reference",
    "assert_decode_matches",
    "assert_matches_reference",
    "assert_padding_invariant",
    "assert_prefix_matches",
    "find_leaks",
]
