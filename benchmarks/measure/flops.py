"""How much of the arithmetic a machine could do in the time is put to use."""

from typing import Any

from benchmarks.suites import feature_cases
from benchmarks.suites.cases import Case
from benchmarks.suites.prepared import Prepared

MATMUL_SIZE = 2048
MATMUL_FLOPS = 2 * MATMUL_SIZE**3
MATMUL = f"matmul {MATMUL_SIZE}"  # its name among the cases that take turns


def necessary_flops(case: Case) -> int | None:
    """Floating-point operations of the matrix products that attention by random features cannot do without.

    With T tokens, N query and K key/value heads of width H, M features from R rows of weights (R = M for most
    components), a product of (a, b) and (b, c) counting 2abc:

    - forward, 2 projections and 2 products: W q and W k, 2 B T (N + K) H R; Σ_j φ_k v' and φ_q·(that),
      2 B T (K + N) M H;
    - backward, 4 products and 2 projections: the cotangents of φ_q, φ_k, v and of the sum over keys,
      4 B T (N + K) M H; through W to q and k, 2 B T (N + K) H R.

    Not counted: features made again for the gradient, the pairs that the causal form takes one by one inside a
    chunk, the normaliser (one more column of v), a component's own rotation, and whatever is not a matrix product.
    Projections count as dense ones, also where the weights have a faster algorithm.

    Returns:
        The number, None for a mechanism other than features.
    """
    if not feature_cases.spells_features(case.mechanism):
        return None
    from jaxattn.random_features import COMPONENTS

    features = feature_cases.parse(case.mechanism)
    component = COMPONENTS[features.component]
    rows = component.rows_for(features.num_features)
    tokens = 2 * case.batch * case.length * (case.heads + case.kv_heads) * case.head_dim
    forward = tokens * (rows + features.num_features)
    backward = tokens * (rows + 2 * features.num_features)
    return {"forward": forward, "backward": backward, "both": forward + backward}[case.direction]


def big_matmul() -> Prepared:
    """The yardstick: one float32 product of two square matrices, at the platform's default precision."""
    import jax

    x = jax.random.normal(jax.random.key(0), (MATMUL_SIZE, MATMUL_SIZE))
    product = jax.jit(lambda x: x @ x).lower(x).compile()

    def run(_: Any, times: int) -> None:
        for _ in range(times):
            result = product(x)
        jax.block_until_ready(result)

    return Prepared(lambda: None, run)
