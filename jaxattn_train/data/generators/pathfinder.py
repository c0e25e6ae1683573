"""Pathfinder with 32 × 32 pixels of the Long Range Arena, generated: are the two dots on the same dashed path?

Every picture has two long paths, as published of 14 dashes, and up to five short ones. One dot marks the start
of a long path, the other the end of the same (label 1) or of the other (label 0). Paths and contrasts follow the
published generator (`pathfinder_paths`, `pathfinder_tables`): short paths are brighter than long ones by 4/3. It drew
each label independently; here they come in pairs, one of each, in random order, so that every part is balanced.

The data depend on the seed and the sizes alone, as for ListOps. The released files are read by
`pathfinder_released`.
"""

import dataclasses
from pathlib import Path

import numpy as np

from jaxattn_train.data.generators.array_file import Arrays
from jaxattn_train.data.generators.counter_random import Stream
from jaxattn_train.data.generators.pathfinder_paths import DISTRACTORS, SIZE, TARGET, Paths, draw_paths
from jaxattn_train.data.generators.pathfinder_tables import PATCH, tables
from jaxattn_train.data.generators.shards import generated, make_shards
from jaxattn_train.data.sequences import Sequences, Splits, split_up
from jaxattn_train.errors import UserError

SIZES = (160_000, 20_000, 20_000)
LENGTH = SIZE * SIZE
VOCABULARY_SIZE = 256  # no padding
_VERSION = 1  # of the generator: raise it with any change of the data
# Contrasts in halves: a long path's is 2 · 0.75, a short one's 2, a dot's 1.
_LONG, _SHORT, _DOT = 3, 4, 2
_EDGE = 12


@dataclasses.dataclass(frozen=True)
class PathfinderSpec:
    """Everything the data depend on."""

    seed: int = 0
    sizes: tuple[int, int, int] = SIZES
    """Pictures for training, validation and test."""
    contour_length: int = TARGET
    """Dashes of a long path; fewer are easier."""
    distractors: int = DISTRACTORS
    """Short paths in a picture, at most."""
    shard_size: int = 2000
    """Pictures of a shard."""

    def __post_init__(self):
        if len(self.sizes) != 3 or min(self.sizes) < 1:
            raise UserError(f"Pathfinder needs three sizes of at least 1; got {self.sizes}.")
        if self.seed < 0 or self.shard_size < 1:
            raise UserError(
                f"Pathfinder needs a seed of at least 0 and shards of at least 1; got {self.seed} and "
                f"{self.shard_size}."
            )
        if not 2 <= self.contour_length <= TARGET or not 0 <= self.distractors <= DISTRACTORS:
            raise UserError(
                f"Pathfinder needs a contour length of 2 to {TARGET} and 0 to {DISTRACTORS} distractors; got "
                f"{self.contour_length} and {self.distractors}."
            )


def load_pathfinder(spec: PathfinderSpec, *, folder: Path, workers: int | None = None) -> Splits:
    """Reads the set from `folder`, or generates it and keeps it there.

    Args:
        spec: what to generate.
        folder: of the cache; an interrupted generation resumes from the shards it left here.
        workers: processes; None takes one for each processor.

    Returns:
        The three parts, 1,024 pixels a picture, row by row.

    Raises:
        UserError: the folder cannot be used, or a file in it is damaged.
    """
    about = {"task": "pathfinder", "version": _VERSION, **dataclasses.asdict(spec)}
    easier = {"contour_length": spec.contour_length, "distractors": spec.distractors}

    def make(shards: Path) -> Arrays:
        starts = range(0, sum(spec.sizes), spec.shard_size)
        counts = [min(spec.shard_size, sum(spec.sizes) - start) for start in starts]
        tasks = {n: (spec.seed, n, count, *easier.values()) for n, count in enumerate(counts)}
        made = make_shards(make_shard, tasks, folder=shards, about=about, workers=workers)
        return {name: np.concatenate([part[name] for part in made.values()]) for name in ("images", "labels")}

    stored = generated(folder, about, make)
    whole = pictures(stored["images"], stored["labels"])
    return split_up(whole, spec.sizes[:2], {"source": "generated", "seed": spec.seed, **easier})


def pictures(images: np.ndarray, labels: np.ndarray) -> Sequences:
    """Pictures, uint8 (pictures, pixels), as sequences: a token's id is its brightness; there is no padding."""
    sizes = np.full(len(images), images.shape[1])
    return Sequences.end_to_end(images.reshape(-1), sizes, labels)


def make_shard(
    seed: int, shard: int, count: int, contour_length: int = TARGET, distractors: int = DISTRACTORS
) -> Arrays:
    """The first `count` pictures of a shard: `images` uint8 (count, 1024), `labels` uint8 (count,)."""
    paths, first, label = describe_shard(seed, shard, count, contour_length, distractors)
    return {"images": draw(paths, first, label).reshape(count, LENGTH), "labels": label.astype(np.uint8)}


def describe_shard(
    seed: int, shard: int, count: int, contour_length: int = TARGET, distractors: int = DISTRACTORS
) -> tuple[Paths, np.ndarray, np.ndarray]:
    """What is drawn on a shard's pictures.

    Args:
        seed: of the set.
        shard: its number.
        count: of pictures.
        contour_length: dashes of a long path.
        distractors: short paths, at most.

    Returns:
        The dashes; the long path on whose start a dot lies, int64 (count,); the labels, int64 (count,).
    """
    stream = Stream("pathfinder", _VERSION, seed, shard)
    parts, have = [], 0
    while have < count:
        parts.append(draw_paths(stream, contour_length, distractors))
        have += len(parts[-1].direction)
    paths = Paths(*(np.concatenate(column)[:count] for column in zip(*parts, strict=True)))
    # A stream of their own: a shorter shard then is the beginning of a longer one.
    dots = Stream("pathfinder", _VERSION, seed, shard, "dots")
    pair = np.repeat(dots.below(2, (count + 1) // 2), 2)[:count]
    label = (pair + np.arange(count)) % 2
    return paths, Stream("pathfinder", _VERSION, seed, shard, "first").below(2, count), label


def draw(paths: Paths, first: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Draws pictures.

    Args:
        paths: their dashes.
        first: the long path on whose start a dot lies.
        label: 1 if the other dot lies on the end of the same path, 0 for the other path.

    Returns:
        uint8 (pictures, 32, 32); the brightest pixel of each is 255.
    """
    count = len(first)
    side = SIZE + 2 * _EDGE
    canvas = np.zeros(count * side * side, np.int64)
    grid = np.arange(PATCH) - PATCH // 2
    patch = (grid[:, None] * side + grid).ravel()

    def put(which: np.ndarray, place: np.ndarray, what: np.ndarray) -> None:
        corner = (which * side + place[:, 0] + _EDGE) * side + place[:, 1] + _EDGE
        index = (corner[:, None] + patch).ravel()
        canvas[index] = np.maximum(canvas[index], what.ravel())

    every = np.arange(count)
    line = tables().line.astype(np.int64)
    for path in range(paths.direction.shape[1]):
        for dash in range(paths.direction.shape[2]):
            put(every, paths.place[:, path, dash], _LONG * line[paths.direction[:, path, dash]])
    for path in range(paths.short_direction.shape[1]):
        there = np.flatnonzero(paths.short_direction[:, path, 0] >= 0)
        for dash in range(paths.short_direction.shape[2]):
            direction, place = paths.short_direction[there, path, dash], paths.short_place[there, path, dash]
            put(there, place, _SHORT * line[direction])
    dot = np.tile(_DOT * tables().dot.astype(np.int64), (count, 1, 1))
    put(every, paths.place[every, first, 0], dot)
    put(every, paths.place[every, np.where(label == 1, first, 1 - first), -1], dot)
    drawn = canvas.reshape(count, side, side)[:, _EDGE:-_EDGE, _EDGE:-_EDGE]
    brightest = drawn.max((1, 2), keepdims=True)
    return ((2 * 255 * drawn + brightest) // (2 * brightest)).astype(np.uint8)
