"""Softmax attention as a mechanism."""

import dataclasses
import re
from functools import partial
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxattn.core.checks import check_choice
from jaxattn.core.decode import step_on_parts
from jaxattn.core.inputs import AttentionInputs, LayerSizes
from jaxattn.core.mechanism import Flops, Mechanism, MechanismModule
from jaxattn.core.parameters import UndecayedParam, parameter
from jaxattn.core.registry import MechanismRow, register_mechanism
from jaxattn.softmax.attention import IMPLEMENTATIONS, dot_product_attention
from jaxattn.softmax.cache import dot_product_attention_init_state, dot_product_attention_step
from jaxattn.softmax.options import check_soft_cap
from jaxattn.softmax.reach import check_window

BACKENDS = tuple(name for name in IMPLEMENTATIONS if name)


@dataclasses.dataclass(frozen=True)
class Softmax(Mechanism):
    """softmax(s q·k) v, on the fastest kernel of the platform.

    Attributes:
        implementation: a backend of `jaxattn.dot_product_attention`; None chooses by platform and length.
        local_window_size: (left, right), or one number for both: token i attends to tokens i − left to i + right
            only.

        logits_soft_cap: c in c tanh(scores / c), applied before any bias; None for scores as they are.
        sinks: whether every head has a learned score that is added to the normaliser, at first 0, so that it need not
            attend to any token.

    Raises:
        ValueError: an option is not what it must be.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Attention, Softmax
        >>> attention = Attention(2, 8, mechanism=Softmax(implementation="blockwise"), rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((1, 5, 8)), is_causal=True).shape
        (1, 5, 8)
    """

    implementation: str | None = None
    local_window_size: int | tuple[int, int] | None = None
    logits_soft_cap: float | None = None
    sinks: bool = False

    def __post_init__(self):
        check_window(self.local_window_size)
        check_soft_cap(self.logits_soft_cap)
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        if not isinstance(self.sinks, bool):
            raise ValueError(f"sinks must be True or False; got {type(self.sinks).__name__}.")

    def build(self, sizes: LayerSizes, *, rngs: nnx.Rngs) -> "SoftmaxModule":
        """The module; it has no parameters but sinks."""
        return SoftmaxModule(self, sizes, rngs=rngs)

    def flops(self, length: int, num_heads: int, head_dim: int, num_kv_heads: int | None = None) -> Flops:
        """Scores and weighted values, 4 N T² H; the gradient has a product each for dv, the weights, dq and dk.

        With a window of W keys it is 4 N T W H: what is removed inside a block of scores is not counted.
        """
        left, right = (length if side is None else side for side in check_window(self.local_window_size))
        forward = 4 * num_heads * length * min(length, left + 1 + right) * head_dim
        return Flops(forward, 2 * forward)


class SoftmaxModule(MechanismModule):
    """Calls `dot_product_attention`; holds no parameters but sinks."""

    def __init__(self, config: Softmax, sizes: LayerSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes)
        self.implementation = config.implementation
        self.local_window_size = config.local_window_size
        self.logits_soft_cap = config.logits_soft_cap
        self.sinks = nnx.data(None)
        if config.sinks:
            zeros, heads = nnx.initializers.zeros_init(), sizes.num_heads
            self.sinks = parameter(
                zeros, rngs.params(), (heads,), ("heads",), sizes.param_dtype, UndecayedParam
            )

    @property
    def is_causal(self) -> bool:
        """Whether the window has no right side."""
        return check_window(self.local_window_size)[1] == 0

    @property
    def feels_common_bias(self) -> bool:
        """Whether it was made with sinks."""
        return self.sinks is not None

    def options(self) -> dict[str, Any]:
        """The arguments of `dot_product_attention` that are the mechanism's own, in a step too."""
        return {
            "local_window_size": self.local_window_size,
            "logits_soft_cap": self.logits_soft_cap,
            "sinks": None if self.sinks is None else self.sinks[...],
        }

    @property
    def takes(self) -> frozenset[str]:
        """Everything but a tree."""
        return frozenset({"bias", "pair_mask", "segment_ids", "context", "axis_name"})

    def attend(
        self, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> Float[Array, "B T N V"]:
        """Attends over the whole sequence.

        Raises:
            ValueError: a local window where the queries are other tokens than the keys.
        """
        length, key_length = query.shape[1], key.shape[1]
        elsewhere = length != key_length or given.query_inputs is not None
        if self.local_window_size is not None and elsewhere:
            raise ValueError(
                "local_window_size needs queries and keys of the same tokens; got T = "
                f"{length} and S = {key_length} (a context?). In a Flax layer with decode=True the positions of the "
                "queries are not known: decode with jaxattn.nn.Attention."
            )
        return dot_product_attention(
            query,
            key,
            value,
            key_bias=given.padding_key_bias(),
            mask=given.mask,
            bias=given.bias,
            segment_ids=given.segment_ids,
            is_causal=given.is_causal,
            implementation=self.implementation,
            axis_name=given.axis_name,
            **self.options(),
        )

    def init_state(self, batch: int, max_length: int, dtype: Any, *, gated: bool = False) -> Any:
        """An empty key-value cache."""
        return dot_product_attention_init_state(
            batch,
            max_length,
            self.sizes.kv_heads,
            self.sizes.head_dim,
            num_heads=self.sizes.num_heads if gated else None,
            dtype=dtype,
        )

    def step(
        self, state: Any, query: Array, key: Array, value: Array, given: AttentionInputs
    ) -> tuple[Any, Float[Array, "B T N V"]]:
        """Attends from the new tokens to the cache and to each other."""
        options = self.options()
        arrays = {
            "query": query,
            "key": key,
            "value": value,
            "key_bias": given.key_bias,
            "query_seq_lengths": given.num_new_tokens(),
            "sinks": options.pop("sinks"),
        }
        step: Any = partial(dot_product_attention_step, **options)
        if (axis := given.cache_axis) is None:
            return step(state, **arrays)
        return step_on_parts(step, axis, state, state.cut_by_position(axis), **arrays)


_OPTION = re.compile(r"window=(?P<left>\d+)(,(?P<right>\d+))?|cap=(?P<cap>\d+(\.\d+)?)|(?P<sinks>sinks)")


def _parse(*options: str) -> Softmax:
    names = [option.partition("=")[0] for option in options]
    if len(set(names)) < len(names):
        raise ValueError(f"an option of softmax may come once; got {':'.join(options)!r}")
    fields: dict[str, Any] = {}
    for option in options:
        found = _OPTION.fullmatch(option)
        if found is None:
            raise ValueError(
                f"options of softmax are window=LEFT, window=LEFT,RIGHT, cap=CAP and sinks; got {option!r}"
            )
        if found["left"]:
            left, right = found["left"], found["right"]
            fields["local_window_size"] = int(left) if right is None else (int(left), int(right))
        elif found["cap"]:
            fields["logits_soft_cap"] = float(found["cap"])
        else:
            fields["sinks"] = True
    return Softmax(**fields)


def _spell(mechanism: Softmax) -> tuple[str, ...]:
    window, cap = mechanism.local_window_size, mechanism.logits_soft_cap
    options = []
    if window is not None:
        sides = window if isinstance(window, tuple | list) else (window,)
        options.append(f"window={','.join(map(str, sides))}")
    if cap is not None:
        # Every digit and no exponent, whose plus would begin a gate.
        options.append(f"cap={np.format_float_positional(cap, trim='-')}")
    if mechanism.sinks:
        options.append("sinks")
    return tuple(options)


register_mechanism(
    MechanismRow(
        name="softmax",
        syntax="softmax[:window=LEFT[,RIGHT]][:cap=CAP][:sinks]",
        help="softmax over all tokens or a window around each (LEFT alone for both sides); scores bounded by CAP; a "
        "learned sink a head",
        mechanism=Softmax,
        parse=_parse,
        spell=_spell,
        implementations=BACKENDS,
    )
)
