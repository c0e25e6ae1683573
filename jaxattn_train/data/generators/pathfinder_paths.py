"""Positions of the dashes of Pathfinder: two disjoint long paths, and short ones in the remaining space.

As in the published generator (drewlinsley/pathfinder, snakes2.py): the first path starts near the middle, the second
at a fixed distance from there; they grow alternately, dash by dash, each in a direction drawn with preference for
small turns and a free end; if one finds no place in three trials, both start again. Then up to five short paths, five
trials each, start anywhere free. A dash occupies its own pixels and a margin.

Thousands of pictures grow at once: a step is a few operations on arrays of integers.

Differences, which keep dashes from crossing: the long paths also avoid each other's last dash, and the short ones the
last dash of both (there, paths may cross in these places); a first dash has to fit like the later ones, and space
for it is searched exactly where it will be drawn (there, one pixel beside), at 64 places instead of all.
"""

from typing import NamedTuple

import numpy as np

from jaxattn_train.data.generators.counter_random import Stream, scale
from jaxattn_train.data.generators.pathfinder_tables import DEGREES, PATCH, SEED_DISTANCE, tables

SIZE = 32
TARGET, DISTRACTOR, DISTRACTORS = 14, 4, 5  # dashes of a long path, of a short one, short paths
_TRIALS, _RETRIES = 3, 5  # to place a dash, a short path
_SEARCHED = 64  # places looked at for the first dash of a short path
_PAD = 12  # around the picture in the array, always occupied
_SIDE = SIZE + 2 * _PAD
_TAKEN, _FULL = 76, 459  # more than this is occupied; margins that sum up to this collide (of 255 and 510)

LANES = 8192  # pictures begun at once; the data of a seed depend on it


class Paths(NamedTuple):
    """The dashes of some pictures: directions as in `Tables`, and where each starts (a first one) or ends."""

    direction: np.ndarray
    """int16 (pictures, 2, dashes)."""
    place: np.ndarray
    """int16 (pictures, 2, dashes, 2): row and column."""
    short_direction: np.ndarray
    """int16 (pictures, distractors, 4); −1 where no short path found room."""
    short_place: np.ndarray
    """int16 (pictures, distractors, 4, 2)."""


class _Room:
    """What is occupied in each of some pictures, 0 to 255, flat."""

    def __init__(self, lanes: int):
        room = np.full((lanes, _SIDE, _SIDE), 255, np.uint8)
        room[:, _PAD + 1 : -_PAD - 1, _PAD + 1 : -_PAD - 1] = 0  # the outermost pixel is never free
        self.flat = room.reshape(-1)

    def take(self, lanes: np.ndarray) -> "_Room":
        room = _Room(0)
        room.flat = self.flat.reshape(-1, _SIDE * _SIDE)[lanes].reshape(-1)
        return room

    def put(self, lanes: np.ndarray, other: "_Room", others: np.ndarray) -> None:
        self.flat.reshape(-1, _SIDE * _SIDE)[lanes] = other.flat.reshape(-1, _SIDE * _SIDE)[others]

    def occupy(self, lanes: np.ndarray, direction: np.ndarray, place: np.ndarray) -> None:
        index = (_index(lanes, place)[:, None] + _PATCH).ravel()
        self.flat[index] = np.maximum(self.flat[index], _ROOM[direction].ravel())

    def collides(self, lanes: np.ndarray, direction: np.ndarray, place: np.ndarray) -> np.ndarray:
        there = self.flat[_index(lanes, place)[:, None] + _CORE[direction]]
        return (there + _CORE_ROOM[direction] >= _FULL).any(1)


def draw_paths(stream: Stream, dashes: int = TARGET, distractors: int = DISTRACTORS) -> Paths:
    """The pictures that `LANES` trials give: about three in a hundred for 14 dashes.

    Args:
        stream: of random integers; the result depends on its name and on the other arguments only.
        dashes: of a long path.
        distractors: short paths, at most.

    Returns:
        Their dashes.
    """
    direction, place, room = _long_paths(stream, dashes)
    short_direction, short_place = _short_paths(stream, room, len(direction), distractors)
    return Paths(direction, place, short_direction, short_place)


def _long_paths(stream: Stream, dashes: int) -> tuple[np.ndarray, np.ndarray, _Room]:
    direction = np.zeros((LANES, 2, dashes), np.int16)
    place = np.zeros((LANES, 2, dashes, 2), np.int16)
    first = stream.below(DEGREES, LANES)
    lanes = np.flatnonzero(_STARTS[first])
    first = first[lanes]
    begin = _START[first, scale(stream.bits(len(lanes)), _STARTS[first])]
    start = [begin, begin + tables().beside[stream.below(DEGREES, len(lanes))]]
    now = [first, stream.below(DEGREES, len(lanes))]
    rooms = [_Room(LANES), _Room(LANES)]  # what each path must keep off: all but its own last dash
    pivot, last = [], start
    for path in (0, 1):
        direction[lanes, path, 0], place[lanes, path, 0] = now[path], start[path]
        pivot.append(start[path] + tables().pivot[now[path]])
        rooms[1 - path].occupy(lanes, now[path], start[path])
    for dash in range(1, dashes):
        for path in (0, 1):
            found, chosen, end, here = _extend(stream, rooms[path], lanes, now[path], pivot[path])
            rooms[path].occupy(lanes[found], now[path][found], last[path][found])
            now[path], pivot[path], last[path] = chosen, here, end
            lanes = lanes[found]
            now, pivot, last = ([x[found] for x in both] for both in (now, pivot, last))
            rooms[1 - path].occupy(lanes, now[path], last[path])
            direction[lanes, path, dash], place[lanes, path, dash] = now[path], last[path]
    rooms[0].occupy(lanes, now[0], last[0])  # of all there is
    return direction[lanes], place[lanes], rooms[0].take(lanes)


def _short_paths(stream: Stream, room: _Room, count: int, paths: int) -> tuple[np.ndarray, np.ndarray]:
    direction = np.full((count, paths, DISTRACTOR), -1, np.int16)
    place = np.zeros((count, paths, DISTRACTOR, 2), np.int16)
    for path in range(paths):
        waiting = np.arange(count)
        for _ in range(_RETRIES):
            trial = room.take(waiting)
            found, directions, places = _short_path(stream, trial, len(waiting))
            direction[waiting[found], path], place[waiting[found], path] = directions, places
            room.put(waiting[found], trial, found)
            waiting = np.delete(waiting, found)
    return direction, place


def _short_path(stream: Stream, room: _Room, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One trial in each picture: where it succeeded, and its dashes there, which then occupy their room."""
    now = stream.below(DEGREES, count)
    candidates = stream.below(SIZE * SIZE, count * _SEARCHED).reshape(count, _SEARCHED)
    candidates = np.stack(np.divmod(candidates, SIZE), -1)
    index = _index(np.arange(count)[:, None], candidates)
    free = (room.flat[index[..., None] + _INSIDE[now][:, None]] <= _TAKEN).all(-1)
    lanes = np.flatnonzero(free.any(1))
    now, last = now[lanes], candidates[lanes, free[lanes].argmax(1)]
    fits = ~room.collides(lanes, now, last)
    lanes, now, last = lanes[fits], now[fits], last[fits]
    pivot = last + tables().pivot[now]
    direction, place = np.zeros((count, DISTRACTOR), np.int16), np.zeros((count, DISTRACTOR, 2), np.int16)
    direction[lanes, 0], place[lanes, 0] = now, last
    for dash in range(1, DISTRACTOR):
        found, chosen, end, pivot = _extend(stream, room, lanes, now, pivot)
        lanes = lanes[found]
        room.occupy(lanes, now[found], last[found])
        now, last, pivot = chosen[found], end[found], pivot[found]
        direction[lanes, dash], place[lanes, dash] = now, last
    room.occupy(lanes, now, last)
    return lanes, direction[lanes], place[lanes]


def _extend(
    stream: Stream, room: _Room, lanes: np.ndarray, direction: np.ndarray, pivot: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The next dash of a path in each picture: where there is one, its direction, its end, its pivot."""
    pivot = pivot + tables().advance[direction]
    near = (
        room.flat[_index(lanes, pivot)[:, None] + _AROUND]
        .reshape(len(lanes), len(tables().circle), 5)
        .max(-1)
    )
    weight = tables().weight[direction] * (255 - near.astype(np.int64))
    below = np.cumsum(weight, 1)
    found = np.zeros(len(lanes), bool)
    chosen, end = np.zeros(len(lanes), np.int64), np.zeros((len(lanes), 2), np.int64)
    left = np.flatnonzero(below[:, -1] > 0)
    for _ in range(_TRIALS):
        drawn = scale(stream.bits(len(left)), below[left, -1])
        pick = (below[left] > drawn[:, None]).argmax(1)
        chosen[left], end[left] = DEGREES + pick, pivot[left] + tables().circle[pick]
        fits = ~room.collides(lanes[left], chosen[left], end[left])
        found[left[fits]] = True
        left = left[~fits]
    return np.flatnonzero(found), chosen, end, pivot


def _index(lanes: np.ndarray, place: np.ndarray) -> np.ndarray:
    return (lanes * _SIDE + place[..., 0] + _PAD) * _SIDE + place[..., 1] + _PAD


def _offsets(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., 0] * _SIDE + pixels[..., 1]


def _chosen_pixels(mask: np.ndarray) -> np.ndarray:
    """The pixels of a dash's picture where `mask`, (directions, most, 2); a shorter list repeats its first."""
    lists = [np.argwhere(one) - PATCH // 2 for one in mask]
    most = max(map(len, lists))
    return np.array([np.concatenate([one, np.repeat(one[:1], most - len(one), 0)]) for one in lists])


def _starts() -> tuple[np.ndarray, np.ndarray]:
    """Where a first dash that goes some way may start: its inside within the middle of the picture."""
    inside = _chosen_pixels(tables().room[:DEGREES] == 255)
    places = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), -1).reshape(-1, 2)
    pixels = places[:, None] + inside[:, None]
    edge = 2 * SEED_DISTANCE
    fits = ((pixels >= edge) & (pixels < SIZE - edge)).all((2, 3))
    order = np.argsort(~fits, axis=1, kind="stable")[:, : fits.sum(1).max()]
    return places[order], fits.sum(1)


_PATCH = _offsets(np.stack(np.meshgrid(*[np.arange(PATCH) - PATCH // 2] * 2, indexing="ij"), -1)).ravel()
_ROOM = tables().room.reshape(-1, PATCH * PATCH)
_INSIDE = _offsets(_chosen_pixels(tables().room[:DEGREES] == 255))
# A pixel can collide only where the dash occupies it by at least this much.
_CORE_PIXELS = _chosen_pixels(tables().room >= _FULL - 255)
_CORE = _offsets(_CORE_PIXELS)
_CORE_ROOM = np.array(
    [r[p[:, 0] + PATCH // 2, p[:, 1] + PATCH // 2] for r, p in zip(tables().room, _CORE_PIXELS, strict=True)]
).astype(np.int64)
_CROSS = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])
_AROUND = _offsets(tables().circle[:, None] + _CROSS).ravel()
_START, _STARTS = _starts()
