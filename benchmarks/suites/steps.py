"""Training steps side by side: the Long Range Arena with different attentions, fine-tuning with different heads."""

import argparse
import functools
import pathlib
import shlex
import time
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from benchmarks.measure.prepared import Prepared
from benchmarks.measure.results import finish, new_document, say, write
from benchmarks.measure.timing import keep_memory, measure_interleaved

# The training application is imported where it is called: its own dependencies are not needed for the other suites.

# The sizes of all-MiniLM-L6-v2. Values do not change the time, so the weights are random.
ENCODER = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
}


def add_training_arguments(parser: argparse.ArgumentParser, results: pathlib.Path) -> None:
    """Command-line options of `training-step`."""
    add = parser.add_argument
    add("--task", default="text", help="of the Long Range Arena")
    add("--lengths", type=int, nargs="+", default=[1024, 2048, 4096], help="tokens T")
    add("--batch", type=int, default=2, help="sequences B")
    add(
        "--attentions",
        nargs="+",
        default=["softmax", "features:aderf-orf:128", "features:oprf-orf:128", "tree:64x16"],
        help="spelled as for training; ratios are to softmax",
    )
    add("--repeats", type=int, default=5, help="rounds through all attentions")
    add("--out", type=pathlib.Path, default=results / "training_step.json", help="result file")


def add_head_arguments(parser: argparse.ArgumentParser, results: pathlib.Path) -> None:
    """Command-line options of `head-step`."""
    add = parser.add_argument
    add(
        "--heads",
        nargs="+",
        default=["mean", "cls", "no-convolution", "no-attention", "kernel-3", "inceptive"],
        help="variants of the study of heads in jaxattn_train/studies; ratios are to the first",
    )
    add("--length", type=int, default=32, help="tokens of a text")
    add("--batch", type=int, default=32, help="texts")
    add("--repeats", type=int, default=5, help="rounds through all heads")
    add("--out", type=pathlib.Path, default=results / "head_step.json", help="result file")


def run_training(arguments: argparse.Namespace) -> None:
    """Measures length by length and writes the result after each, so that an interruption loses at most one."""
    keep_memory()
    settings = {"task": arguments.task, "batch": arguments.batch, "repeats": arguments.repeats}
    document = new_document("training-step", settings)
    for length in arguments.lengths:
        makers = {
            name: functools.partial(training_step, arguments.task, name, length, arguments.batch)
            for name in arguments.attentions
        }
        rows = measure_interleaved(makers, peers=["softmax"], repeats=arguments.repeats)
        _say_rows(rows, "softmax", f"T {length} ")
        sizes = {"length": length, "batch": arguments.batch}
        document["rows"] += [{"attention": name} | sizes | row for name, row in rows.items()]
        write(document, arguments.out)
    finish(document, arguments.out)


def run_heads(arguments: argparse.Namespace) -> None:
    """Measures all heads and writes the result."""
    keep_memory()
    sizes, peer = {"length": arguments.length, "batch": arguments.batch}, arguments.heads[0]
    settings = {"encoder": ENCODER, "peer": peer, "repeats": arguments.repeats, **sizes}
    document = new_document("head-step", settings)
    makers = {name: functools.partial(head_step, name, **sizes) for name in arguments.heads}
    rows = measure_interleaved(makers, peers=[peer], repeats=arguments.repeats)
    _say_rows(rows, peer)
    document["rows"] = [{"head": name} | row for name, row in rows.items()]
    finish(document, arguments.out)


def _say_rows(rows: dict[str, dict[str, Any]], peer: str, where: str = "") -> None:
    for name, row in rows.items():
        ratio = row.get("ratios", {}).get(peer)
        found = f"{row['median_s']:.3g} s, {ratio:.3f} of {peer}" if ratio else row["status"]
        say(f"{where}{name}: {found}")


def training_step(task: str, attention: str, length: int, batch: int) -> Prepared:
    """The compiled step of `jaxattn-train lra --preset paper` on random tokens of full length.

    Args:
        task: of the Long Range Arena; it determines the model, the optimiser and the vocabulary.
        attention: as for --attention.
        length: tokens a sequence.
        batch: sequences.

    Raises:
        UserError: no such task or attention.
    """
    from jaxattn_train.engine import loop
    from jaxattn_train.tasks.lra.command import lra_classifier
    from jaxattn_train.tasks.lra.config import parse
    from jaxattn_train.tasks.lra.registry import LRA_TASKS
    from jaxattn_train.tasks.shared.losses import make_loss

    config = parse(["--task", task, "--preset", "paper", "--attention", attention])
    this = LRA_TASKS[task]
    data: Any = SimpleNamespace(
        two_tower=this.two_tower,
        vocab_size=this.vocab_size,
        classes=this.classes,
        max_length=length,
    )
    shape = (1, batch, 2, length) if this.two_tower else (1, batch, length)
    rows = _random_rows(shape, this.vocab_size, len(this.classes))
    model = lra_classifier(config, data, rows)
    update = loop.make_optimizer(config.optimizer, model.decayed)
    return _compiled_steps(model, update, make_loss("softmax"), rows)


def head_step(head: str, *, length: int, batch: int) -> Prepared:
    """The compiled step of `jaxattn-train finetune` for one seed on random tokens.

    Args:
        head: a variant of the study of heads.
        length: tokens a text, none of them padding.
        batch: texts.

    Raises:
        ValueError: no such head.
    """
    from flax import nnx

    from jaxattn.models import EncoderConfig, TextEncoder
    from jaxattn_train.studies.heads import VARIANTS
    from jaxattn_train.tasks.finetune.config import parse
    from jaxattn_train.tasks.finetune.model import make_optimizer, text_classifier
    from jaxattn_train.tasks.shared.losses import make_loss

    if head not in VARIANTS:
        raise ValueError(f"head must be one of {', '.join(VARIANTS)}; got {head!r}.")
    config = parse(["--preset", "irony", "--steps", "100", *shlex.split(VARIANTS[head])])
    encoder = TextEncoder(EncoderConfig.from_dict(ENCODER), rngs=nnx.Rngs(0))
    rows = _random_rows((1, batch, length), encoder.config.vocab_size, 2)
    model = text_classifier(config.model, encoder, 2, rows)
    optimizer = make_optimizer(config.optimizer, encoder.config.num_layers, model.decayed)
    return _compiled_steps(model, optimizer, make_loss("softmax"), rows)


def _random_rows(shape: tuple[int, ...], vocab_size: int, num_classes: int) -> dict[str, Any]:
    """A batch of the trainer, for one seed: `shape` starts with (1, batch) and ends with the tokens."""
    draw = np.random.default_rng(0)
    return {
        "tokens": draw.integers(1, vocab_size, shape).astype(np.int32),
        "mask": np.ones(shape, bool),
        "labels": draw.integers(num_classes, size=shape[:2]).astype(np.int32),
        "weights": np.ones(shape[:2], np.float32),
        "tree": None,
    }


def _compiled_steps(model: Any, optimizer: Any, loss: Any, batch: Any) -> Prepared:
    """Steps on one batch, each from where the one before it ended."""
    from jaxattn_train.engine import loop

    start = time.perf_counter()
    state = jax.jit(loop.make_init(model, optimizer, (0,)))()
    step = loop.make_train_step(model, optimizer, loss, seeds=(0,))
    compiled = jax.jit(step).lower(state, batch).compile()

    def run(_: Any, times: int) -> None:
        now = state
        for _ in range(times):
            now, metrics = compiled(now, batch)
        jax.block_until_ready((now, metrics))

    return Prepared(lambda: None, run, time.perf_counter() - start)
