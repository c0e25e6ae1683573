"""Options of softmax attention that no other family has, checked."""

from typing import Any

from jaxattn.core.call import Call
from jaxattn.softmax.reach import check_query_offset, check_window


def with_options(call: Call, *, local_window_size: Any = None, query_offset: Any = None) -> Call:
    """The call with options of softmax attention; see `dot_product_attention`.

    Raises:
        ValueError: one is not what it must be.
    """
    call = call.replace(window=check_window(local_window_size))
    offset = check_query_offset(query_offset, call.query.shape[0], call.batched, call.reach)
    return call.replace(query_offset=offset)
