"""The public checks catch what they are for and say what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxattn import testing
from jaxattn.nn import Decoder, Encoder

X = jax.random.normal(jax.random.key(0), (2, 8, 4))
TOKENS = jax.random.randint(jax.random.key(1), (2, 8), 0, 11)


def causal_softmax(query, key, value, *, valid=None, stabilizer=0.0):
    scores = jnp.einsum("bth,bsh->bts", query, key) + stabilizer
    allowed = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if valid is not None:
        allowed = allowed & valid[:, None, :]
    weights = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
    return jnp.einsum("bts,bsh->bth", weights, value)


class TestCausal:
    def test_accepts_causal_functions(self):
        testing.assert_causal(causal_softmax, (X, X + 1, X - 1))
        testing.assert_causal(lambda x: jnp.cumsum(x, axis=0), (X[0],), axis=0, out_axis=0)
        table = jax.random.normal(jax.random.key(2), (11, 5))
        testing.assert_causal(lambda tokens: jnp.cumsum(table[tokens], axis=1), (TOKENS,))

    def test_names_argument_and_position(self):
        def peeks(query, key):
            return query.at[:, 2].add(key[:, 6])

        with pytest.raises(AssertionError, match=r"output position 2 changed by .* argument 1 \(key\)"):
            testing.assert_causal(peeks, (X, X))

    def test_catches_leaks_through_statistics_by_value(self):
        with pytest.raises(AssertionError, match=r"argument 0 \(x\)"):
            testing.assert_causal(lambda x: x / x.std(axis=1, keepdims=True), (X,), check_gradients=False)

    def test_catches_leaks_below_rounding_by_gradient(self):
        def whisper(x):
            # At the sizes the check tries, the future's part is lost in rounding; its gradient is not.
            return jnp.cumsum(x, axis=1) + 1e-30 * jnp.mean(x, axis=1, keepdims=True)

        testing.assert_causal(whisper, (X,), check_gradients=False)
        with pytest.raises(
            AssertionError, match=r"gradient of .* with respect to argument 0 \(x\) at position"
        ):
            testing.assert_causal(whisper, (X,))

    def test_catches_leaks_that_only_large_changes_show(self):
        def stabilised(query, key):
            # exp underflows at t once a later key is large: the classic stabiliser taken over the whole sequence.
            scores = (query * key).sum(-1)
            weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=1, keepdims=True)))
            return jnp.cumsum(weights, axis=1) / (jnp.cumsum(weights, axis=1) + 1e-6)

        with pytest.raises(AssertionError, match="1000 times as large"):
            testing.assert_causal(stabilised, (X, X), atol=1e-3)

    def test_catches_nan_from_the_future(self):
        def overflows(x):
            return jnp.cumsum(x, axis=1) + 0.0 * jnp.exp(x[:, -1:] ** 2)

        with pytest.raises(AssertionError, match="changed by nan"):
            testing.assert_causal(overflows, (X,), check_gradients=False)

    def test_integers_and_booleans_are_replaced(self):
        with pytest.raises(AssertionError, match="tokens"):
            testing.assert_causal(lambda tokens: tokens + tokens[:, -1:], (TOKENS,))
        with pytest.raises(AssertionError, match="mask"):
            testing.assert_causal(
                lambda x, mask: x * mask.any(1)[:, None, None], (X, jnp.zeros((2, 8), bool))
            )
        with pytest.raises(ValueError, match="only the integer 3"):
            testing.assert_causal(lambda tokens: tokens, (jnp.full((2, 8), 3),))

    def test_parameters_are_left_alone(self):
        testing.assert_causal(lambda x, w: jnp.cumsum(x, 1) @ w, (X, jnp.ones((4, 8))), axis=(1, None))

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="at least two positions"):
            testing.assert_causal(lambda x: x, (X[:, :1],))
        with pytest.raises(ValueError, match=r"positions must lie in 0\.\.6"):
            testing.assert_causal(lambda x: x, (X,), positions=[7])
        with pytest.raises(ValueError, match="one entry for each of the 1 arguments"):
            testing.assert_causal(lambda x: x, (X,), axis=(1, 1))
        with pytest.raises(ValueError, match="axis 3 is out of range"):
            testing.assert_causal(lambda x: x, (X,), axis=3)
        with pytest.raises(ValueError, match="no sequence argument"):
            testing.assert_causal(lambda x: x, (X,), axis=(None,))
        with pytest.raises(AssertionError, match="not finite"):
            testing.assert_causal(lambda x: x * jnp.nan, (X,))


class TestLeaks:
    def test_where_a_convolution_with_encoder_padding_looks_ahead(self):
        def centred(x):
            padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
            return padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]

        report = testing.find_leaks(centred, (X,))
        assert not report.causal and report.lookahead == 1
        assert str(report).splitlines()[1:3] == ["x!......", "xx!....."]
        assert testing.find_leaks(lambda x: jnp.cumsum(x, 1), (X,)).causal

    def test_statistics_and_nan_reach_everything(self):
        assert testing.find_leaks(lambda x: x - x.mean(1, keepdims=True), (X,)).lookahead == 7
        report = testing.find_leaks(lambda x: jnp.where(x.sum() == X.sum(), x, jnp.nan), (X,))
        assert report.lookahead == 7 and np.isnan(report.change).all()

    def test_tolerance(self):
        assert not testing.find_leaks(lambda x: x + 1e-3 * x[:, -1:], (X,)).causal
        assert testing.find_leaks(lambda x: x + 1e-3 * x[:, -1:], (X,), atol=1.0).lookahead == 0

    def test_lengths_must_agree(self):
        with pytest.raises(ValueError, match="one length"):
            testing.find_leaks(lambda x, y: x, (X, X[:, :4]))

    @pytest.mark.parametrize("causal", [True, False])
    def test_whole_models(self, causal):
        """Of Flax NNX, Linen, and a plain function of tokens."""
        of_nnx = (Decoder if causal else Encoder)(1, 4, 2, rngs=nnx.Rngs(0))

        layer = linen.MultiHeadDotProductAttention(num_heads=2)
        mask = linen.make_causal_mask(X[..., 0]) if causal else None
        variables = layer.init(jax.random.key(0), X)

        def of_linen(x):
            return layer.apply(variables, x, mask=mask)

        table = jax.random.normal(jax.random.key(2), (11, 4))

        def of_tokens(tokens):
            return jax.nn.softmax(of_nnx(table[tokens]), axis=-1)

        for fn, x in ((of_nnx, X), (of_linen, X), (of_tokens, TOKENS)):
            fn = jax.jit(fn)
            assert testing.find_leaks(fn, (x,)).causal == causal
            if causal:
                testing.assert_causal(fn, (x,))
            else:
                with pytest.raises(AssertionError, match="not causal"):
                    testing.assert_causal(fn, (x,))


class TestPrefix:
    def test_accepts(self):
        testing.assert_prefix_matches(lambda x: jnp.cumsum(x, 1), (X,))
        testing.assert_prefix_matches(lambda x, w: jnp.cumsum(x, 1) @ w, (X, jnp.eye(4)), axis=(1, None))

    def test_catches_what_depends_on_the_length(self):
        def scaled(x):  # causal, yet generation would see other numbers
            return jnp.cumsum(x, axis=1) / x.shape[1]

        testing.assert_causal(scaled, (X,))
        with pytest.raises(AssertionError, match="prefix of length 1 gives another output"):
            testing.assert_prefix_matches(scaled, (X,))
        testing.assert_prefix_matches(scaled, (X,), lengths=[8])

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r"lengths must lie in 1\.\.8; got \[9\]"):
            testing.assert_prefix_matches(lambda x: x, (X,), lengths=[9])
        with pytest.raises(ValueError, match="one length"):
            testing.assert_prefix_matches(lambda x, y: x, (X, X[:, :4]))


class TestPadding:
    def test_accepts_masked_attention(self):
        def attend(query, key, value, mask):
            query, key, value = (jnp.where(mask[..., None], a, 0) for a in (query, key, value))
            return causal_softmax(query, key, value, valid=mask)

        testing.assert_padding_invariant(attend, (X, X + 1, X - 1))
        testing.assert_padding_invariant(attend, (X, X + 1, X - 1), lengths=(8, 3))

    def test_accepts_unbatched_tokens_and_pooled(self):
        table = jax.random.normal(jax.random.key(2), (11, 5))
        testing.assert_padding_invariant(lambda x, mask: jnp.where(mask[..., None], table[x], 0), (TOKENS,))
        testing.assert_padding_invariant(lambda x, mask: x * 2, (X[0, :, 0],), axis=0, out_axis=0)
        testing.assert_padding_invariant(
            lambda x, w, mask: (jnp.where(mask[..., None], x, 0) @ w).sum(1),
            (X, jnp.ones((4, 3))),
            axis=(1, None),
            out_axis=None,
        )

    def test_catches_content(self):
        with pytest.raises(AssertionError, match=r"reaches the output .* other values"):
            testing.assert_padding_invariant(lambda x, mask: x + x.mean(1, keepdims=True), (X,))

    def test_catches_nan_times_zero(self):
        def multiplies(x, mask):
            return (x * mask[..., None]).sum(1)

        with pytest.raises(AssertionError, match=r"the output is not finite .* holds NaN"):
            testing.assert_padding_invariant(multiplies, (X,), out_axis=None)
        testing.assert_padding_invariant(multiplies, (X,), out_axis=None, nan=False)

    def test_catches_length(self):
        def averages(x, mask):  # divides by the padded length
            return jnp.where(mask[..., None], x, 0).mean(1)

        with pytest.raises(AssertionError, match="3 longer"):
            testing.assert_padding_invariant(averages, (X,), out_axis=None)

    def test_catches_gradients(self):
        def late_where(x, mask):  # right values, but sqrt'(NaN) * 0 = NaN
            return jnp.where(mask[..., None], jnp.sqrt(jnp.abs(x) + 1), 0)

        with pytest.raises(AssertionError, match=r"padding gets a gradient .* NaN: that of argument 0 .*nan"):
            testing.assert_padding_invariant(late_where, (X,))
        testing.assert_padding_invariant(late_where, (X,), check_gradients=False)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="one length"):
            testing.assert_padding_invariant(lambda x, y, mask: x, (X, X[:, :4]))
        with pytest.raises(ValueError, match=r"lengths must be 2 integers in 1\.\.8"):
            testing.assert_padding_invariant(lambda x, mask: x, (X,), lengths=(8, 8))


class TestReference:
    def test_accepts_rounding(self):
        def reference(query, key, value):
            assert query.dtype == jnp.float64
            return causal_softmax(query, key, value)

        testing.assert_matches_reference(causal_softmax, reference, (X, X, X))
        half = X.astype(jnp.bfloat16)
        testing.assert_matches_reference(causal_softmax, reference, (half, half, half), rtol=5e-2)
        assert not jax.config.jax_enable_x64

    def test_numpy_reference_without_gradients(self):
        testing.assert_matches_reference(jnp.tanh, np.tanh, (X,), check_gradients=False)
        testing.assert_matches_reference(lambda t: t * 2, lambda t: t * 2, (TOKENS.astype(jnp.float32),))

    def test_names_what_differs(self):
        def wrong_gradient(query, key):
            return query * jax.lax.stop_gradient(key)

        with pytest.raises(
            AssertionError, match=r"gradient of argument 1 \(key\) .*max abs error .*max rel error"
        ) as e:
            testing.assert_matches_reference(wrong_gradient, lambda query, key: query * key, (X, X))
        assert "argument 0" not in str(e.value) and "the output" not in str(e.value)
        with pytest.raises(AssertionError, match="the output differs"):
            testing.assert_matches_reference(lambda x: x + 1e-3, lambda x: x, (X,))
        with pytest.raises(AssertionError, match=r"the output is nan instead of"):
            testing.assert_matches_reference(lambda x: x * jnp.nan, lambda x: x, (X,), check_gradients=False)
        with pytest.raises(AssertionError, match="float64 of shape"):
            testing.assert_matches_reference(lambda x: x, lambda x: x[0], (X,))
        with pytest.raises(AssertionError, match=r"has shape \(2, 8, 4\) instead of"):
            testing.assert_matches_reference(lambda x: x, lambda x: x[0], (X,), check_gradients=False)

    def test_relative_error_in_norm(self):
        def one_bad_element(x):
            return x.at[0, 0, 0].add(0.01)

        testing.assert_close_to_reference(
            one_bad_element, lambda x: x, (X,), max_error=1e-2, check_gradients=True
        )
        with pytest.raises(AssertionError, match=r"relative error 0\.00.* \(at most 0\.0001\)"):
            testing.assert_close_to_reference(one_bad_element, lambda x: x, (X,), max_error=1e-4)
        with pytest.raises(AssertionError, match="argument 0"):
            testing.assert_close_to_reference(
                jax.lax.stop_gradient, lambda x: x, (X,), max_error=1e-2, check_gradients=True
            )
        with pytest.raises(AssertionError, match="has shape"):
            testing.assert_close_to_reference(lambda x: x[0], lambda x: x, (X,), max_error=1.0)
        with pytest.raises(AssertionError, match="relative error nan"):
            testing.assert_close_to_reference(lambda x: x * jnp.nan, lambda x: x, (X,), max_error=1.0)


class TestDecode:
    @staticmethod
    def step(state, x):
        sums = state + jnp.cumsum(x, axis=1)
        return sums[:, -1:], sums

    @pytest.mark.parametrize("prefill", [1, 3, 8])
    def test_accepts(self, prefill):
        testing.assert_decode_matches(
            lambda x: jnp.cumsum(x, 1), lambda: jnp.zeros((2, 1, 4)), self.step, (X,), prefill=prefill
        )

    def test_names_first_position(self):
        def forgets(state, x):
            total, count = state
            total, out = self.step(total, x)
            return (total, count + 1), jnp.where(count == 5, 0.0, out)

        with pytest.raises(AssertionError, match="at position 5: the output differs"):
            testing.assert_decode_matches(
                lambda x: jnp.cumsum(x, 1), lambda: (jnp.zeros((2, 1, 4)), 0), forgets, (X,)
            )

    def test_growing_state(self):
        def grows(state, x):
            state = jnp.concatenate([state, x], axis=1)
            return state, state.sum(1, keepdims=True)

        with pytest.raises(AssertionError, match="shapes"):
            testing.assert_decode_matches(
                lambda x: jnp.cumsum(x, 1), lambda: jnp.zeros((2, 0, 4)), grows, (X,)
            )

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r"prefill must lie in 1\.\.8; got 0"):
            testing.assert_decode_matches(lambda x: x, lambda: 0, self.step, (X,), prefill=0)
        with pytest.raises(ValueError, match="one length"):
            testing.assert_decode_matches(lambda x: x, lambda: 0, self.step, (X, X[:, :2]))
