"""What cross-attention attends to, with its projections computed once."""

import dataclasses
from typing import Any

from jaxattn.core.pytree import register


@register
@dataclasses.dataclass(frozen=True)
class ProjectedContext:
    """Keys and values of a context, from `Attention.project_context`: every later call projects queries alone.

    Attributes:
        key: (B, S, K, H).
        value: (B, S, K, H).
        inputs: the context itself, (B, S, D), 0 at padding: gates read it.
        token_mask: bool (B, S), True at real tokens; None if all are.
    """

    key: Any
    value: Any
    inputs: Any
    token_mask: Any = None
