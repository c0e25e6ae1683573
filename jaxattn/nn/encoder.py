"""A stack of bidirectional blocks."""

from jaxattn.nn.stack import Stack


class Encoder(Stack):
    """A stack of bidirectional blocks and a final normalisation.

    Args:
        num_layers: number of blocks.
        features: width D.
        num_heads: query heads.

    The other keywords are those of `TransformerBlock`, and:

        scan_layers: scan over the blocks, so that the time to compile does not grow with their number; None for 4
            layers or more. Their parameters then have a leading axis of layers; see `ScannedBlocks`.
        remat: what is rematerialised in the backward pass: "none"; "full" for all but the input of each block; "dots"
            for all but that and the products with learned matrices.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.nn import Encoder
        >>> encoder, x = Encoder(2, 8, 2, rngs=nnx.Rngs(0)), jnp.arange(40.0).reshape(1, 5, 8)
        >>> padded = encoder(x, token_mask=jnp.array([[True, True, True, False, False]]))
        >>> bool(jnp.allclose(padded[:, :3], encoder(x[:, :3]), atol=1e-5))
        True
    """

    is_causal = False
