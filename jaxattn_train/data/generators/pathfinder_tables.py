"""Deterministic tables of Pathfinder: the picture of a dash in each direction, and the directions that may follow.

Positions are whole pixels, so that only few directions occur: 360 whole degrees for the first dash of a path,
and for the following ones those to the pixels of a small circle. Each needs a few integers and a 9 × 9 picture,
computed once. Floating point is rounded before it becomes an integer, so that the last bit of a sine changes
nothing.

The numbers are those the published set was made with (Long Range Arena, lra_benchmarks/data/pathfinder.py, on
drewlinsley/pathfinder): dashes of length 2 and thickness 1/2 with a margin of 1, drawn at twice the size and
reduced with Lanczos' filter; dots of radius 3/2; continuity 1.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

LENGTH, MARGIN, SEED_DISTANCE = 2, 1, 7
PATCH = 9  # side of a dash's picture
DEGREES = 360
_FINE = 2  # drawn at this many times the size
_REACH = LENGTH + 1 + MARGIN  # a dash's picture goes this far from where it starts


class Tables(NamedTuple):
    """Integers by direction: 0–359 are degrees of a first dash, from 360 on the pixels of `circle`."""

    circle: np.ndarray
    """(K, 2): where a dash may end, from its pivot (rows, columns)."""
    weight: np.ndarray
    """(360 + K, K): weight of each as the next direction; cos² of the turn · 2¹⁶."""
    advance: np.ndarray
    """(360 + K, 2): from a dash's pivot to the next one's."""
    pivot: np.ndarray
    """(360, 2): from where a first dash starts to its pivot, just behind it."""
    beside: np.ndarray
    """(360, 2): a step of `SEED_DISTANCE`."""
    line: np.ndarray
    """uint8 (360 + K, 9, 9): the dash, around where it starts (a first one) or ends (a later one)."""
    room: np.ndarray
    """uint8 (360 + K, 9, 9): the space it occupies, with its margin."""
    dot: np.ndarray
    """uint8 (9, 9): a dot, around its centre."""


@functools.cache
def tables() -> Tables:
    """The tables, made once."""
    degrees = [math.radians(degree) for degree in range(-180, 180)]
    # The circle in steps of about a pixel's width, cut to pixels as the published generator cuts them.
    radius = LENGTH + MARGIN
    angles = [step / radius for step in range(math.ceil(2 * math.pi * radius))]
    pixels = sorted({(_floor(radius * math.sin(a)), _floor(radius * math.cos(a))) for a in angles})
    onward = [math.atan2(row, column) for row, column in pixels]
    every = degrees + onward
    # A later dash is drawn backwards from its end.
    pictures = [_dash(direction) for direction in degrees] + [_dash(a + math.pi) for a in onward]
    head = np.array([_step(direction, LENGTH) for direction in degrees])
    back = np.array([_step(direction + math.pi, LENGTH + MARGIN) for direction in degrees])
    return Tables(
        circle=np.array(pixels),
        weight=np.array([[_weight(a - b) for b in onward] for a in every]),
        advance=np.array([_step(direction, LENGTH + 2 * MARGIN) for direction in every]),
        pivot=head + back,
        beside=np.array(
            [[_floor(SEED_DISTANCE * f(a) + 0.5) for f in (math.sin, math.cos)] for a in degrees]
        ),
        line=np.array([line for line, _ in pictures]),
        room=np.array([room for _, room in pictures]),
        dot=_dot(1.5),
    )


def _floor(x: float) -> int:
    return math.floor(round(x, 9))


def _away(x: float) -> int:
    """The nearest integer, halves away from zero: as lines are drawn."""
    return int(math.copysign(_floor(abs(x) + 0.5), x))


def _step(direction: float, distance: float) -> tuple[int, int]:
    return -_floor(-distance * math.sin(direction)), -_floor(-distance * math.cos(direction))


def _weight(turn: float) -> int:
    turn = abs(turn) % (2 * math.pi)
    turn = min(turn, 2 * math.pi - turn, math.pi / 2)
    return round(round(math.cos(turn) ** 2, 9) * 2**16)


def _dash(direction: float) -> tuple[np.ndarray, np.ndarray]:
    centre = _REACH * _FINE
    fine = np.zeros((2 * centre + 1, 2 * centre + 1))
    end = _step(direction, LENGTH * _FINE)
    steps = max(map(abs, end))
    for i in range(steps + 1):
        row, column = (_away(d * i / steps) for d in end)
        fine[centre + row, centre + column] = 255
    near = [(r, c) for r in range(-2, 3) for c in range(-2, 3) if r * r + c * c <= (MARGIN * _FINE) ** 2]
    wide = np.max([np.roll(fine, offset, (0, 1)) for offset in near], axis=0)  # the edge is empty
    return _reduced(fine, PATCH), _reduced(wide, PATCH)


def _dot(radius: float) -> np.ndarray:
    # Pixel i is the fine pixels 2i and 2i + 1, and the dot's centre the first of them.
    place = np.arange(-PATCH // 2 * _FINE + 2, (PATCH // 2 + 1) * _FINE)
    fine = 255.0 * (place[:, None] ** 2 + place**2 <= (radius * _FINE) ** 2)
    return _reduced(fine, PATCH)


def _reduced(fine: np.ndarray, size: int) -> np.ndarray:
    """A smaller picture by Lanczos' filter of three lobes, uint8."""
    scale = len(fine) / size
    distance = (np.arange(len(fine)) + 0.5) / scale - (np.arange(size)[:, None] + 0.5)
    filters = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
    filters /= filters.sum(1, keepdims=True)
    # Rows, then columns, each to 8 bits: so Pillow does it, which made the published pictures.
    return _bytes(filters @ _bytes(fine @ filters.T))


def _bytes(exact: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(np.round(exact, 6) + 0.5), 0, 255).astype(np.uint8)
