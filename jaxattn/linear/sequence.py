"""Linear attention of tokens that are cut among devices: what is summed up elsewhere."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxattn.core.call import Call
from jaxattn.core.sequence import exclusive_scan
from jaxattn.linear.heads import over_batch
from jaxattn.linear.passes import empty_state, key_pass
from jaxattn.linear.plan import Parameters, Plan
from jaxattn.linear.sums import State, merge


def keys_elsewhere(plan: Plan, parameters: Parameters, x: Call, axis_name: str, reverse: bool) -> State:
    """The sums over the keys of earlier devices if causal, else of all others; every array is (B, K, …).

    Args:
        plan: of the call.
        parameters: of the features.
        x: this device's part, as `chunked_attention` takes it.
        axis_name: over which the tokens are cut.
        reverse: whether the tokens are reversed, so that later devices are the earlier ones.
    """
    segment = None
    if x.segment_ids is not None:
        ids = x.segment_ids[1]
        segment = ids[:, -1]
        # Of earlier segments nobody elsewhere sees anything.
        same = (ids == ids[:, -1:])[:, :, None, None]
        x = x.replace(key_bias=jnp.where(same, x.key_bias, -jnp.inf), segment_ids=None)
    own = over_batch(plan, lambda x: key_pass(plan, parameters, x, empty_state(plan, parameters, x))[0], x)
    empty = jax.tree.map(jnp.zeros_like, own)._replace(top=jnp.full_like(own.top, -jnp.inf))
    scan = partial(exclusive_scan, merge, empty, own, axis_name)
    if not plan.is_causal:
        return merge(scan(), scan(reverse=True))
    if segment is None:
        return scan(reverse=reverse)
    state, segment = scan(segment=segment, reverse=reverse)
    return state._replace(segment=segment)
