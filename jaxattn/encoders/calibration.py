"""Calibration of random features on a batch of texts."""

from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from jaxattn.core.arrays import ArrayLike, TokenMask
from jaxattn.random_features.mechanism import RandomFeaturesModule

Model = TypeVar("Model", bound=nnx.Module)


def calibrate(
    model: Model,
    input_ids: Int[ArrayLike, "B L"],
    attention_mask: TokenMask = None,
    *,
    passes: int = 2,
    **call: Any,
) -> Model:
    """A copy of the model whose random features are fitted to the queries and keys of a batch.

    Components with statistics (oprf, saderf, …) start without any. Each pass recomputes the statistics from
    the layers' inputs under those of the pass before.

    Args:
        model: with `RandomFeatures` in some layers; it stays as it is. It is called as
            `model(input_ids, attention_mask)`.
        input_ids: token ids of typical texts.
        attention_mask: True at tokens, False at padding; None if nothing is padding.
        passes: passes over the batch. With random features in all n layers, n passes make every layer's statistics
            those of its final input.
        **call: more keywords of the model's call.

    Returns:
        The fitted copy.

    Raises:
        ValueError: no layer has random features with statistics, or passes below 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import EncoderConfig, TextEncoder, calibrate
        >>> from jaxattn.nn import RandomFeatures, replace_attention
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32}
        >>> layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = EncoderConfig.from_dict({"model_type": "bert", **sizes, **layers})
        >>> encoder = replace_attention(TextEncoder(config, rngs=nnx.Rngs(0)), RandomFeatures(num_features=16))
        >>> encoder = calibrate(encoder, jnp.array([[2, 7, 9, 3]]), passes=1)
        >>> encoder(jnp.array([[2, 7, 9, 3]])).shape
        (1, 4, 16)
    """
    if passes < 1:
        raise ValueError(f"passes must be at least 1; got {passes}.")
    fitted = nnx.clone(model)
    found = [
        module
        for _, module in nnx.iter_modules(fitted)
        if isinstance(module, RandomFeaturesModule) and module.feature_map.component.calibrates
    ]
    if not found:
        raise ValueError("model must have random features with statistics in some layer; none has.")
    mask = jnp.ones(input_ids.shape, bool) if attention_mask is None else jnp.asarray(attention_mask) != 0

    @nnx.jit
    def run(model: nnx.Module, input_ids: Array, mask: Array) -> None:
        model(input_ids, mask, **call)

    for module in found:
        module.calibrating = True
    for _ in range(passes):
        for module in found:
            module.calls[...] = jnp.zeros(())  # forget the pass before
        run(fitted, jnp.asarray(input_ids), mask)
    for module in found:
        module.calibrating = False
    return fitted
