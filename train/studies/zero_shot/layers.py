"""A fine-tuned classifier run layer by layer: layers of one kind share a program, variants what lies below."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxattn.nn import Mechanism, MechanismModule, replace_attention
from jaxattn.random_features.mechanism import RandomFeaturesModule
from jaxattn.softmax.mechanism import SoftmaxModule
from train.errors import UserError

Layer = tuple[Any, Any]
"""A block as nnx.split gives it: its structure, equal for layers of one kind, and its arrays."""


class LayeredClassifier:
    """Embedding, layers and head of a fine-tuned classifier.

    Args:
        model: the `TextClassifier`.

    Attributes:
        layers: with softmax, as it was trained.

    Raises:
        UserError: its attention is more than softmax(q·k) over all tokens, so that there is nothing to approximate.
    """

    def __init__(self, model: Any):
        self.encoder = model.encoder
        config = self.encoder.config
        if not all(isinstance(block.attention.mechanism, SoftmaxModule) for block in self.encoder.blocks):
            raise UserError(
                "--run must be of an encoder with softmax in all layers; this one has another attention."
            )
        if config.relative is not None or config.modern is not None:
            raise UserError(
                f"--run must be of an encoder such as BERT, RoBERTa or DistilBERT; this is {config.model_type}, with "
                "relative positions or windows that trees and random features cannot keep."
            )
        self.layers = [nnx.split(block) for block in self.encoder.blocks]
        self._embeddings = nnx.split(self.encoder.embeddings)
        self._head = nnx.split(model.head)

    def begin(self, tokens: Array) -> Array:
        """Token ids (B, L) to the input of the first layer, (B, L, D)."""
        return _embed(*self._embeddings, tokens)

    def end(self, x: Array, mask: Array) -> Array:
        """What the last layer gives to logits (B, outputs)."""
        return _classify(*self._head, x, mask)

    def states(self, tokens: Array, mask: Array) -> list[Array]:
        """The inputs of all layers and the output of the last one, with softmax throughout."""
        found = [self.begin(tokens)]
        for layer in self.layers:
            found.append(run_layer(*layer, found[-1], mask))
        return found

    def run(self, layers: Sequence[Layer], tokens: Array, mask: Array) -> Array:
        """The whole forward pass with the given layers: logits (B, outputs)."""
        return self.run_from(0, layers, self.begin(tokens), mask)

    def run_from(self, number: int, layers: Sequence[Layer], x: Array, mask: Array) -> Array:
        """Logits from the input of layer `number`."""
        for layer in layers[number:]:
            x = run_layer(*layer, x, mask)
        return self.end(x, mask)

    def replaced(self, mechanism: Mechanism, seed: int = 0) -> list[Layer]:
        """All layers with the mechanism in place of softmax; `fitted` chooses among them."""
        changed = replace_attention(self.encoder, mechanism, rngs=nnx.Rngs(seed))
        return [nnx.split(block) for block in changed.blocks]

    def fitted(
        self,
        replaced: Sequence[Layer],
        numbers: Sequence[int],
        states: Sequence[Array],
        mask: Array,
        *,
        apart: bool = False,
    ) -> list[Layer]:
        """The layers of a variant, random features with the statistics of a batch's queries and keys.

        Args:
            replaced: from `replaced`.
            numbers: the layers that are taken from there; the others keep softmax.
            states: of the batch, from `states`.
            mask: of the batch.
            apart: a layer's statistics are of what it sees in the softmax model; otherwise of what the layers below
                give it here, which `jaxattn.models.calibrate` finds in as many passes as there are layers.
        """
        layers = list(self.layers)
        for number in numbers:
            layers[number] = replaced[number]
        if not any(_has_statistics(layers[number]) for number in numbers):
            return layers
        x = states[min(numbers)]
        for number in range(min(numbers), max(numbers) + 1):
            x = states[number] if apart else x
            if number in numbers:
                block = nnx.merge(*replaced[number], copy=True)  # other sets of layers start from it too
                mechanism = nnx.split(block.attention.mechanism)
                seen = query_key(*self.layers[number], x, mask)
                nnx.update(block.attention.mechanism, _calibrated(*mechanism, *seen, mask))
                layers[number] = nnx.split(block)
            x = x if apart else run_layer(*layers[number], x, mask)
        return layers


@partial(jax.jit, static_argnums=0)
def run_layer(graph: Any, state: Any, x: Array, mask: Array) -> Array:
    """One layer."""
    return nnx.merge(graph, state)(x, token_mask=mask)


@partial(jax.jit, static_argnums=0)
def query_key(graph: Any, state: Any, x: Array, mask: Array) -> tuple[Array, Array]:
    """Queries and keys (B, L, N, H) of one layer as they come to its attention."""
    block = nnx.merge(graph, state)
    recorder = block.attention.mechanism = _Recorder(block.attention.mechanism.sizes)
    block(x, token_mask=mask)
    return recorder.seen


class _Recorder(MechanismModule):
    """Keeps queries and keys, and gives values back as they are."""

    def attend(self, query: Any, key: Any, value: Any, given: Any) -> Any:
        self.seen = nnx.data((query, key))
        return value

    def init_state(self, *args: Any) -> Any:
        raise NotImplementedError("a recorder does not decode.")

    def step(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError("a recorder does not decode.")


@partial(jax.jit, static_argnums=0)
def _embed(graph: Any, state: Any, tokens: Array) -> Array:
    return nnx.merge(graph, state)(tokens, None, deterministic=True, rngs=None)


@partial(jax.jit, static_argnums=0)
def _classify(graph: Any, state: Any, x: Array, mask: Array) -> Array:
    return nnx.merge(graph, state)(x, mask, deterministic=True).astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def _calibrated(graph: Any, state: Any, query: Array, key: Array, mask: Array) -> Any:
    """The arrays of a mechanism with the statistics of these queries and keys."""
    mechanism = nnx.merge(graph, state)
    mechanism.calibrate(query, key, mask)
    return nnx.state(mechanism)


def _has_statistics(layer: Layer) -> bool:
    mechanism = nnx.merge(*layer).attention.mechanism
    return isinstance(mechanism, RandomFeaturesModule) and mechanism.feature_map.component.calibrates
