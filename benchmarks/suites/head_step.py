"""Times training steps of a text encoder with different heads, all in turns; one JSON file."""

import argparse
import functools
import shlex
from collections.abc import Callable
from typing import Any

from benchmarks.measure.allocator import keep_memory
from benchmarks.report.results import say, write
from benchmarks.suites.training_step import compiled_steps, measure

# The sizes of all-MiniLM-L6-v2. Values do not change the time, so the weights are random.
ENCODER = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
}


def run(arguments: argparse.Namespace) -> int:
    """Measures and writes the JSON."""
    from benchmarks.measure.provenance import provenance

    keep_memory()
    sizes = {"length": arguments.length, "batch": arguments.batch}
    makers = {name: functools.partial(head_step, name, **sizes) for name in arguments.heads}
    where, peer = provenance(), arguments.heads[0]
    rows = measure(makers, peer=peer, repeats=arguments.repeats)
    for name, row in rows.items():
        ratio = row.get("ratios", {}).get(peer)
        say(
            f"{name}: {row['median_s']:.3g} s, {ratio:.3f} of {peer}" if ratio else f"{name}: {row['status']}"
        )
    document = {
        "benchmark": "head-step",
        "provenance": where,
        "settings": {"encoder": ENCODER, "peer": peer, "repeats": arguments.repeats, **sizes},
        "rows": [{"head": name} | row for name, row in rows.items()],
    }
    write(document, arguments.out)
    say(f"wrote {arguments.out}")
    return 0


def head_step(head: str, *, length: int, batch: int) -> Callable[[Any, int], None]:
    """The compiled step of `python -m train finetune` for one seed on random tokens.

    Args:
        head: a variant of `python -m train finetune-study`.
        length: tokens a text, none of them padding.
        batch: texts.

    Returns:
        See `benchmarks.training_step.compiled_steps`.

    Raises:
        ValueError: no such head.
    """
    import numpy as np
    from flax import nnx

    from jaxattn.models import EncoderConfig, TextEncoder
    from train.studies.heads import VARIANTS
    from train.tasks.classify.losses import make_loss
    from train.tasks.finetune.config import parse
    from train.tasks.finetune.model import make_optimizer, text_classifier

    if head not in VARIANTS:
        raise ValueError(f"head must be one of {', '.join(VARIANTS)}, got {head!r}.")
    config = parse(["--preset", "irony", "--steps", "100", *shlex.split(VARIANTS[head])])
    encoder = TextEncoder(EncoderConfig.from_dict(ENCODER), rngs=nnx.Rngs(0))
    draw = np.random.default_rng(0)
    rows: dict[str, Any] = {
        "tokens": draw.integers(1, encoder.config.vocab_size, (1, batch, length)).astype(np.int32),
        "mask": np.ones((1, batch, length), bool),
        "labels": draw.integers(2, size=(1, batch)).astype(np.int32),
        "weights": np.ones((1, batch), np.float32),
        "tree": None,
    }
    model = text_classifier(config.model, encoder, 2, rows)
    optimizer = make_optimizer(config.optimizer, encoder.config.num_layers)
    return compiled_steps(model, optimizer, make_loss("softmax"), rows)


def section(document: dict[str, Any]) -> str:
    """The table of a result."""
    from benchmarks.report import tables

    settings, peer = document["settings"], document["settings"]["peer"]
    encoder = settings["encoder"]
    lines = {}
    for row in document["rows"]:
        ratio = row.get("ratios", {}).get(peer)
        seconds = f"{row['median_s']:.3g}" if "median_s" in row else tables.status(row)
        lines[f"`{row['head']}`"] = [seconds, f"{ratio:.2f}" if ratio else "—"]
    return "\n\n".join(
        [
            tables.grid("head", ["seconds a step", f"of `{peer}`"], lines),
            f"One seed, {settings['batch']} texts of {settings['length']} tokens, an encoder of "
            f"{encoder['num_hidden_layers']} layers, {encoder['hidden_size']} wide, trained with its head; "
            f"medians of {settings['repeats']} rounds in which all take turns. {tables.machine(document)}, "
            f"{tables.versions(document)} Command: `{document['provenance']['command']}`",
        ]
    )
