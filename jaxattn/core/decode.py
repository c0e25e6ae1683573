"""Checks that the decoding functions of all families share."""


def check_sizes(*, num_kv_heads: int, num_heads: int | None, **sizes: int) -> int:
    """Raises unless all sizes of a decoding state are positive and K divides N; returns `num_heads`, K for None."""
    num_heads = num_kv_heads if num_heads is None else num_heads
    for name, size in {**sizes, "num_kv_heads": num_kv_heads, "num_heads": num_heads}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}.")
    if num_heads % num_kv_heads:
        raise ValueError(f"num_heads must be a multiple of num_kv_heads = {num_kv_heads}; got {num_heads}.")
    return num_heads
