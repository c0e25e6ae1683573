"""Pretrained text encoders: from token ids to one vector a token."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxattn.core.arrays import ArrayLike, TokenMask
from jaxattn.core.checks import unknown_or
from jaxattn.encoders.biased import PairBias
from jaxattn.encoders.blocks import make_block
from jaxattn.encoders.config import EncoderConfig
from jaxattn.encoders.deberta.convolution import ConvolutionBranch
from jaxattn.encoders.deberta.relative import RelativeEmbeddings
from jaxattn.encoders.embeddings import TextEmbeddings
from jaxattn.encoders.hub import find_folder
from jaxattn.encoders.layers import make_norm
from jaxattn.encoders.pretrained import Placement, load_parameters, save_encoder
from jaxattn.encoders.tokenizer import Ids, Mask, TextTokenizer, needed
from jaxattn.nn.stack import check_tree
from jaxattn.tree import Tree

logger = logging.getLogger(__name__)


class TextEncoder(nnx.Module):
    """A pretrained encoder with any attention: token ids to one vector a token.

    The families are BERT, RoBERTa (with XLM-R, CamemBERT, BERTweet), DistilBERT, ELECTRA, ALBERT, MPNet, DeBERTa-v2
    and v3, ModernBERT, Nomic-BERT, GTE and JinaBERT. Every layer attends by a `jaxattn.nn.Attention`, with softmax at
    first; `jaxattn.nn.replace_attention` and `jaxattn.nn.inject` put other mechanisms in. In DeBERTa, MPNet and
    JinaBERT a mechanism without scores cannot keep the relative positions and raises (see `BiasedAttention`), and in
    ModernBERT's local layers it attends to the whole text. ALBERT's layers share the weights of one block.
    A text has the same vectors however far it is padded.

    The constructor draws random weights; `TextEncoder.from_pretrained` loads those of a checkpoint.

    Args:
        config: sizes and options, such as `EncoderConfig.from_dict` of a config.json.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
        rngs: random streams for the initial values.

    Attributes:
        config: as given.
        embeddings: of words and positions.
        blocks: the layers, in order.
        tokenizer: the contents of the tokenizer's files; None without any.
        left_out: names of the checkpoint's tensors that belong to heads and were not loaded.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import EncoderConfig, TextEncoder
        >>> from jaxattn.nn import EnergyGated, replace_attention
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32}
        >>> layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = EncoderConfig.from_dict({"model_type": "bert", **sizes, **layers})
        >>> encoder = replace_attention(TextEncoder(config, rngs=nnx.Rngs(0)), EnergyGated())
        >>> input_ids = jnp.array([[2, 7, 9, 3, 0]])
        >>> encoder(input_ids, input_ids > 0).shape
        (1, 5, 16)
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.tokenizer: TextTokenizer | None = None
        self.left_out: tuple[str, ...] = ()
        self.embeddings = TextEmbeddings(config, **options)
        relative: RelativeEmbeddings | PairBias | None = None
        if config.relative is not None:
            relative = RelativeEmbeddings(config, **options)
        elif config.pair_bias:
            relative = PairBias(config, **options)
        self.relative = nnx.data(relative)
        self.convolution = nnx.data(
            None if config.convolution is None else ConvolutionBranch(config, **options)
        )
        self.blocks = nnx.List([make_block(config, layer, **options) for layer in range(config.num_blocks)])
        self.norm = nnx.data(make_norm(config, **options) if config.layout.pre_norm else None)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        sharding: jax.sharding.Sharding | Placement | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
    ) -> "TextEncoder":
        """Loads a checkpoint: config.json, model.safetensors (or its shards) and tokenizer.json, if there is one.

        Pickled weights are never read. Tensors of heads are skipped and named in `left_out` and in the log.

        Args:
            name_or_path: a folder, or the name of a repository of the Hugging Face hub, which is downloaded.
            revision: branch, tag or commit of the repository.
            dtype: dtype of the computation.
            param_dtype: dtype of the parameters.
            sharding: where parameters go: one sharding for all, or a function from a parameter's path, the names of
                its axes ("embed", "mlp", "heads", "vocab", …) and its shape to its sharding. No device ever holds a
                whole parameter that is sharded. None for the default device.
            local_files_only: no download.
            cache_dir: the download cache; None for the usual one.

        Returns:
            The encoder.

        Raises:
            ValueError: the files do not fit each other, cannot be read, or hold a model that is not supported.
            FileNotFoundError: not downloaded yet, and there is no connection.
            ImportError: the extra is missing: pip install 'jaxattn[pretrained]'.

        Examples:
            >>> import tempfile
            >>> from flax import nnx
            >>> from jaxattn.models import EncoderConfig, TextEncoder
            >>> sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32}
            >>> layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
            >>> config = EncoderConfig.from_dict({"model_type": "bert", **sizes, **layers})
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     TextEncoder(config, rngs=nnx.Rngs(0)).save_pretrained(folder)
            ...     encoder = TextEncoder.from_pretrained(folder)
            >>> encoder.config.hidden_size
            16
        """
        folder = find_folder(
            name_or_path, revision=revision, local_files_only=local_files_only, cache_dir=cache_dir
        )
        config = EncoderConfig.from_folder(folder)
        # Shapes only: no random weights are drawn.
        encoder = nnx.eval_shape(lambda: cls(config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)))
        encoder, left_out = load_parameters(encoder, folder, config, param_dtype, sharding)
        encoder.tokenizer = TextTokenizer.load(folder)
        encoder.left_out = left_out
        if left_out:
            logger.info("left out of %s: %s", folder, ", ".join(left_out))
        return encoder

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json, model.safetensors and the tokenizer's files, as transformers reads them.

        Args:
            folder: created if it does not exist.

        Raises:
            ValueError: a layer does not attend by softmax, which these files cannot express. Save such a model's
                `nnx.state` as a checkpoint instead.
        """
        save_encoder(self, self.config, Path(folder))
        if self.tokenizer is not None:
            self.tokenizer.save(Path(folder))

    def tokenize(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to: int | None = None,
    ) -> tuple[Ids, Mask]:
        """Token ids of texts, with the model's special tokens, padded on the right.

        Args:
            texts: one string or more.
            max_length: the longest text allowed, in tokens with the special ones; None for the model's limit.
            truncation: cut longer texts at their end; otherwise they raise.
            pad_to: width L of the result; None for the longest text's.

        Returns:
            input_ids (B, L) int32 and attention_mask (B, L), True at tokens and False at padding.

        Raises:
            ValueError: no text, one that is no string, has a lone surrogate or is too long, a limit beyond the
                model's, or a model without tokenizer.json.
        """
        input_ids, attention_mask, _ = self._tokenize(texts, None, max_length, truncation, pad_to)
        return input_ids, attention_mask

    def tokenize_pairs(
        self,
        first: Sequence[str],
        second: Sequence[str],
        *,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to: int | None = None,
    ) -> tuple[Ids, Mask, Ids]:
        """Token ids of pairs of texts, one row a pair.

        Args:
            first: the first texts.
            second: as many second texts.
            max_length: see `tokenize`; for both texts together.
            truncation: cut the longer text of a pair, token by token, until the pair is short enough.
            pad_to: see `tokenize`.

        Returns:
            input_ids, attention_mask and token_type_ids (B, L) int32, which tell the texts apart in families that do.

        Raises:
            ValueError: as for `tokenize`, or numbers of texts that differ.
        """
        if isinstance(first, str) or isinstance(second, str) or len(first) != len(second):
            raise ValueError(
                f"first and second must be lists of as many texts; got {len(first)} and {len(second)}."
            )
        return self._tokenize(first, second, max_length, truncation, pad_to)

    def _tokenize(
        self,
        texts: Sequence[str],
        second: Sequence[str] | None,
        max_length: int | None,
        truncation: bool,
        pad_to: int | None,
    ) -> tuple[Ids, Mask, Ids]:
        return needed(self.tokenizer).encode(
            texts, second, self.config, max_length=max_length, truncation=truncation, pad_to=pad_to
        )

    def __call__(
        self,
        input_ids: Int[ArrayLike, "B L"],
        attention_mask: TokenMask = None,
        *,
        token_type_ids: Int[ArrayLike, "B L"] | None = None,
        tree: Tree | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B L D"]:
        """The vectors of all tokens after the last layer; those at padding are arbitrary.

        Args:
            input_ids: token ids.
            attention_mask: True (or 1) at tokens, False (or 0) at padding; None if nothing is padding.
            token_type_ids: 0 in the first and 1 in the second text of a pair; None for zeros.
            tree: over the L tokens, or a batch of trees, for the layers whose mechanism attends over one.
            deterministic: no dropout; None for the module's own setting (`train()` and `eval()` change it), which
                is no dropout at first. Dropout has the config's probabilities, on the embedding and on branches,
                never on attention weights: most mechanisms form none.
            rngs: holds the stream "dropout" where there is dropout.

        Raises:
            ValueError: more tokens than the model's limit, ids outside the vocabulary (checked outside of jit), or a
                tree or token types that the model has no use for.
        """
        return self.hidden_states(
            input_ids,
            attention_mask,
            token_type_ids=token_type_ids,
            tree=tree,
            deterministic=deterministic,
            rngs=rngs,
        )[-1]

    def hidden_states(
        self,
        input_ids: Int[ArrayLike, "B L"],
        attention_mask: TokenMask = None,
        *,
        token_type_ids: Int[ArrayLike, "B L"] | None = None,
        tree: Tree | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> list[Float[Array, "B L D"]]:
        """The embedding and the output of every layer, num_layers + 1 arrays; the arguments are those of the call.

        The last one has passed the model's final normalisation, if there is one.
        """
        config = self.config
        if input_ids.shape[1] > config.max_length:
            raise ValueError(
                f"input_ids must have at most {config.max_length} columns, the model's limit; "
                f"got {input_ids.shape[1]}."
            )
        _check_ids("input_ids", input_ids, config.vocab_size)
        if token_type_ids is not None:
            if not config.type_vocab_size:
                raise ValueError(f"token_type_ids must be None: {config.model_type} here has no token types.")
            _check_ids("token_type_ids", token_type_ids, config.type_vocab_size)
            token_type_ids = jnp.asarray(token_type_ids)
        check_tree(tree, self.blocks)
        input_ids = jnp.asarray(input_ids)
        mask = jnp.ones(input_ids.shape, bool) if attention_mask is None else jnp.asarray(attention_mask) != 0
        drop: dict[str, Any] = {"deterministic": deterministic, "rngs": rngs}
        states = [self.embeddings(input_ids, token_type_ids, **drop)]
        table = None if self.relative is None else self.relative(input_ids.shape[1])
        for number in config.shared or range(config.num_layers):
            block = self.blocks[number]
            call: dict[str, Any] = {}
            if self.relative is not None:
                call["relative_table"] = self.relative.dropout(table, **drop)
            if "tree" in block.attention.mechanism.takes:
                call["tree"] = tree
            states.append(block(states[-1], token_mask=mask, **call, **drop))
            if self.convolution is not None and len(states) == 2:
                states[1] = self.convolution(states[0], states[1], token_mask=mask, **drop)
        if self.norm is not None:
            states[-1] = self.norm(states[-1])
        return states


def _check_ids(name: str, ids: Any, size: int) -> None:
    if not unknown_or(lambda ids: ((ids >= 0) & (ids < size)).all(), ids):
        ids = np.asarray(ids)
        raise ValueError(
            f"{name} must be between 0 and {size - 1}; got values from {ids.min()} to {ids.max()}."
        )
