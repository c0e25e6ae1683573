"""`jaxattn-train embed`: embeddings of texts, by a pretrained sentence encoder."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import rich.console
import rich.progress
import tyro

from jaxattn_train.cli.options import Options
from jaxattn_train.cli.parsing import parse
from jaxattn_train.data.lines import check_out, read_texts
from jaxattn_train.engine.functional import compute_dtype
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.finetune.config import MINILM


@dataclasses.dataclass(frozen=True)
class EmbedConfig(Options, at_least={"batch_size": 1}):
    """Writes one vector a text, by a model of sentence-transformers: an array (texts, width) of float32 as .npy."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")] = "-"
    """.txt with a text a line, or .tsv, .csv or .jsonl with a column of texts; - for standard input."""
    encoder: str = MINILM
    """A folder with modules.json, or a name on the Hugging Face hub."""
    text_column: str | None = None
    """Name of that column; by default text."""
    out: str = "embeddings.npy"
    """The file to write; row i belongs to text i."""
    batch_size: int = 32
    """Texts at a time."""
    prompt: str | None = None
    """Put before every text, such as "query: "; by default what the model says."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation; auto is bfloat16 on accelerators, float32 on CPU."""

    def _check(self) -> None:
        check_out(self.out, self.file)


def main(argv: Sequence[str]) -> int:
    """Parses the flags, embeds the texts and writes the array."""
    config = parse(EmbedConfig, argv, command="embed")
    texts = [line.text for line in read_texts(config.file, config.text_column)]
    out = Path(config.out)
    if not out.parent.is_dir():
        raise UserError(f"--out must lie in a folder that exists; got {out}.")
    from jaxattn.models import SentenceEncoder

    console = rich.console.Console(stderr=True)
    try:
        encoder = SentenceEncoder.from_pretrained(config.encoder, dtype=compute_dtype(config.dtype))
        start = time.monotonic()
        with rich.progress.Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("texts", total=len(texts))
            embeddings = encoder.encode(
                texts,
                batch_size=config.batch_size,
                prompt=config.prompt,
                progress=lambda done, _: bar.update(task, completed=done),
            )
    except (ValueError, OSError, ImportError) as error:
        raise UserError(f"--encoder {config.encoder}: {error}") from error
    seconds = time.monotonic() - start
    partial = out.with_name(f"{out.name}.partial")
    try:
        with partial.open("wb") as file:
            np.save(file, embeddings)
        partial.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}.") from error
    rate = f"{len(texts) / seconds:,.1f} texts a second, compilation included"
    print(f"{len(texts):,} texts, {embeddings.shape[1]} numbers each, in {out} ({rate})", file=sys.stderr)
    return 0
