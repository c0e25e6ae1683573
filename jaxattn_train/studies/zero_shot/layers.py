"""A fine-tuned classifier run layer by layer, so that variants share what lies below the layers they replace."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxattn.nn import Mechanism, replace_attention
from jaxattn.random_features.mechanism import RandomFeaturesModule
from jaxattn.softmax.mechanism import SoftmaxModule
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.shared.recorder import Recorder

Layer = tuple[Any, Any]
"""A module as nnx.split gives it: its structure, equal for layers of one kind, and its arrays."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function of a module and arrays: of a split module, with one program for each structure."""

    @partial(jax.jit, static_argnums=0)
    def run(graph: Any, state: Any, *arrays: Array) -> Any:
        return function(nnx.merge(graph, state), *arrays)

    return run


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
        if not config.plain:
            raise UserError(
                f"--run must be of an encoder such as BERT, RoBERTa or DistilBERT; this is {config.model_type}, with "
                "relative or rotary positions, windows or shared layers, which this study leaves out."
            )
        self.layers = [nnx.split(block) for block in self.encoder.blocks]
        self._embeddings = nnx.split(self.encoder.embeddings)
        self._head = nnx.split(model.head)

    def states(self, tokens: Array, mask: Array) -> list[Array]:
        """The inputs (B, L, D) of all layers and the output of the last one, with softmax throughout."""
        found = [_embed(*self._embeddings, tokens)]
        for layer in self.layers:
            found.append(run_layer(*layer, found[-1], mask))
        return found

    def end(self, x: Array, mask: Array) -> Array:
        """Logits (B, outputs) from the output of the last layer."""
        return _classify(*self._head, x, mask)

    def run_from(self, number: int, layers: Sequence[Layer], x: Array, mask: Array) -> Array:
        """Logits from the input of layer `number`."""
        for layer in layers[number:]:
            x = run_layer(*layer, x, mask)
        return self.end(x, mask)

    def run(self, layers: Sequence[Layer], tokens: Array, mask: Array) -> Array:
        """The whole forward pass with the given layers: logits (B, outputs)."""
        return self.run_from(0, layers, _embed(*self._embeddings, tokens), mask)

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
        independent: bool = False,
    ) -> list[Layer]:
        """The layers of a variant; random features take the statistics of a batch's queries and keys.

        Args:
            replaced: from `replaced`.
            numbers: the layers that are taken from there; the others keep softmax.
            states: of the batch, from `states`.
            mask: of the batch.
            independent: a layer's statistics are of what it sees in the softmax model; otherwise of what the layers
                below give it here, which `jaxattn.models.calibrate` finds in as many passes as there are layers.
        """
        layers = [replaced[n] if n in numbers else layer for n, layer in enumerate(self.layers)]
        if not any(_has_statistics(layers[n]) for n in numbers):
            return layers
        x = states[min(numbers)]
        for n in range(min(numbers), max(numbers) + 1):
            x = states[n] if independent else x
            if n in numbers:
                block = nnx.merge(*replaced[n], copy=True)  # other sets of layers start from it too
                mechanism = nnx.split(block.attention.mechanism)
                nnx.update(
                    block.attention.mechanism,
                    _calibrated(*mechanism, *query_key(*self.layers[n], x, mask), mask),
                )
                layers[n] = nnx.split(block)
            x = x if independent else run_layer(*layers[n], x, mask)
        return layers


@compiled
def run_layer(block: Any, x: Array, mask: Array) -> Array:
    """One layer."""
    return block(x, token_mask=mask)


@compiled
def query_key(block: Any, x: Array, mask: Array) -> tuple[Array, Array]:
    """Queries and keys (B, L, N, H) of one layer as they enter its attention."""
    recorder = block.attention.mechanism = Recorder(block.attention.mechanism)
    block(x, token_mask=mask)
    return recorder.seen.query, recorder.seen.key


@compiled
def _embed(embeddings: Any, tokens: Array) -> Array:
    return embeddings(tokens, None, deterministic=True, rngs=None)


@compiled
def _classify(head: Any, x: Array, mask: Array) -> Array:
    return head(x, mask, deterministic=True).astype(jnp.float32)


@compiled
def _calibrated(mechanism: Any, query: Array, key: Array, mask: Array) -> Any:
    """The arrays of a mechanism with the statistics of these queries and keys."""
    mechanism.calibrate(query, key, mask)
    return nnx.state(mechanism)


def _has_statistics(layer: Layer) -> bool:
    mechanism = nnx.merge(*layer).attention.mechanism
    return isinstance(mechanism, RandomFeaturesModule) and mechanism.feature_map.component.calibrates
