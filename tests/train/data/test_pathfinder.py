import dataclasses
import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxattn_train.data.generators.pathfinder import (
    PathfinderSpec,
    describe_shard,
    load_pathfinder,
    make_shard,
)
from jaxattn_train.data.generators.pathfinder_paths import DISTRACTOR, SIZE, TARGET
from jaxattn_train.data.generators.pathfinder_tables import DEGREES, tables
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.lra.pathfinder_released import load_released

SMALL = PathfinderSpec(seed=0, sizes=(30, 6, 4), shard_size=20)
COUNT = 200


@pytest.fixture(scope="module")
def described():
    return describe_shard(3, 1, COUNT)


@pytest.fixture(scope="module")
def pictures():
    made = make_shard(3, 1, COUNT)
    return made["images"].reshape(-1, SIZE, SIZE), made["labels"]


def corners(direction, place):
    """Both ends of every dash, from its direction as an angle: (..., dashes, 2, 2)."""
    circle = tables().circle
    angle = np.concatenate([np.radians(np.arange(-180, 180)), np.arctan2(circle[:, 0], circle[:, 1])])[
        direction
    ]
    along = 2 * np.stack([np.sin(angle), np.cos(angle)], -1)
    first = (direction < DEGREES)[..., None]
    return np.stack([np.where(first, place, place - along), np.where(first, place + along, place)], -2)


def crossings(one, other):
    """Which segments (..., 2, 2) of two lists cross, (..., n, m)."""
    p, q, r, s = (
        x
        for pair in (one[..., :, None, :, :], other[..., None, :, :, :])
        for x in (pair[..., 0, :], pair[..., 1, :])
    )

    def side(a, b, c):
        return (b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0]

    return (side(p, q, r) * side(p, q, s) < 0) & (side(r, s, p) * side(r, s, q) < 0)


def links(dashes):
    """The segments of a whole path, the gaps between its dashes included."""
    points = dashes.reshape(*dashes.shape[:-3], -1, 2)
    return np.stack([points[..., :-1, :], points[..., 1:, :]], -2)


def dots(picture, ends):
    """Which of `ends` (n, 2) carry a dot, from the pixels alone: a disc at least as bright as a dot is."""
    found = []
    shape = tables().dot[2:7, 2:7].astype(float)
    dot = np.argwhere(shape > 60) - 2
    level = shape[shape > 60] / shape.max()
    padded = np.pad(picture.astype(float), 3)
    for row, column in ends:
        there = padded[row + 3 + dot[:, 0], column + 3 + dot[:, 1]]
        found.append(there[level == 1].min() > 150 and (there >= level * there[level == 1].min() - 3).all())
    return np.array(found)


def test_the_label_is_what_the_dots_say(described, pictures):
    paths, first, label = described
    sure = 0
    for n, picture in enumerate(pictures[0]):
        starts, ends = paths.place[n, :, 0], paths.place[n, :, -1]
        on = dots(picture, np.concatenate([starts, ends]))
        same = label[n] == 1
        assert on[first[n]] and on[2 + (first[n] if same else 1 - first[n])]
        if on.sum() == 2:  # else something bright lies over another end
            sure += 1
            assert on[:2].sum() == 1 and (on[:2].argmax() == on[2:].argmax()) == same
    assert sure > 0.9 * COUNT


def test_fewer_dashes_and_no_short_paths_make_an_easier_set(tmp_path):
    paths, _, _ = describe_shard(3, 1, 40, 4, 0)
    assert paths.direction.shape == (40, 2, 4) and paths.short_direction.shape == (40, 0, 4)
    bright = [(make_shard(3, 1, 40, dashes, 0)["images"] > 0).sum(1).mean() for dashes in (4, 14)]
    assert 2 * bright[0] < bright[1]  # pixels of the dashes, and of two dots
    easy = dataclasses.replace(SMALL, contour_length=4, distractors=0)
    splits = load_pathfinder(easy, folder=tmp_path, workers=1)
    assert splits.facts["contour_length"] == 4 and splits.facts["distractors"] == 0
    assert (splits.train.codes[:1024] == make_shard(0, 0, 1, 4, 0)["images"][0]).all()
    for wrong in ({"contour_length": 1}, {"contour_length": 15}, {"distractors": 6}):
        with pytest.raises(UserError, match="contour length of 2 to 14 and 0 to 5 distractors"):
            dataclasses.replace(SMALL, **wrong)


def test_a_flood_from_one_dot_reaches_the_other_on_the_same_path_only(described):
    paths, first, label = described
    dashes = corners(paths.direction, paths.place)
    crossed = crossings(links(dashes[:, 0]), links(dashes[:, 1])).any((1, 2))
    assert (
        crossed.mean() < 0.2
    )  # gaps may be crossed, as in the published pictures; a flood cannot tell there
    scale, checked = 32, 0
    for n in np.flatnonzero(~crossed)[:60]:
        canvas = np.zeros((SIZE * scale, SIZE * scale), bool)
        for a, b in links(dashes[n]).reshape(-1, 2, 2):
            steps = np.linspace(a, b, 400)
            canvas[tuple((steps * scale).astype(int).T)] = True
        start = paths.place[n, first[n], 0] * scale
        reached, front = np.zeros_like(canvas), [tuple(start)]
        while front:
            row, column = front.pop()
            if canvas[row, column] and not reached[row, column]:
                reached[row, column] = True
                front += [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        same = first[n] if label[n] else 1 - first[n]
        other = paths.place[n, same, -1] * scale
        assert reached[tuple(start)]
        assert reached[tuple(other)] == (label[n] == 1), n
        checked += 1
    assert checked == 60


def test_paths_are_as_long_as_specified_and_dashes_do_not_cross(described):
    paths = described[0]
    assert paths.direction.shape == (COUNT, 2, TARGET) and TARGET == 14
    assert paths.short_direction.shape == (COUNT, 5, DISTRACTOR) and DISTRACTOR == 4
    there = paths.short_direction[:, :, 0] >= 0
    assert (there == (paths.short_direction >= 0).all(-1)).all()  # whole short paths or none
    assert 4 < there.sum(1).mean() <= 5
    long = corners(paths.direction, paths.place)
    gaps = np.linalg.norm(long[:, :, 1:, 0] - long[:, :, :-1, 1], axis=-1)
    assert gaps.max() < 5 and 1 < gaps.mean() < 2.5
    every = [long[:, 0], long[:, 1]]
    short = corners(np.maximum(paths.short_direction, 0), paths.short_place)
    every += [np.where(there[:, k, None, None, None], short[:, k], -50.0 - k) for k in range(5)]
    for k, one in enumerate(every):
        for other in every[:k]:
            assert not crossings(one, other).any()
    assert paths.place.min() >= 1 and paths.place.max() <= SIZE - 2


def test_a_path_goes_on_readily_rather_than_turns(described):
    direction = described[0].direction[:, :, 1:]
    circle = tables().circle
    angle = np.arctan2(circle[:, 0], circle[:, 1])[direction - DEGREES]
    turn = np.abs((np.diff(angle, axis=-1) + np.pi) % (2 * np.pi) - np.pi)
    assert turn.max() <= np.pi / 2 + 1e-9
    assert (turn < np.pi / 4).mean() > 0.6


def test_dashes_and_dots_look_as_the_drawing_library_of_the_published_set_makes_them():
    def small(fine, side):
        return np.array(Image.fromarray(fine).resize((side, side), Image.Resampling.LANCZOS)).astype(int)

    made = tables()
    for degree in range(-180, 180, 7):
        fine = Image.new("L", (17, 17), 0)
        row, column = (8 + math.ceil(round(4 * f(math.radians(degree)), 9)) for f in (math.sin, math.cos))
        ImageDraw.Draw(fine).line([(8, 8), (column, row)], fill=255, width=1)
        line = np.array(fine)
        assert np.abs(small(line, 9) - made.line[degree + 180]).max() == 0
        disc = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if i * i + j * j <= 4]
        wide = np.max([np.roll(line, step, (0, 1)) for step in disc], axis=0)
        assert np.abs(small(wide, 9) - made.room[degree + 180]).max() == 0
    y, x = np.ogrid[-32:32, -32:32]
    dot = small((255 * (y**2 + x**2 <= 9)).astype(np.uint8), 32)
    assert np.abs(dot[12:21, 12:21] - made.dot).max() == 0


def test_the_pictures_look_as_described(pictures):
    images, labels = pictures
    assert images.dtype == np.uint8 and (images.max((1, 2)) == 255).all()
    lit = (images > 30).mean((1, 2))
    assert 0.1 < lit.mean() < 0.4
    assert not (images[:, [0, -1]] > 200).any()  # nothing but the rim of a dot or a dash reaches the edge
    assert abs(int(labels.sum()) * 2 - COUNT) <= 1
    assert len(np.unique(images.reshape(COUNT, -1), axis=0)) == COUNT


def test_brightness_does_not_give_the_label_away(pictures):
    images, labels = pictures
    means = [images[labels == k].mean((1, 2)) for k in (0, 1)]
    error = np.sqrt(sum(m.var() / len(m) for m in means))
    assert abs(means[0].mean() - means[1].mean()) < 4 * error


def test_a_shorter_shard_is_the_beginning_of_a_longer_one():
    short, long = make_shard(5, 0, 20), make_shard(5, 0, 300)  # 300 take more than one batch
    np.testing.assert_array_equal(short["images"], long["images"][:20])
    np.testing.assert_array_equal(short["labels"], long["labels"][:20])


def test_every_part_is_balanced(tmp_path):
    splits = load_pathfinder(SMALL, folder=tmp_path, workers=1)
    for part, size in zip(splits[:3], SMALL.sizes, strict=True):
        assert len(part) == size and part.labels.sum() * 2 == size
        assert (part.lengths == SIZE * SIZE).all()
    batch = splits.test.padded(np.arange(4), SIZE * SIZE)
    assert batch.tokens.shape == (4, 1024) and batch.tokens.max() == 255 and batch.tokens.min() == 0
    with pytest.raises(UserError, match="three sizes"):
        PathfinderSpec(sizes=(0, 1, 1))


@pytest.mark.slow
def test_workers_do_not_matter(tmp_path):
    one, two = (load_pathfinder(SMALL, folder=tmp_path / str(n), workers=n) for n in (1, 2))
    assert [part.sha256() for part in one[:3]] == [part.sha256() for part in two[:3]]
    (first,), (second,) = ((tmp_path / name).iterdir() for name in ("1", "2"))
    assert first.read_bytes() == second.read_bytes()


@pytest.fixture
def released(tmp_path, pictures):
    """A folder laid out as the release: text under the name of an array, numbered folders, one empty file."""
    root = tmp_path / "pathfinder32" / "curv_contour_length_14"
    (root / "metadata").mkdir(parents=True)
    for batch in (0, 1, 10, 2):
        (root / "imgs" / str(batch)).mkdir(parents=True)
        lines = []
        for n in range(5):
            which = {0: 0, 1: 5, 2: 10, 10: 15}[batch] + n
            path = root / "imgs" / str(batch) / f"sample_{n}.png"
            Image.fromarray(pictures[0][which]).save(path)
            lines.append(f"imgs/{batch} sample_{n}.png {n} {pictures[1][which]} 1.0 14 4 2 0.5 1 1")
        (root / "metadata" / f"{batch}.npy").write_text("\n".join(lines) + "\n")
    (root / "imgs" / "1" / "sample_2.png").write_bytes(b"")
    return root


def test_released_files_are_read(released, tmp_path, pictures):
    kept = [n for n in range(20) if n != 7]
    for path in (released, released.parent, released.parents[1]):  # from the files, then from the cache
        splits = load_released(str(path), cache=tmp_path / "cache")
        assert [len(part) for part in splits[:3]] == [17, 1, 1]
        assert splits.facts["empty_files"] == 1
        batch = splits.train.padded(np.arange(17), 1024)
        np.testing.assert_array_equal(batch.tokens, pictures[0][kept[:17]].reshape(17, -1))
        np.testing.assert_array_equal(batch.labels, pictures[1][kept[:17]])


def test_metadata_may_be_an_array(released, tmp_path, pictures):
    file = released / "metadata" / "0.npy"
    np.save(file, np.array([line.split() for line in file.read_text().splitlines()]))
    assert load_released(str(released), cache=tmp_path / "cache").train.labels[0] == pictures[1][0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: [f.unlink() for f in (root / "metadata").iterdir()], "has no metadata/0.npy"),
        (lambda root: (root / "imgs/2/sample_3.png").unlink(), "cannot read .*sample_3.png"),
        (
            lambda root: (root / "imgs/2/sample_3.png").write_bytes(b"no"),
            "cannot read .*sample_3.png",
        ),
        (
            lambda root: Image.new("L", (8, 32)).save(root / "imgs/0/sample_0.png"),
            "32 × 32 pixels; it has 8 × 32",
        ),
        (
            lambda root: (root / "metadata/1.npy").write_text("imgs/0 sample_0.png 0 7\n"),
            "1.npy:1: expected folder",
        ),
        (lambda root: (root / "metadata/1.npy").write_bytes(b"\xff\xfe"), "cannot read .*1.npy"),
    ],
)
def test_a_spoilt_release_gives_one_clear_error(released, tmp_path, spoil, message):
    spoil(released)
    with pytest.raises(UserError, match=message):
        load_released(str(released), cache=tmp_path / "cache")
