"""The Inceptive head: convolutions of several widths beside the hidden states, attention over both, and a pool."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxattn.convolution import multi_scale as multi_scale_conv
from jaxattn.core.checks import check_choice
from jaxattn.core.mechanism import Mechanism
from jaxattn.core.parameters import parameter
from jaxattn.nn.attention import Attention
from jaxattn.nn.heads import Head, TokenMask, check_sizes, linear, pool
from jaxattn.nn.spelling import parse_mechanism
from jaxattn.nn.transformer import layer_norm
from jaxattn.softmax.mechanism import Softmax

ACTIVATIONS = {"relu": nnx.relu, "gelu": nnx.gelu, "silu": nnx.silu, "tanh": nnx.tanh}
NORMALIZATIONS = ("none", "batch", "layer")
POOLINGS = ("mean", "cls", "attention")


class InceptiveHead(Head):
    """Sees phrases of several lengths at once: what an Inception block does for pictures, for hidden states.

    With hidden states H (B, L, d), all over real tokens only:

        C = activation(norm([conv_w(H) for w in kernels])),   X = [H, C]   of width d + filters · len(kernels),
        Y = self-attention(X),   y = pool(Y),   logits = W₂ dropout(LayerNorm(relu(W₁ y))).

    Padding changes nothing: a sequence has the same logits however far it is padded, also in training with batch
    normalisation. `convolution=False` is the fair control: the same head on H alone.

    Args:
        features: width d of the hidden states.
        num_classes: number of logits.
        kernels: widths of the convolutions, in tokens.
        filters: channels of each convolution.
        num_heads: heads of the attention; must divide its width.
        normalization: of the convolutions' channels: "none"; "batch", by the statistics of the real tokens of a
            batch, in evaluation by their running means; "layer", over the channels of each token.
        activation: "relu", "gelu", "silu" or "tanh".
        convolution: False for no convolutions.
        attention: the attention inside: a mechanism or its spelling, such as "softmax" or "tree:16x4"; True for
            softmax, False or None for no attention.
        pooling: "mean" over the tokens, "cls" for the first one, "attention" for a mean with learned weights,
            softmax(Y w).
        hidden_features: width of the hidden layer before the logits.
        dropout: probability, on the hidden states and before the last layer.
        dtype: dtype of the convolutions and of the attention; None follows the input. The layers after the pool are
            computed in float32.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Raises:
        ValueError: an unknown name, no kernels, a size below 1, or a number of heads that does not divide the width.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import InceptiveHead
        >>> head = InceptiveHead(16, 3, kernels=(2, 3), filters=8, num_heads=4, rngs=nnx.Rngs(0))
        >>> hidden, mask = jnp.ones((2, 6, 16)), jnp.arange(6) < jnp.array([[6], [4]])
        >>> head(hidden, mask).shape
        (2, 3)
        >>> head.relevance(hidden, mask).shape
        (2, 6)
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        *,
        kernels: Sequence[int] = (2, 3, 5, 7),
        filters: int = 32,
        num_heads: int = 8,
        normalization: str = "none",
        activation: str = "relu",
        convolution: bool = True,
        attention: Mechanism | str | bool | None = True,
        pooling: str = "mean",
        hidden_features: int = 512,
        dropout: float = 0.3,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("pooling", pooling, POOLINGS)
        check_sizes(
            dropout=dropout,
            features=features,
            num_classes=num_classes,
            filters=filters,
            num_heads=num_heads,
            hidden_features=hidden_features,
        )
        if convolution and (not len(kernels) or min(kernels) < 1):
            raise ValueError(f"kernels must be one or more widths of at least 1; got {tuple(kernels)}.")
        self.features, self.pooling, self.activation, self.dtype = features, pooling, activation, dtype
        widths = tuple(kernels) if convolution else ()
        channels = filters * len(widths)
        width = features + channels

        # 1. Convolutions.
        init = nnx.initializers.lecun_normal()
        self.kernels = nnx.List(
            [
                parameter(init, rngs.params(), (w, features, filters), (None, "embed", None), param_dtype)
                for w in widths
            ]
        )
        zeros = nnx.initializers.zeros_init()
        self.biases = nnx.List(
            [parameter(zeros, rngs.params(), (filters,), (None,), param_dtype) for _ in widths]
        )
        norm: nnx.Module | None = None
        if channels and normalization == "batch":
            # Half of the running mean is of the last 7 batches: fine-tuning takes hundreds of steps, not thousands.
            norm = nnx.BatchNorm(
                channels,
                momentum=0.9,
                use_fast_variance=False,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
        elif channels and normalization == "layer":
            norm = layer_norm(channels, dtype, param_dtype, rngs)
        self.norm = nnx.data(norm)

        # 2. Attention.
        self.attention = nnx.data(None)
        if attention is not None and attention is not False:
            if width % num_heads:
                accepted = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0 and n <= 64)
                raise ValueError(
                    f"num_heads must divide the width of the head, features + filters x kernels = {width}; "
                    f"got {num_heads}, accepted: {accepted}."
                )
            mechanism = parse_mechanism(attention) if isinstance(attention, str) else attention
            self.attention = nnx.data(
                Attention(
                    num_heads,
                    width,
                    mechanism=Softmax() if mechanism is True else mechanism,
                    dtype=dtype,
                    param_dtype=param_dtype,
                    rngs=rngs,
                )
            )

        # 3. Pool and logits.
        weights = None
        if pooling == "attention":
            # From 0: at the start it is the mean.
            weights = parameter(zeros, rngs.params(), (width,), ("embed",), param_dtype)
        self.pooling_weights = nnx.data(weights)
        self.hidden = linear(width, hidden_features, ("embed", "mlp"), param_dtype, rngs)
        self.hidden_norm = layer_norm(hidden_features, jnp.float32, param_dtype, rngs)
        self.out = linear(hidden_features, num_classes, ("mlp", "classes"), param_dtype, rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self,
        hidden: Float[Array, "B L d"],
        attention_mask: TokenMask = None,
        *,
        deterministic: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B classes"]:
        """Logits of the classes.

        Args:
            hidden: the encoder's last hidden states.
            attention_mask: True or 1 at real tokens; None if all are real.
            deterministic: no dropout, and batch normalisation by its running statistics. Otherwise these are updated.
            rngs: holds the stream "dropout" unless `deterministic`.

        Returns:
            Logits in float32.

        Raises:
            ValueError: hidden states of another width, or a mask of another shape.
        """
        mask = self._token_mask(hidden, attention_mask)
        drop: dict[str, Any] = {"deterministic": deterministic, "rngs": rngs}
        x = hidden if self.dtype is None else hidden.astype(self.dtype)
        x = self.dropout(jnp.where(mask[..., None], x, 0), **drop)
        if len(self.kernels):
            x = jnp.concatenate([x, self._convolved(x, mask, deterministic)], axis=-1)
        if self.attention is not None:
            x = self.attention(x, token_mask=mask)
        y = nnx.relu(self.hidden(self._pooled(x, mask)))
        return self.out(self.dropout(self.hidden_norm(y), **drop))

    def _convolved(self, x: Array, mask: Bool[Array, "B L"], deterministic: bool) -> Array:
        y = multi_scale_conv(x, [k[...] for k in self.kernels], [b[...] for b in self.biases], mask=mask)
        if isinstance(self.norm, nnx.BatchNorm):
            y = self.norm(y, use_running_average=deterministic, mask=mask[..., None])
        elif self.norm is not None:
            y = self.norm(y)
        return jnp.where(mask[..., None], ACTIVATIONS[self.activation](y), 0)

    def _pooled(self, x: Array, mask: Bool[Array, "B L"]) -> Array:
        if self.pooling_weights is None:
            return pool(x, mask, self.pooling)
        scores = x.astype(jnp.float32) @ self.pooling_weights[...].astype(jnp.float32)
        weights = jax.nn.softmax(scores, axis=-1, where=mask)
        return jnp.einsum("bl,bld->bd", weights, jnp.where(mask[..., None], x, 0))
