"""The Inceptive head: parallel convolutions over the hidden states, attention, a pool and an MLP."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool

from jaxattn.convolution import multi_scale_conv
from jaxattn.core.checks import check_choice
from jaxattn.core.mechanism import Mechanism
from jaxattn.core.parameters import parameter
from jaxattn.core.registry import parse_mechanism
from jaxattn.nn.attention import Attention
from jaxattn.nn.heads import Head
from jaxattn.nn.layers import check_sizes, layer_norm, linear
from jaxattn.nn.pooling import Pooling
from jaxattn.softmax.mechanism import Softmax

ACTIVATIONS = {"relu": nnx.relu, "gelu": nnx.gelu, "silu": nnx.silu, "tanh": nnx.tanh}
NORMALIZATIONS = ("none", "batch", "layer")


class InceptiveHead(Head):
    r"""Convolutions of several widths beside the hidden states, self-attention over both, a pool and an MLP.

    With hidden states H (B, L, d), all over real tokens only:

    $$ C = \operatorname{activation}(\operatorname{norm}[\operatorname{conv}_w(H)]_{w \in kernels}), \quad
       X = [H, C], \quad y = \operatorname{pool}(\operatorname{attention}(X)), \quad
       logits = W_2 \operatorname{dropout}(\operatorname{LayerNorm}(\operatorname{relu}(W_1 y))), $$

    where X has the width d + filters · len(kernels).

    A sequence has the same logits however far it is padded, also in training with batch normalisation.
    `convolution=False` is the control to compare with: the same head on H alone.

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
        pooling: "mean", "max", "cls" or "attention"; see `Pooling`.
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
        >>> bool(jnp.allclose(head(hidden, mask)[1], head(hidden[1:, :4])[0], atol=1e-5))  # padding has no effect
        True

    Reference: arXiv 2505.20496, Inceptive transformers.
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
        self.features, self.activation, self.dtype = features, activation, dtype
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
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
            # With momentum 0.9 half of a running mean comes from the last 7 batches: fine-tuning takes few steps.
            norm = nnx.BatchNorm(
                channels,
                momentum=0.9,
                use_running_average=True,
                use_fast_variance=False,
                dtype=dtype,
                **options,
            )
        elif channels and normalization == "layer":
            norm = layer_norm(channels, dtype=dtype, **options)
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
            mechanism = Softmax() if mechanism is True else mechanism
            self.attention = nnx.data(
                Attention(num_heads, width, mechanism=mechanism, dtype=dtype, **options)
            )

        # 3. Pool and logits, in float32.
        self.pooling = Pooling(pooling, width, **options)
        self.hidden = linear(width, hidden_features, ("embed", "mlp"), dtype=jnp.float32, **options)
        self.hidden_norm = layer_norm(hidden_features, dtype=jnp.float32, **options)
        self.out = linear(hidden_features, num_classes, ("mlp", "classes"), dtype=jnp.float32, **options)
        self.dropout = nnx.Dropout(dropout, deterministic=True)

    def _logits(self, hidden: Array, token_mask: Array, **drop: Any) -> Array:
        x = self.dropout(jnp.where(token_mask[..., None], hidden, 0), **drop)
        if len(self.kernels):
            x = jnp.concatenate([x, self._convolved(x, token_mask, drop["deterministic"])], axis=-1)
        if self.attention is not None:
            x = self.attention(x, token_mask=token_mask)
        y = nnx.relu(self.hidden(self.pooling(x, token_mask)))
        return self.out(self.dropout(self.hidden_norm(y), **drop))

    def _convolved(self, x: Array, token_mask: Bool[Array, "B L"], deterministic: bool | None) -> Array:
        real = token_mask[..., None]
        y = multi_scale_conv(
            x, [k[...] for k in self.kernels], [b[...] for b in self.biases], mask=token_mask
        )
        if isinstance(self.norm, nnx.BatchNorm):
            y = self.norm(y, use_running_average=deterministic, mask=real)
        elif self.norm is not None:
            y = self.norm(y)
        return jnp.where(real, ACTIVATIONS[self.activation](y), 0)
