"""`jaxattn-train zero-shot`: a fine-tuned classifier with other attention and no further training."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxattn import Tree
from jaxattn.nn import RandomFeatures, parse_mechanism
from jaxattn.tree.mechanism import Hierarchical
from jaxattn_train.cli.options import Options
from jaxattn_train.cli.parsing import parse
from jaxattn_train.data.classification import ClassificationData
from jaxattn_train.data.token_examples import token_examples
from jaxattn_train.errors import UserError
from jaxattn_train.studies.tables import publish
from jaxattn_train.studies.zero_shot.layers import LayeredClassifier
from jaxattn_train.studies.zero_shot.measure import Variant
from jaxattn_train.studies.zero_shot.study import study
from jaxattn_train.studies.zero_shot.table import table
from jaxattn_train.tasks.finetune.command import load_texts
from jaxattn_train.tasks.finetune.config import FinetuneData
from jaxattn_train.tasks.predict.classifier import Classifier, load

FEATURES = tuple(f"{pair}:{m}" for pair in ("oprf-orf", "sderf-orf", "aderf-orf") for m in (64, 256))


@dataclasses.dataclass(frozen=True)
class ZeroShotConfig(Options, at_least={"seeds": 1, "batch_size": 1, "repeats": 1}):
    """Measures a fine-tuned classifier with other attention in some of its layers, without any training.

    Trees, with a token's attention to itself and without (as published), and random features replace softmax. A JSON
    and a table hold the accuracy, the share of predictions that do not change, the divergence of the attention from
    softmax, the arithmetic and the time. A set of layers is last:2 (the last two), first:1, all, or numbers such as
    1,3,5, from 0; negative ones count from the end (--layers=-3,-1).
    """

    run: str
    """Finished run of finetune, such as runs/finetune-sst2."""
    branching: tuple[str, ...] = ("2", "4", "8", "16")
    """Trees: children of a node, or several numbers from the leaves up as in 2x4x8x16."""
    layers: tuple[str, ...] | None = None
    """Sets of layers for all variants; by default last:1 last:2 last:3 all, as far as the layers go."""
    tree_layers: tuple[str, ...] = ("first:1",)
    """More sets, for trees alone."""
    features: tuple[str, ...] = FEATURES
    """Random features, fitted to training texts."""
    seeds: int = 3
    """Draws of all random features."""
    batch_size: int = 64
    """Texts at a time at most, also to fit to."""
    repeats: int = 3
    """Rounds of the timing."""
    long: tuple[int, ...] | None = None
    """Lengths of texts of random tokens to time too; by default 512, or the encoder's limit."""
    data_path: str | None = None
    """Location of the run's data set, if not where it was or in JAXATTN_DATA."""
    encoder_name: str | None = None
    """Name of the encoder in the record; by default that of the run."""
    out: Path | None = None
    """The JSON; by default benchmarks/results/zero_shot_DATASET.json."""
    tables: tuple[Path, ...] = ()
    """Markdown files whose table to renew."""


def main(argv: Sequence[str]) -> int:
    """Measures all variants, then writes the JSON and the table."""
    config = parse(ZeroShotConfig, argv, command="zero-shot")
    summary = read_summary(config.run)
    trained = load(config.run)
    limit = trained.encoder.config.max_length
    long = [min(512, limit)] if config.long is None else config.long
    for length in long:
        if not 2 <= length <= limit:
            raise UserError(
                f"--long must be between 2 and the encoder's limit of {limit} tokens; got {length}."
            )
    tried = make_variants(config, trained.encoder.config.num_layers)
    record = study(
        LayeredClassifier(trained.functional.module(trained.params)),
        read_data(summary, trained, config.data_path),
        tried,
        loss=trained.loss,
        batch_size=config.batch_size,
        repeats=config.repeats,
        long=long,
    )
    model, dataset = summary["config"]["model"], summary["config"]["data"]["dataset"]
    record["model"] |= {
        "encoder": config.encoder_name or model["encoder"],
        "head": model["head"],
        "steps": summary["steps"],
    }
    publish(
        record,
        table(record),
        out=config.out or Path("benchmarks/results") / f"zero_shot_{dataset}.json",
        tables=config.tables,
        name=f"zero-shot-{dataset}",
        variants=len(record["rows"]),
    )
    return 0


def read_summary(run: str) -> dict[str, Any]:
    """What a finished run says about itself.

    Raises:
        UserError: there is no summary, or it is none of `finetune`.
    """
    path = Path(run) / "summary.json"
    if not path.exists():
        missing = f"{run} has no summary.json" if Path(run).is_dir() else f"there is no folder {run}"
        raise UserError(f"--run must be the folder of a finished run of finetune; {missing}.")
    summary = json.loads(path.read_text(encoding="utf-8"))
    config = summary.get("config", {})
    if "encoder" not in config.get("model", {}) or "loss" not in config.get("data", {}):
        raise UserError(
            f"--run must be the folder of a finished run of finetune; {run} is of another command."
        )
    return summary


def read_data(summary: Mapping[str, Any], trained: Classifier, data_path: str | None) -> ClassificationData:
    """The texts that the run was trained and measured on."""
    config = FinetuneData(**summary["config"]["data"])
    if data_path is not None:
        config = dataclasses.replace(config, data_path=data_path)
    data = token_examples(
        load_texts(config),
        trained.encoder,
        max_length=trained.max_length,
        loss=trained.loss,
        label_separator=config.label_separator or ",",
    )
    if data.classes != trained.classes:
        raise UserError(
            f"the data must have the classes that --run was trained on, {', '.join(trained.classes)}; they have "
            f"{', '.join(data.classes)}."
        )
    return data


def layer_numbers(text: str, count: int) -> tuple[int, ...]:
    """The layers that a set names.

    Args:
        text: last:K, first:K, all, or numbers with commas, negative ones from the end.
        count: how many layers there are.

    Returns:
        Numbers from 0, ascending.

    Raises:
        UserError: it names none, or one that does not exist.

    Examples:
        >>> layer_numbers("last:2", 6), layer_numbers("1,-1", 6)
        ((4, 5), (1, 5))
    """
    every = range(count)
    word, _, number = text.partition(":")
    try:
        if text == "all":
            return tuple(every)
        if word in ("first", "last") and 1 <= int(number) <= count:
            return tuple(every[: int(number)] if word == "first" else every[-int(number) :])
        return tuple(sorted({every[int(part)] for part in text.split(",")}))
    except (ValueError, IndexError):
        pass
    raise UserError(
        f"--layers must be last:K or first:K with K from 1 to {count}, all, or numbers from {-count} to {count - 1} "
        f"with commas; got {text!r}."
    )


def make_variants(config: ZeroShotConfig, count: int) -> list[Variant]:
    """All that is to be tried, checked.

    Raises:
        UserError: a branching, a set of layers or a pair of features is not usable.
    """
    names = config.layers or [*(f"last:{k}" for k in (1, 2, 3) if k < count), "all"]
    common = {name: layer_numbers(name, count) for name in names}
    for_trees = common | {name: layer_numbers(name, count) for name in config.tree_layers}
    found = []
    for text in config.branching:
        try:
            sizes = tuple(int(size) for size in text.split("x"))
            Tree.uniform(2, sizes)
        except ValueError as error:
            raise UserError(
                f"--branching must be whole numbers of at least 2, such as 16 or 2x4x8x16; got {text!r}."
            ) from error
        for word, include_self in (("", True), (":noself", False)):
            mechanism = Hierarchical(sizes, include_self=include_self)
            found.append(Variant(f"tree:{text}{word}", mechanism, (0,), for_trees))
    for text in config.features:
        try:
            features = parse_mechanism(f"features:{text}")
        except ValueError as error:
            raise UserError(f"--features must be such as sderf-orf:64; got {text!r} ({error}).") from error
        if not isinstance(features, RandomFeatures):
            raise UserError(f"--features must be such as sderf-orf:64; got {text!r}.")
        found.append(Variant(f"features:{text}", features, tuple(range(config.seeds)), common))
    if len({variant.name for variant in found}) < len(found) or not found:
        raise UserError("--branching and --features must name at least one variant, and none twice.")
    return found
