"""One vector a text, by a pretrained encoder: the files and the numbers of sentence-transformers."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

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
from jaxattn.encoders.tokenizer import needed, pad
from jaxattn.nn.pooling import Pooling

# Texts that are tokenised at a time.
CHUNK = 4096


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
        input_ids: Int[Array, "B L"],
        attention_mask: Bool[Array, "B L"] | Int[Array, "B L"] | None = None,
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
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list of texts; got {texts!r}.")
        prompt = self.config.prompt if prompt is None else prompt
        ids = self._ids([prompt + text if isinstance(text, str) else text for text in texts])
        order = np.argsort([-len(row) for row in ids], kind="stable")
        limit, filler = self.max_length, self.encoder.config.pad_token_id
        graph, state = nnx.split(self)

        def embed(rows: np.ndarray) -> tuple[np.ndarray, Array]:
            height, width = bucket(len(rows), 1, batch_size), bucket(len(ids[rows[0]]), 8, limit)
            filled = [ids[row] for row in np.pad(rows, (0, height - len(rows)), mode="edge")]
            return rows, _embed(graph, state, *pad(filled, width, filler))

        embeddings, done = np.empty((len(texts), self.features), np.float32), 0
        batches = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
        for rows, found in _one_ahead(map(embed, batches)):
            embeddings[rows] = found[: len(rows)]
            done += len(rows)
            if progress is not None:
                progress(done, len(texts))
        return embeddings

    def _ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of every text, cut at the limit."""
        tokenizer, limit = needed(self.encoder.tokenizer), self.max_length
        found = []
        for start in range(0, len(texts), CHUNK):
            part = texts[start : start + CHUNK]
            found += tokenizer.rows(part, None, self.encoder.config, max_length=limit, truncation=True)
        return [row.ids for row in found]


@functools.partial(jax.jit, static_argnums=0)
def _embed(graph: Any, state: Any, input_ids: Array, mask: Array) -> Array:
    return nnx.merge(graph, state)(input_ids, mask, deterministic=True).astype(jnp.float32)


def bucket(size: int, least: int, most: int) -> int:
    """The size that `size` is padded to: a power of two, or the middle between two, at most `most`.

    Examples:
        >>> [bucket(size, 8, 100) for size in (3, 9, 13, 25, 33, 49, 65, 97)]
        [8, 12, 16, 32, 48, 64, 96, 100]
    """
    power = 1 << (size - 1).bit_length()
    return min(max(least, 3 * power // 4 if 4 * size <= 3 * power else power), most)


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each when the next one has been asked for: the device computes while results are copied."""
    before = next(items, None)
    for item in items:
        yield before
        before = item
    if before is not None:
        yield before
