"""The encoder with its head as functions of their parameters, and the loss of masked tokens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxattn_train.engine.functional import Functional, Params, compute_dtype, functionalize
from jaxattn_train.engine.loop import cross_entropy
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.pretrain.config import PretrainModel
from jaxattn_train.tasks.pretrain.data import Masked


def load_masked(model: PretrainModel) -> Any:
    """The pretrained model that --encoder names.

    Raises:
        UserError: no such model, files that cannot be read, no head, or no tokenizer.
    """
    from jaxattn.models import MaskedLanguageModel

    try:
        found = MaskedLanguageModel.from_pretrained(model.encoder, dtype=compute_dtype(model.dtype))
    except (ValueError, OSError, ImportError) as error:
        raise UserError(f"--encoder {model.encoder}: {error}") from error
    if found.encoder.tokenizer is None or found.encoder.tokenizer.mask_id is None:
        raise UserError(
            f"--encoder {model.encoder} must have a tokenizer.json with a mask token; it has none."
        )
    return found


def masked_model(pretrained: nnx.Module, length: int) -> tuple[Functional, Params]:
    """The model as functions, and its pretrained parameters."""
    graph, state = nnx.split(pretrained)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    start = {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(state)}

    def build(key: PRNGKeyArray) -> nnx.Module:
        # Zeros: weights of 100 MB must not become constants of the compiled initialisation.
        return nnx.merge(graph, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))

    tokens, places = jnp.zeros((1, length), jnp.int32), jnp.zeros((1, 1), jnp.int32)
    return functionalize(build, tokens, dropout=True, places=places), start


def make_losses(
    mask: Callable[[Array, PRNGKeyArray], Masked],
) -> tuple[
    Callable[[Functional, Params, Array, PRNGKeyArray], tuple[Float[Array, ""], Params]],
    Callable[[Functional, Params, Array], Float[Array, " B"]],
]:
    """The loss of training batches under new masks, and that of each validation window under masks that stay."""

    def train(model: Functional, params: Params, windows: Array, key: PRNGKeyArray) -> tuple[Array, Params]:
        mask_key, dropout_key = jax.random.split(key)
        masked = mask(windows, mask_key)
        logits, held = model.train_apply(params, masked.inputs, dropout_key, places=masked.places)
        losses = cross_entropy(logits, masked.targets) * masked.weights
        return losses.sum() / jnp.maximum(masked.weights.sum(), 1), held

    def validate(model: Functional, params: Params, windows: Array) -> Array:
        masked = mask(windows, jax.random.key(0))
        losses = cross_entropy(model.apply(params, masked.inputs, places=masked.places), masked.targets)
        return (losses * masked.weights).sum(-1) / jnp.maximum(masked.weights.sum(-1), 1)

    return train, validate
