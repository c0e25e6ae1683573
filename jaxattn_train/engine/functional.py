"""A model as pure functions of a flat dictionary of arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxattn.core.parameters import HELD, axes_of, decays
from jaxattn.models import BackboneConfig
from jaxattn_train.cli.options import BackboneOptions
from jaxattn_train.errors import UserError

Params = dict[str, Array]
"""A model's arrays by dotted path, such as "decoder.blocks.0.attention.query.kernel"."""


class Functional(NamedTuple):
    """A model without hidden state: parameters in, logits out."""

    init: Callable[[PRNGKeyArray], Params]
    """Parameters from a key."""
    apply: Callable[..., Float[Array, "..."]]
    """(params, tokens (B, T), *, dropout_key=None, **inputs) -> logits; a key enables dropout. Inputs such as
    token_mask are passed to the module."""
    train_apply: Callable[..., tuple[Float[Array, "..."], Params]]
    """(params, tokens, dropout_key, **inputs) -> (logits, the arrays in `held` for the next step)."""
    module: Callable[[Params], Any]
    """The module that holds given parameters, for decoding."""
    axes: dict[str, tuple[str | None, ...]]
    """Logical axis names of every parameter."""
    shapes: dict[str, jax.ShapeDtypeStruct]
    """Shape and dtype of every parameter."""

    held: frozenset[str]
    """Names of the arrays that are not learned by gradient, such as the random numbers of a feature map."""
    decayed: frozenset[str]
    """Names of the parameters that weight decay applies to; see `jaxattn.core.parameters`."""

    def num_params(self) -> int:
        """How many numbers the model learns."""
        return sum(shape.size for name, shape in self.shapes.items() if name not in self.held)

    def split(self, params: Params) -> tuple[Params, Params]:
        """The arrays that are learned, and those that are held."""
        learned = {name: value for name, value in params.items() if name not in self.held}
        return learned, {name: params[name] for name in self.held}


def functionalize(
    build: Callable[[PRNGKeyArray], nnx.Module], tokens: Any, *, dropout: bool, **inputs: Any
) -> Functional:
    """Any module that maps tokens and other inputs to logits, as pure functions.

    Args:
        build: makes the module from a key.
        tokens: an example, or its shape, to trace the model with.
        dropout: whether a dropout key has any effect.
        **inputs: further inputs to trace it with.

    Returns:
        The model as functions of its parameters.

    Raises:
        UserError: what the model itself rejects, such as an unknown mechanism.
    """
    structure: dict[str, Any] = {}

    def init(key: PRNGKeyArray) -> Params:
        graphdef, *states = nnx.split(build(key), (nnx.Param, *HELD), ...)
        params, rest = states
        if jax.tree.leaves(rest):
            raise TypeError(
                f"a model may have variables of the types in jaxattn.core.parameters only; it also has {rest}"
            )
        variables = dict(nnx.to_flat_state(params))
        structure.setdefault("graphdef", graphdef)
        held = {_dotted(path) for path, variable in variables.items() if isinstance(variable, HELD)}
        structure.setdefault("held", frozenset(held))
        structure.setdefault("decayed", frozenset(_dotted(p) for p, v in variables.items() if decays(v)))
        structure.setdefault("paths", {_dotted(path): path for path in variables})
        structure.setdefault("axes", {_dotted(path): axes_of(v) for path, v in variables.items()})
        return {_dotted(path): variable[...] for path, variable in variables.items()}

    def module(params: Params) -> Any:
        paths: dict[str, tuple[Any, ...]] = structure["paths"]
        state = nnx.from_flat_state([(path, params[name]) for name, path in paths.items()])
        return nnx.merge(structure["graphdef"], state)

    def apply(
        params: Params, tokens: Int[Array, "B T"], *, dropout_key: PRNGKeyArray | None = None, **inputs: Any
    ) -> Float[Array, "..."]:
        return call(module(params), tokens, inputs, dropout_key)

    def call(model: Any, tokens: Array, inputs: dict[str, Any], dropout_key: Array | None) -> Array:
        if dropout_key is None or not dropout:
            return model(tokens, **inputs)
        return model(tokens, **inputs, deterministic=False, rngs=nnx.Rngs(dropout=dropout_key))

    def train_apply(
        params: Params, tokens: Int[Array, "B T"], dropout_key: PRNGKeyArray, **inputs: Any
    ) -> tuple[Float[Array, "..."], Params]:
        model = module(params)
        model.set_attributes(calibrating=True, raise_if_not_found=False)
        logits = call(model, tokens, inputs, dropout_key)
        after = nnx.to_flat_state(nnx.state(model, HELD))
        return logits, {_dotted(path): variable[...] for path, variable in after}

    try:
        # Traced only: finds the structure, and raises the model's own errors before anything is compiled.
        shapes = jax.eval_shape(init, jax.random.key(0))
        jax.eval_shape(lambda params, tokens, inputs: apply(params, tokens, **inputs), shapes, tokens, inputs)
    except ValueError as error:
        raise UserError(str(error)) from error
    return Functional(
        init, apply, train_apply, module, structure["axes"], shapes, structure["held"], structure["decayed"]
    )


def backbone(options: BackboneOptions, *, max_length: int, **more: Any) -> BackboneConfig:
    """The options as the configuration of a model's backbone.

    Args:
        options: from the command line.
        max_length: tokens of a sequence at most.
        **more: further fields.
    """
    return BackboneConfig(
        num_layers=options.num_layers,
        num_heads=options.num_heads,
        hidden_size=options.features,
        max_length=max_length,
        mechanism=options.attention,
        positions=options.positions,
        qk_norm=options.qk_norm,
        dropout=options.dropout,
        dtype=compute_dtype(options.dtype),
        scan_layers={"auto": None, "on": True, "off": False}[options.scan_layers],
        remat=options.remat,
        **more,
    )


def compute_dtype(name: str) -> Any:
    """The dtype of the computation; "auto" is bfloat16 on accelerators."""
    if name == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(name)


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
