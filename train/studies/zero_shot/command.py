"""`python -m train zero-shot`: a fine-tuned classifier with other attention and no further training.

Trees, with a token's attention to itself and without (as published), and random features take the place of softmax in
some of the layers. Measured are the accuracy, the share of predictions that stay as they are, the divergence of the
attention from softmax, the arithmetic and the time; all into one JSON and one table. A set of layers is last:2 (the
last two), first:1, all, or numbers such as 1,3,5, from 0; negative ones count from the end (--layers=-3,-1).
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxattn import Tree
from jaxattn.nn import RandomFeatures, parse_mechanism
from jaxattn.tree.mechanism import Hierarchical
from train.data.token_examples import TextData, token_examples
from train.errors import UserError
from train.studies.tables import publish
from train.studies.zero_shot.layers import LayeredClassifier
from train.studies.zero_shot.measure import Variant
from train.studies.zero_shot.study import study
from train.studies.zero_shot.table import table
from train.tasks.finetune.command import load_texts
from train.tasks.finetune.config import FinetuneData
from train.tasks.finetune.predict import Trained, load

FEATURES = [f"{pair}:{m}" for pair in ("oprf-orf", "sderf-orf", "aderf-orf") for m in (64, 256)]


def main(argv: Sequence[str]) -> int:
    """Measures all variants, then writes the JSON and the table."""
    args = make_parser().parse_args(argv)
    for name, least in (("seeds", 1), ("batch_size", 1), ("repeats", 1)):
        if getattr(args, name) < least:
            raise UserError(
                f"--{name.replace('_', '-')} must be at least {least}; got {getattr(args, name)}."
            )
    summary = read_summary(args.run)
    trained = load(args.run)
    count, limit = trained.encoder.config.num_layers, trained.encoder.config.max_length
    long = [min(512, limit)] if args.long is None else args.long
    outside = [length for length in long if not 2 <= length <= limit]
    if outside:
        raise UserError(
            f"--long must be between 2 and the encoder's limit of {limit} tokens; got {outside[0]}."
        )
    tried = make_variants(args, count)
    classifier = LayeredClassifier(trained.functional.module(trained.params))
    data = read_data(summary, trained, args.data_path)
    record = study(
        trained, classifier, data, tried, batch_size=args.batch_size, repeats=args.repeats, long=long
    )
    record["model"]["encoder"] = args.encoder_name or summary["config"]["model"]["encoder"]
    record["model"] |= {"head": summary["config"]["model"]["head"], "steps": summary["steps"]}
    dataset = summary["config"]["data"]["dataset"]
    publish(
        record,
        table(record),
        out=args.out or Path("benchmarks/results") / f"zero_shot_{dataset}.json",
        tables=args.tables,
        name=f"zero-shot-{dataset}",
        variants=len(record["rows"]),
    )
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(prog="python -m train zero-shot", description=__doc__)
    for flag, options in {
        "--run": {"required": True, "help": "finished run of finetune, such as runs/finetune-sst2"},
        "--branching": {
            "nargs": "*",
            "default": ["2", "4", "8", "16"],
            "metavar": "B",
            "help": "trees: sizes of families, several from the leaves up as in 2x4x8x16 (default: 2 4 8 16)",
        },
        "--layers": {
            "nargs": "+",
            "metavar": "SET",
            "help": "sets of layers for all variants (default: last:1 last:2 last:3 all, where there are as many)",
        },
        "--tree-layers": {
            "nargs": "*",
            "default": ["first:1"],
            "metavar": "SET",
            "help": "more sets, for trees alone (default: first:1)",
        },
        "--features": {
            "nargs": "*",
            "default": FEATURES,
            "metavar": "PAIR:M",
            "help": f"random features, fitted to training texts (default: {' '.join(FEATURES)})",
        },
        "--seeds": {"type": int, "default": 3, "help": "draws of all random features (default: 3)"},
        "--batch-size": {
            "type": int,
            "default": 64,
            "help": "texts at a time at most, also to fit to (default: 64)",
        },
        "--repeats": {"type": int, "default": 3, "help": "rounds of the timing (default: 3)"},
        "--long": {
            "type": int,
            "nargs": "*",
            "metavar": "LENGTH",
            "help": "time texts of so many random tokens too (default: 512, or the encoder's limit)",
        },
        "--data-path": {"help": "where the run's data set lies, if not where it lay or in JAXATTN_DATA"},
        "--encoder-name": {"help": "what to call the encoder in the record (default: as the run does)"},
        "--out": {"type": Path, "help": "the JSON (default: benchmarks/results/zero_shot_DATASET.json)"},
        "--tables": {
            "type": Path,
            "nargs": "*",
            "default": [],
            "help": "Markdown files whose table to renew",
        },
    }.items():
        parser.add_argument(flag, **options)  # type: ignore[arg-type]
    return parser


def read_summary(run: str) -> dict[str, Any]:
    """What a finished run says about itself.

    Raises:
        UserError: there is no summary, or it is none of `finetune`.
    """
    path = Path(run) / "summary.json"
    if not Path(run).is_dir():
        raise UserError(f"--run must be the folder of a finished run of finetune; there is no folder {run}.")
    if not path.exists():
        raise UserError(f"--run must be the folder of a finished run of finetune; {run} has no summary.json.")
    summary = json.loads(path.read_text(encoding="utf-8"))
    config = summary.get("config", {})
    if "encoder" not in config.get("model", {}) or "loss" not in config.get("data", {}):
        raise UserError(
            f"--run must be the folder of a finished run of finetune; {run} is of another command."
        )
    return summary


def read_data(summary: Mapping[str, Any], trained: Trained, data_path: str | None) -> TextData:
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
    word, colon, number = text.partition(":")
    try:
        if text == "all":
            return tuple(range(count))
        if colon and word in ("first", "last") and 1 <= int(number) <= count:
            return (
                tuple(range(count))[: int(number)] if word == "first" else tuple(range(count))[-int(number) :]
            )
        if not colon:
            numbers = [int(part) for part in text.split(",")]
            if all(-count <= n < count for n in numbers):
                return tuple(sorted({n % count for n in numbers}))
    except ValueError:
        pass
    raise UserError(
        f"--layers must be last:K or first:K with K from 1 to {count}, all, or numbers from {-count} to {count - 1} "
        f"with commas; got {text!r}."
    )


def make_variants(args: argparse.Namespace, count: int) -> list[Variant]:
    """All that is to be tried, checked.

    Raises:
        UserError: a branching, a set of layers or a pair of features is not usable.
    """
    names = args.layers or [*(f"last:{k}" for k in (1, 2, 3) if k < count), "all"]
    common = {name: layer_numbers(name, count) for name in names}
    for_trees = common | {name: layer_numbers(name, count) for name in args.tree_layers}
    found = []
    for text in args.branching:
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
    for text in args.features:
        try:
            features = parse_mechanism(f"features:{text}")
        except ValueError as error:
            raise UserError(f"--features must be such as sderf-orf:64; got {text!r} ({error}).") from error
        if not isinstance(features, RandomFeatures):
            raise UserError(f"--features must be such as sderf-orf:64; got {text!r}.")
        found.append(Variant(f"features:{text}", features, tuple(range(args.seeds)), common))
    if len({variant.name for variant in found}) < len(found) or not found:
        raise UserError("--branching and --features must name at least one variant, and none twice.")
    return found
