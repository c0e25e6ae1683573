"""ListOps of the Long Range Arena, generated: nested lists of digits under MIN, MAX, MED and SM (sum modulo 10).

`listops_trees` draws the expressions. The published pipeline reads its files with a tokenizer that drops every
character that is not alphanumeric, so that closing brackets are lost and an expression becomes ambiguous; here, as in
later work on the benchmark, "]" is a token and only the parentheses are dropped, which gives the specified lengths.

The data depend on the seed and the sizes alone: shards of a fixed number of examples each have their own stream of
random integers, and only exact operations on integers are used (`counter_random`).
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxattn_train.data.generators.array_file import Arrays
from jaxattn_train.data.generators.counter_random import Stream
from jaxattn_train.data.generators.listops_trees import CLOSE, TOKENS, TreeSpec, draw_expressions
from jaxattn_train.data.generators.shards import generated, make_shards
from jaxattn_train.data.sequences import Sequences, Splits, split_up
from jaxattn_train.errors import UserError

SIZES = (96_000, 2_000, 2_000)
MAX_LENGTH = 2000
VOCABULARY_SIZE = len(TOKENS) + 1  # and padding
_VERSION = 1  # of the generator: raise it with any change of the data


@dataclasses.dataclass(frozen=True)
class ListOpsSpec:
    """Everything the data depend on."""

    seed: int = 0
    sizes: tuple[int, int, int] = SIZES
    """Examples for training, validation and test."""
    shard_size: int = 1000
    """Examples of a shard."""
    trees: TreeSpec = dataclasses.field(default_factory=TreeSpec)

    def __post_init__(self):
        if len(self.sizes) != 3 or min(self.sizes) < 1:
            raise UserError(f"ListOps needs three sizes of at least 1; got {self.sizes}.")
        if self.seed < 0 or self.shard_size < 1:
            raise UserError(
                f"ListOps needs a seed of at least 0 and shards of at least 1; got {self.seed} and {self.shard_size}."
            )


def load_listops(spec: ListOpsSpec, *, folder: Path, workers: int | None = None) -> Splits:
    """Reads the set from `folder`, or generates it and keeps it there.

    Args:
        spec: what to generate.
        folder: of the cache; an interrupted generation resumes from the shards it left here.
        workers: processes; None takes one for each processor.

    Returns:
        The three parts, filled in order as in the published set: training, validation, test.

    Raises:
        UserError: the folder cannot be used, or a file in it is damaged.
    """
    about = {"task": "listops", "version": _VERSION, **dataclasses.asdict(spec)}
    stored = generated(folder, about, lambda shards: _generate(spec, shards, about, workers))
    codes = np.empty(2 * len(stored["pairs"]), np.uint8)
    codes[::2], codes[1::2] = stored["pairs"] & 15, stored["pairs"] >> 4
    whole = Sequences.end_to_end(codes, stored["lengths"], stored["labels"], first_id=1)
    return split_up(whole, spec.sizes[:2], {"source": "generated", "seed": spec.seed})


def make_shard(seed: int, shard: int, count: int, trees: TreeSpec) -> Arrays:
    """The first `count` examples of a shard; see `draw_expressions`."""
    return draw_expressions(Stream("listops", _VERSION, seed, shard), count, trees)


def _generate(spec: ListOpsSpec, folder: Path, about: Mapping[str, Any], workers: int | None) -> Arrays:
    wanted = sum(spec.sizes)
    made: dict[int, Arrays] = {}
    keep: list[np.ndarray] = []
    seen: set[bytes] = set()
    while (left := wanted - len(seen)) > 0:  # again only if expressions came twice
        counts = [min(spec.shard_size, left - start) for start in range(0, left, spec.shard_size)]
        tasks = {n: (spec.seed, n, count, spec.trees) for n, count in enumerate(counts, len(made))}
        new = make_shards(make_shard, tasks, folder=folder, about=about, workers=workers)
        for shard in new.values():
            keep.append(_first_times(shard, seen))
        made |= new
    parts = [_choose(shard, rows) for shard, rows in zip(made.values(), keep, strict=True)]
    codes = np.concatenate([part["codes"] for part in parts])
    codes = np.append(codes, np.zeros(len(codes) % 2, np.uint8))
    return {
        "pairs": codes[::2] | codes[1::2] << 4,  # 15 tokens take half a byte each
        "lengths": np.concatenate([part["lengths"] for part in parts]),
        "labels": np.concatenate([part["labels"] for part in parts]),
    }


def _first_times(shard: Arrays, seen: set[bytes]) -> np.ndarray:
    """Which expressions of a shard have not been seen, bool (examples,); `seen` gets them."""
    ends = np.cumsum(shard["lengths"])
    new = np.zeros(len(ends), bool)
    for i, (start, end) in enumerate(zip(ends - shard["lengths"], ends, strict=True)):
        digest = hashlib.blake2b(shard["codes"][start:end].tobytes(), digest_size=16).digest()
        new[i] = digest not in seen
        seen.add(digest)
    return new


def _choose(shard: Arrays, rows: np.ndarray) -> Arrays:
    codes = shard["codes"][np.repeat(rows, shard["lengths"])]
    return {"codes": codes, "lengths": shard["lengths"][rows], "labels": shard["labels"][rows]}


def without_closing_brackets(splits: Splits) -> Splits:
    """The set as the published pipeline reads it: without "]", the other ids unchanged."""
    codes = splits.train.codes  # all parts share them
    kept = codes != CLOSE
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])

    def shorter(part: Sequences) -> Sequences:
        starts = before[part.starts]
        sizes = (before[part.starts + part.sizes] - starts).astype(np.int32)
        return dataclasses.replace(part, codes=codes[kept], starts=starts, sizes=sizes)

    train, validation, test = (shorter(part) for part in (splits.train, splits.validation, splits.test))
    return Splits(train, validation, test, {**splits.facts, "closing_brackets": False})


def to_text(codes: np.ndarray) -> str:
    """Codes as written in the published files, without the parentheses.

    Examples:
        >>> to_text(np.array([10, 4, 7, 14]))
        '[MIN 4 7 ]'
    """
    return " ".join(TOKENS[code] for code in codes)
