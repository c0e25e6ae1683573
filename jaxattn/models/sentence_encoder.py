"""One vector a text, by a pretrained encoder: the files and the numbers of sentence-transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxattn.core.arrays import ArrayLike, TokenMask
from jaxattn.encoders import hub
from jaxattn.encoders.sentence.dense import Dense
from jaxattn.encoders.sentence.files import (
    FILES,
    SentenceConfig,
    read_config,
    read_dense,
    read_modules,
    write_files,
)
from jaxattn.encoders.text_encoder import TextEncoder
from jaxattn.models.batching import in_batches, tokenized
from jaxattn.nn.pooling import Pooling


class SentenceEncoder(nnx.Module):
    """Embeddings of texts: a pretrained encoder, a pool over the tokens, dense layers, length 1.

    `from_pretrained` reads models of sentence-transformers; the constructor makes one of any encoder. Texts that mean
    the same lie close together: similarity is the inner product of embeddings of length 1.

    Args:
        encoder: token ids to one vector a token.
        pooling: any of "cls", "max" and "mean"; several are concatenated.
        dense: layers behind the pooling, in order.
        normalize: whether embeddings have length 1.
        max_length: the longest text, in tokens; longer ones are cut. None for the encoder's limit.
        prompts: texts by name that the model was trained to read before inputs of several kinds.
        prompt: what `encode` puts before every text by default.

    Raises:
        ValueError: an unknown pooling.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxattn.models import EncoderConfig, SentenceEncoder, TextEncoder
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32}
        >>> layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = EncoderConfig.from_dict({"model_type": "bert", **sizes, **layers})
        >>> model = SentenceEncoder(TextEncoder(config, rngs=nnx.Rngs(0)), pooling=("cls", "mean"), normalize=True)
        >>> embeddings = model(jnp.array([[2, 7, 9, 3, 0]]), jnp.array([[1, 1, 1, 1, 0]]))
        >>> embeddings.shape, jnp.linalg.norm(embeddings).round(5).item()
        ((1, 32), 1.0)
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        pooling: Sequence[str] = ("mean",),
        dense: Sequence[Dense] = (),
        normalize: bool = False,
        max_length: int | None = None,
        prompts: Sequence[tuple[str, str]] = (),
        prompt: str = "",
    ):
        limit = encoder.config.max_length
        self.max_length = limit if max_length is None else min(max_length, limit)
        self.config = SentenceConfig(
            pooling=tuple(pooling),
            normalize=normalize,
            max_length=self.max_length,
            prompts=tuple(prompts),
            prompt=prompt,
        )
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.pools = nnx.List([Pooling(kind, width, rngs=nnx.Rngs(0)) for kind in pooling])
        self.dense = nnx.List(dense)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
    ) -> "SentenceEncoder":
        """Loads a model of sentence-transformers: modules.json, and the folders that it names.

        Args:
            name_or_path: a folder, or the name of a repository of the Hugging Face hub, which is downloaded.
            revision: branch, tag or commit of the repository.
            dtype: dtype of the computation.
            param_dtype: dtype of the parameters.
            local_files_only: no download.
            cache_dir: the download cache; None for the usual one.

        Returns:
            The model.

        Raises:
            ValueError: there is no modules.json, or something in the files would change the embeddings and is not
                supported: a module of another kind, or a setting, which the message names.
            FileNotFoundError: not downloaded yet, and there is no connection.
            ImportError: the extra is missing: pip install 'jaxattn[pretrained]'.
        """
        where: dict[str, Any] = {
            "revision": revision,
            "local_files_only": local_files_only,
            "cache_dir": cache_dir,
        }
        folder = hub.find_folder(name_or_path, files=FILES, **where)
        files = [str(Path(path) / name) for _, path in read_modules(folder) for name in (*hub.FILES, *FILES)]
        folder = hub.find_folder(name_or_path, files=files, **where)
        config = read_config(folder)
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        return cls(
            TextEncoder.from_pretrained(folder / config.encoder, **dtypes),
            pooling=config.pooling,
            dense=[read_dense(folder / path, **dtypes) for path in config.dense],
            normalize=config.normalize,
            max_length=config.max_length,
            prompts=config.prompts,
            prompt=config.prompt,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that sentence-transformers reads; see `TextEncoder.save_pretrained`."""
        self.encoder.save_pretrained(folder)
        write_files(Path(folder), self.config, self.dense, self.encoder.config.hidden_size)

    @property
    def features(self) -> int:
        """Width E of an embedding."""
        if len(self.dense):
            return self.dense[-1].linear.out_features
        return len(self.pools) * self.encoder.config.hidden_size

    def __call__(
        self,
        input_ids: Int[ArrayLike, "B L"],
        attention_mask: TokenMask = None,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B E"]:
        """Embeddings of token ids; the arguments are those of `TextEncoder`."""
        mask = jnp.ones(input_ids.shape, bool) if attention_mask is None else jnp.asarray(attention_mask) != 0
        x = self.encoder(input_ids, mask, deterministic=deterministic, rngs=rngs)
        x = jnp.concatenate([pool(x, mask) for pool in self.pools], axis=-1)
        for layer in self.dense:
            x = layer(x)
        if not self.config.normalize:
            return x
        wide = x.astype(jnp.float32)
        # Squares of tiny numbers would be 0.
        return (wide / jnp.maximum(jnp.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)).astype(x.dtype)

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
        prompt: str | None = None,
    ) -> Float[np.ndarray, "B E"]:
        """Embeddings of texts.

        Texts of similar length go through the model together, the longest first, padded to one of few lengths and
        numbers of rows, each of which is compiled once. Texts beyond the limit are cut, as in sentence-transformers.

        Args:
            texts: any number of strings.
            batch_size: texts at a time.
            progress: called after each batch with the number of texts done and of all texts.
            prompt: put before every text, such as "query: "; None for the model's default. `config.prompts` has those
                that were published with the model.

        Returns:
            One row a text in float32.

        Raises:
            ValueError: a single string, a text that is none, batch_size below 1, or a model without tokenizer.json.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list of texts; got {texts!r}.")
        prompt = self.config.prompt if prompt is None else prompt
        texts = [prompt + text if isinstance(text, str) else text for text in texts]
        embeddings = np.empty((len(texts), self.features), np.float32)
        rows = tokenized(self.encoder, texts, max_length=self.max_length)
        for chosen, found in in_batches(self, rows, self.max_length, batch_size, progress):
            embeddings[chosen] = found
        return embeddings
