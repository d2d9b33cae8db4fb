"""Augmentations beside independent computations: loops, formulas, SciPy, Pillow, and images whose values tell where
they come from."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.data import augment
from fastopt.data.augment import warp as warping
from fastopt.data.augment.mixing import smoothed

TYPES = (np.uint8, np.float32, np.float64)
ALL = (
    augment.HorizontalFlip(),
    augment.VerticalFlip(p=0.3),
    augment.RandomCrop(2),
    augment.RandomCrop((1, 2), border="reflect", p=0.5),
    augment.RandomResizedCrop(),
    augment.Affine(0.2, 20, 1.2, 10, 1.2, "edge"),
    augment.Affine(rotate=(0, 90), fill=1.0, p=0.5),
    augment.LensDistortion(),
    augment.ColorJitter(0.3, 0.3, 0.3, 0.1),
    augment.ColorJitter(brightness=(0.5, 0.7), p=0.5),
    augment.Noise((0.01, 0.1)),
    augment.Cutout((3, 4), p=0.5),
    augment.Mixup(classes=4),
    augment.CutMix(classes=4, p=0.5),
    augment.CowMix(classes=4, sigma=(1, 3)),
    augment.Compose([augment.HorizontalFlip(), augment.RandomCrop(2)]),
    augment.OneOf([augment.Noise(), augment.Cutout(2), augment.Mixup(classes=4)], weights=[1, 2, 3], p=0.7),
)
IMAGE_ONLY = [each for each in ALL if not hasattr(each, "classes") and not isinstance(each, augment.OneOf)]


def pictures(n=12, h=9, w=11, c=3, dtype=np.float32):
    x = np.random.default_rng(1).integers(256, size=(n, h, w, c), dtype=np.uint8)
    return x if dtype == np.uint8 else (x / 255).astype(dtype)


def ramps(n, h, w):
    """Images whose two channels are the row and the column of each pixel: what moves pixels shows where from."""
    rows, columns = np.meshgrid(np.arange(h, dtype=float), np.arange(w, dtype=float), indexing="ij")
    return np.broadcast_to(np.stack([rows, columns], axis=-1), (n, h, w, 2)).copy()


def run(augmentation, x, y=None, seed=0):
    return augmentation(x, y, np.random.default_rng(seed))


# ---- What holds for all -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("augmentation", ALL, ids=repr)
def test_a_call(augmentation, dtype, same_bits):
    x, y = pictures(dtype=dtype), np.arange(12) % 4
    before = x.copy(), y.copy()
    first, targets = run(augmentation, x, y)
    assert (first.shape, first.dtype, first.flags.c_contiguous) == (x.shape, dtype, True)
    assert len(targets) == 12
    same_bits(x, before[0])
    same_bits(y, before[1])
    again, targets_again = run(augmentation, x, y)
    same_bits(again, first)
    same_bits(targets_again, targets)
    assert run(augmentation, x, y, seed=1)[0].tobytes() != first.tobytes()
    gaps = np.repeat(x, 2, axis=2)[:, :, ::2]
    same_bits(run(augmentation, gaps, y)[0], first)
    for n in (1, 2):
        assert run(augmentation, x[:n], y[:n])[0].shape == (n, *x.shape[1:])
    assert run(augmentation, x, None)[1] is None
    assert eval(repr(augmentation), vars(augment)) == augmentation
    assert hash(augmentation) == hash(eval(repr(augmentation), vars(augment)))


@pytest.mark.parametrize("augmentation", IMAGE_ONLY, ids=repr)
def test_targets_pass(augmentation):
    for y in (np.arange(12) % 4, np.ones((12, 3, 2)), np.array(["a"] * 12)):
        assert run(augmentation, pictures(), y)[1] is y


@pytest.mark.parametrize("kind", [type(each) for each in ALL] + [augment.Each])
def test_probabilities(kind):
    needed = {
        augment.Cutout: (5,),
        augment.Compose: ([augment.Noise()],),
        augment.OneOf: ([augment.Noise()],),
        augment.Each: (lambda image, rng: 1 - image,),
        augment.Affine: (0.1, 30),
        augment.ColorJitter: (0.4, 0.4),
        augment.RandomCrop: (3, 3),
    }.get(kind, ())
    more = {"classes": 2} if hasattr(kind, "classes") else {}
    x = pictures(400, 6, 6)
    never, always, sometimes = (run(kind(*needed, p=p, **more), x)[0] for p in (0, 1, 0.3))
    if kind is augment.RandomCrop:
        x = x[:, 1:4, 1:4]  # the window in the middle
    np.testing.assert_allclose(never, x, atol=1e-6)

    def changed(images):
        return (np.abs(images - x) > 1e-5).any(axis=(1, 2, 3)).mean()

    wanted = changed(always)
    assert wanted > 0.8
    assert abs(changed(sometimes) - 0.3 * wanted) < 0.09  # four standard deviations


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0]], None), "x must be a NumPy array, got list"),
        ((np.zeros((2, 4, 4)), None), r"x must be images of shape \(n, h, w, c\), got \(2, 4, 4\)"),
        ((np.zeros((0, 4, 4, 3)), None), r"x must hold an image of a pixel or more, got shape \(0, 4, 4, 3\)"),
        ((np.zeros((1, 4, 4, 3), np.int64), None), "x must be uint8, float32 or float64, got int64"),
        ((np.ma.zeros((1, 4, 4, 3)), None), "x must be a plain array"),
        ((np.zeros((2, 4, 4, 3)), [1, 2]), "y must be a NumPy array or None, got list"),
        ((np.zeros((2, 4, 4, 3)), np.arange(3)), r"y must have one target for each of 2 images, got shape \(3,\)"),
    ],
)
@pytest.mark.parametrize("augmentation", [ALL[0], ALL[5], ALL[12], ALL[15]], ids=repr)
def test_wrong_batches(augmentation, arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        run(augmentation, *arguments)


def test_a_seed_is_no_generator():
    with pytest.raises(TypeError, match=r"^rng must be a numpy.random.Generator, got int"):
        augment.HorizontalFlip()(pictures(), None, 0)


WRONG = {
    "p above 1": (lambda: augment.HorizontalFlip(p=1.5), r"p must be in \[0, 1\], got 1.5"),
    "NaN": (lambda: augment.Noise(p=float("nan")), r"p must be in \[0, 1\]"),
    "padding": (lambda: augment.RandomCrop(-1), "padding must be at least 0"),
    "no size": (lambda: augment.RandomCrop(size=0), "size must be at least 1"),
    "a size of three": (lambda: augment.Cutout((1, 2, 3)), "size must be one integer or a pair"),
    "border": (
        lambda: augment.Affine(border="wrap"),
        "border must be one of 'constant', 'edge', 'reflect'; got 'wrap'",
    ),
    "area": (lambda: augment.RandomResizedCrop(area=(0, 1)), r"area must be in \(0, 1\], got 0"),
    "ratio": (lambda: augment.RandomResizedCrop(ratio=(2, 1)), r"ratio must be \(low, high\), got \(2, 1\)"),
    "shear": (lambda: augment.Affine(shear=90), r"shear must be in \(-90, 90\)"),
    "scale": (lambda: augment.Affine(scale=0.5), r"scale must be in \[1, inf\), got 0.5"),
    "rotate": (lambda: augment.Affine(rotate=-5), r"rotate must be in \[0, inf\), got -5"),
    "a triple": (lambda: augment.Affine(rotate=(1, 2, 3)), r"rotate must be a number or a pair \(low, high\)"),
    "folding": (lambda: augment.LensDistortion(0.5), r"strength must be in \[-1/3, 1\], got 0.5"),
    "brightness": (lambda: augment.ColorJitter(brightness=-1), r"brightness must be in \[0, inf\)"),
    "hue": (lambda: augment.ColorJitter(hue=0.6), r"hue must be in \[-0.5, 0.5\]"),
    "noise": (lambda: augment.Noise("loud"), "std must be a number"),
    "clip": (lambda: augment.Noise(clip=1), "clip must be True or False"),
    "alpha": (lambda: augment.Mixup(0), r"alpha must be in \(0, 1000\], got 0"),
    "classes": (lambda: augment.CutMix(classes=0), "classes must be in"),
    "half a class": (lambda: augment.CowMix(classes=1.5), "classes must be an integer"),
    "proportion": (lambda: augment.CowMix(proportion=1.1), r"proportion must be in \[0, 1\]"),
    "one alone": (
        lambda: augment.Compose(augment.Noise()),
        "augmentations must be a sequence of augmentations, got No",
    ),
    "a class": (
        lambda: augment.Compose([augment.Noise]),
        r"augmentations\[0\] must be .* got the class Noise: call it",
    ),
    "a number": (lambda: augment.OneOf([augment.Noise(), 1]), r"augmentations\[1\] must be callable .* got int"),
    "nothing": (lambda: augment.OneOf([]), "augmentations must hold one or more"),
    "weights": (lambda: augment.OneOf([augment.Noise()], (1, 2)), "weights must be 1 numbers"),
    "no weight": (lambda: augment.OneOf([augment.Noise()], (0,)), "weights must be 1 numbers, one of them above 0"),
    "no function": (lambda: augment.Each(5), r"function must be callable as \(image, rng\), got 5"),
    "some floats": (lambda: augment.ToFloat(p=0.5), "p must be 1, since images have one type, got 0.5"),
    "fill": (lambda: run(augment.Cutout(2, 0.5), pictures(dtype=np.uint8)), r"fill must be an integer in \[0, 255\]"),
    "colours": (lambda: run(augment.ColorJitter(hue=0.1), pictures(c=1)), "x must have three channels for saturation"),
    "range": (lambda: run(augment.ColorJitter(0.1), pictures() * 2), r"x must be in \[0, 1\], got 0 to 2; change"),
    "NaN in x": (lambda: run(augment.ColorJitter(0.1), pictures() * np.nan), r"x must be in \[0, 1\], got nan"),
    "noise range": (lambda: run(augment.Noise(), -pictures()), r"x must be in \[0, 1\], got -1 to .*; clip=False"),
    "too large": (lambda: run(augment.RandomCrop(size=99), pictures()), r"size must be at most .* \(9, 11\), got"),
    "mirrored": (lambda: run(augment.RandomCrop(9, border="reflect"), pictures()), "padding must be less than"),
    "no classes": (lambda: run(augment.Mixup(), pictures(), np.arange(12)), "classes must be given .* classes=10, say"),
    "few classes": (lambda: run(augment.Mixup(classes=5), pictures(), np.arange(12)), r"y must be in \[0, 5\), got 5"),
    "text": (lambda: run(augment.CutMix(classes=5), pictures(), np.array(["a"] * 12)), "y must be labels"),
    "other shapes": (
        lambda: run(augment.OneOf([augment.RandomCrop(size=4), augment.Noise()]), pictures()),
        "images must stay of one shape and type",
    ),
    "some of another shape": (
        lambda: run(augment.Compose([augment.RandomCrop(size=4)], p=0.5), pictures()),
        "images must stay of one shape and type",
    ),
    "one's own": (
        lambda: run(augment.Each(lambda image, rng: image[: rng.integers(1, 9)]), pictures()),
        r"function must return images \(\d, 11, 3\) float32, got \(\d, 11, 3\) float32 for image \d",
    ),
    "one's own mean": (lambda: run(augment.Each(lambda i, rng: i.mean()), pictures()), r"function must .* \(h, w, c\)"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()


# ---- Flips and crops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("kind", "axis"), [(augment.HorizontalFlip, 1), (augment.VerticalFlip, 0)])
def test_flips(kind, axis, dtype):
    x = pictures(300, 5, 7, 3, dtype)
    flipped, _ = run(kind(p=1), x)
    np.testing.assert_array_equal(flipped, [np.flip(image, axis) for image in x])
    np.testing.assert_array_equal(run(kind(p=1), flipped)[0], x)
    some, _ = run(kind(), x)
    chosen = np.random.default_rng(0).random(300) < 0.5
    np.testing.assert_array_equal(some, np.where(chosen[:, None, None, None], flipped, x))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("border", ["constant", "edge", "reflect"])
@pytest.mark.parametrize(("padding", "size"), [(0, None), (2, None), ((1, 3), None), (0, 4), (2, (5, 12))])
def test_crops_are_windows(padding, size, border, dtype):
    x = pictures(60, 8, 10, 2, dtype)
    cut, _ = run(augment.RandomCrop(padding, size, border, 7.0 if border == "constant" else 0.0), x)
    (above, left), (h, w) = np.broadcast_to(padding, 2), np.broadcast_to((8, 10) if size is None else size, 2)
    options = {"constant_values": 7} if border == "constant" else {}
    found = set()
    for image, window in zip(x, cut, strict=True):
        padded = np.pad(image, ((above, above), (left, left), (0, 0)), border, **options)
        places = itertools.product(range(padded.shape[0] - h + 1), range(padded.shape[1] - w + 1))
        fits = [place for place in places if (padded[place[0] :, place[1] :][:h, :w] == window).all()]
        assert fits
        found.add(fits[0])
    assert cut.shape == (60, h, w, 2)
    assert len(found) > (1 if above or left or size else 0) * 5


def test_crops_are_everywhere_alike():
    x = ramps(5000, 6, 6)
    corners = run(augment.RandomCrop(size=4), x)[0][:, 0, 0].astype(int)
    counts = np.zeros((3, 3))
    np.add.at(counts, tuple(corners.T), 1)
    np.testing.assert_allclose(counts, 5000 / 9, rtol=0.15)


def test_a_crop_of_nothing_is_the_image():
    np.testing.assert_array_equal(run(augment.RandomCrop(), pictures())[0], pictures())


# ---- Resampling ---------------------------------------------------------------------------------------------

PLACES = st.floats(-30, 30)


def bilinear(image, row, column, border, fill):
    """One value, by the definition."""
    h, w = image.shape

    def pixel(i, j):
        if border == "edge":
            i, j = min(max(i, 0), h - 1), min(max(j, 0), w - 1)
        elif border == "reflect":
            i, j = (abs((k + n - 1) % max(2 * n - 2, 1) - n + 1) for k, n in ((i, h), (j, w)))
        elif not (0 <= i < h and 0 <= j < w):
            return fill
        return image[i, j]

    i, j = math.floor(row), math.floor(column)
    a, b = row - i, column - j
    return (1 - a) * ((1 - b) * pixel(i, j) + b * pixel(i, j + 1)) + a * (
        (1 - b) * pixel(i + 1, j) + b * pixel(i + 1, j + 1)
    )


@settings(max_examples=60)
@given(
    places=st.lists(st.tuples(PLACES, PLACES), min_size=1, max_size=6),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    border=st.sampled_from(warping.BORDERS),
)
def test_bilinear_by_the_definition(places, shape, border):
    x = np.random.default_rng(0).random((2, *shape, 2))
    rows, columns = (np.array([place[k] for place in places])[None, None] for k in (0, 1))
    warped = warping.warp(x, (1, len(places)), lambda some: (rows, columns), border, 0.25)
    for i, k, channel in np.ndindex(2, len(places), 2):
        wanted = bilinear(x[i, ..., channel], *places[k], border, 0.25)
        assert abs(warped[i, 0, k, channel] - wanted) < 1e-12


@pytest.mark.parametrize(
    ("border", "mode"), [("constant", "grid-constant"), ("edge", "nearest"), ("reflect", "mirror")]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.uint8, 0.51), (np.float32, 2e-5), (np.float64, 1e-12)])
def test_bilinear_beside_scipy(border, mode, dtype, tolerance, rng):
    ndimage = pytest.importorskip("scipy.ndimage")
    x = pictures(300, 9, 12, 3, dtype)  # several chunks
    places = rng.uniform(-20, 30, (2, 300, 7, 8))
    warped = warping.warp(x, (7, 8), lambda some: (places[0, some], places[1, some]), border, 1.0)
    for i in range(0, 300, 13):
        for channel in range(3):
            image = x[i, ..., channel].astype(float)
            wanted = ndimage.map_coordinates(image, places[:, i], order=1, mode=mode, cval=1.0)
            np.testing.assert_allclose(warped[i, ..., channel], wanted, atol=tolerance)


@pytest.mark.parametrize("border", ["edge", "constant"])
@pytest.mark.parametrize("size", [None, 5, (12, 7)])
def test_resized_crops(size, border):
    """Of ramps, the values are the places: windows of the wanted areas and shapes, everywhere in the image."""
    h, w, n = 40, 60, 3000
    area, ratio = (0.2, 0.7), (0.5, 1.5)
    cut, _ = run(augment.RandomResizedCrop(size, area, ratio), ramps(n, h, w))
    height, width = np.broadcast_to((h, w) if size is None else size, 2)
    assert cut.shape == (n, height, width, 2)
    rows, columns = cut[:, :, width // 2, 0], cut[:, height // 2, :, 1]
    np.testing.assert_allclose(cut[..., 0], np.broadcast_to(rows[:, :, None], cut.shape[:3]), atol=1e-9)
    np.testing.assert_allclose(cut[..., 1], np.broadcast_to(columns[:, None], cut.shape[:3]), atol=1e-9)
    steps = [np.median(np.diff(values, axis=1), axis=1) for values in (rows, columns)]  # not next to the borders
    heights, widths = steps[0] * height, steps[1] * width
    shares, shapes = heights * widths / (h * w), widths / heights
    assert shares.min() > area[0] - 1e-6
    assert shares.max() < area[1] + 1e-6
    assert shapes.min() > ratio[0] - 1e-6
    assert shapes.max() < ratio[1] + 1e-6
    top, bottom = rows[:, 0] - (steps[0] - 1) / 2, rows[:, -1] + (steps[0] - 1) / 2
    assert top.min() > -1e-6
    assert bottom.max() < h - 1 + 1e-6
    assert np.corrcoef(top, heights)[0, 1] < 0  # smaller ones begin anywhere
    small = heights < 0.6 * h
    assert top[small].std() > 0.15 * h * 0.5


def test_whole_windows_are_the_image():
    for dtype in TYPES:
        x = pictures(h=8, w=8, dtype=dtype)
        np.testing.assert_allclose(run(augment.RandomResizedCrop(area=1, ratio=1), x)[0], x, atol=1e-6)
    x = pictures(h=8, w=4)  # no window of this shape fits: the whole image
    np.testing.assert_allclose(run(augment.RandomResizedCrop(area=1, ratio=3), x)[0], x, atol=1e-6)


def affine_matrix(rotate, scale, shear, stretch):
    """The map of (row, column) from the centre, composed of textbook matrices with the row pointing up."""
    angle = math.radians(rotate)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    lean = np.array([[1, math.tan(math.radians(shear))], [0, 1]])
    sizes = np.diag([scale * math.sqrt(stretch), scale / math.sqrt(stretch)])
    up = np.array([[0, 1], [-1, 0]])  # (x, y) of (row, column)
    return np.linalg.inv(up) @ rotation @ lean @ sizes @ up


@pytest.mark.parametrize(
    "values",
    [
        (30, 1, 0, 1, 0),
        (0, 1.3, 0, 1, 0),
        (0, 1, 20, 1, 0),
        (0, 1, 0, 1.4, 0),
        (0, 1, 0, 1, 0.2),
        (-25, 0.8, -15, 1.2, 0.1),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.uint8, 1.01), (np.float32, 1e-4), (np.float64, 1e-10)])
def test_affine_beside_scipy(values, dtype, tolerance):
    ndimage = pytest.importorskip("scipy.ndimage")
    rotate, scale, shear, stretch, shift = values
    x = pictures(5, 14, 11, 3, dtype)
    augmentation = augment.Affine(*((v, v) for v in (shift, rotate, scale, shear, stretch)))
    warped, _ = run(augmentation, x)
    backwards = np.linalg.inv(affine_matrix(rotate, scale, shear, stretch))
    middle = np.array([6.5, 5.0])
    offset = middle - backwards @ (middle + shift * np.array([14, 11]))
    for image, result in zip(x, warped, strict=True):
        for channel in range(3):
            wanted = ndimage.affine_transform(
                image[..., channel].astype(float), backwards, offset, order=1, mode="grid-constant"
            )
            np.testing.assert_allclose(result[..., channel], wanted, atol=tolerance)


def test_affine_draws_from_its_intervals():
    """Of ramps, the map can be read off; angles, scales and so on are found in it."""
    n, h, w = 2000, 21, 25
    augmentation = augment.Affine(0.1, (10, 30), (0.9, 1.5), 15, 1.2, "edge")
    x = ramps(n, h, w)
    warped, _ = run(augmentation, x)
    inner = (slice(None), slice(8, 13), slice(10, 15))
    from_centre = (x[0][inner[1:]] - [10, 12]).reshape(-1, 2)
    places = warped[inner].reshape(n, -1, 2) - [10, 12]
    design = np.concatenate([from_centre, np.ones((len(from_centre), 1))], axis=1)
    solved = np.stack([np.linalg.lstsq(design, place, rcond=None)[0] for place in places])
    forward = np.linalg.inv(solved[:, :2].swapaxes(1, 2))  # (row, column) -> (row, column)
    shift = -np.einsum("nij,nj->ni", forward, solved[:, 2]) / [h, w]
    scale = np.sqrt(np.linalg.det(forward))
    right = forward[:, :, 1]  # where one column to the right goes
    angle = np.degrees(np.arctan2(-right[:, 0], right[:, 1]))
    stretch = (np.linalg.norm(right, axis=1) / scale) ** 2
    for found, low, high in (
        (shift[:, 0], -0.1, 0.1),
        (shift[:, 1], -0.1, 0.1),
        (angle, 10, 30),
        (np.log(scale), math.log(0.9), math.log(1.5)),
        (np.log(stretch), -math.log(1.2), math.log(1.2)),
    ):
        assert low - 1e-6 < found.min()
        assert found.max() < high + 1e-6
        assert abs(found.mean() - (low + high) / 2) < 0.08 * (high - low)
        assert abs(found.std() - (high - low) / math.sqrt(12)) < 0.08 * (high - low)
    assert abs(np.corrcoef(shift[:, 0], shift[:, 1])[0, 1]) < 0.1


@pytest.mark.parametrize("dtype", TYPES)
def test_affine_identities(dtype):
    x = pictures(h=9, w=9, dtype=dtype)
    unit = 255 if dtype == np.uint8 else 1
    for augmentation in (augment.Affine(), augment.Affine(rotate=(360, 360)), augment.Affine(scale=(1, 1))):
        np.testing.assert_allclose(run(augmentation, x)[0] / unit, x / unit, atol=1e-4)
    quarter, _ = run(augment.Affine(rotate=(90, 90)), x)
    np.testing.assert_allclose(quarter / unit, np.rot90(x, axes=(1, 2)) / unit, atol=1e-4)
    shifted, _ = run(augment.Affine((1 / 9, 1 / 9), fill=1.0), x)
    np.testing.assert_allclose(shifted[:, 1:, 1:] / unit, x[:, :-1, :-1] / unit, atol=1e-5)
    np.testing.assert_allclose(shifted[:, 0], 1, atol=1e-5)


def test_lens_distortion_by_the_formula():
    x = np.concatenate([ramps(40, 21, 31), np.ones((40, 21, 31, 1))], axis=-1)
    for strength in (-0.3, 0.0, 0.4):
        bent, _ = run(augment.LensDistortion((strength, strength)), x)
        inside = bent[0, ..., 2] > 1 - 1e-9  # elsewhere, values come from beyond the image
        assert inside[10, 15]
        for i, j in zip(*np.nonzero(inside), strict=True):
            radius = (i - 10) ** 2 + (j - 15) ** 2
            factor = 1 + strength * radius / (10**2 + 15**2)
            np.testing.assert_allclose(bent[0, i, j, :2], [10 + (i - 10) * factor, 15 + (j - 15) * factor], atol=1e-9)
    np.testing.assert_allclose(run(augment.LensDistortion(0), x)[0], x, atol=1e-9)
    corner = run(augment.LensDistortion((-0.3, -0.3)), x)[0][0, 0, 0, :2]
    np.testing.assert_allclose(corner, [3, 4.5], atol=1e-9)  # the corner comes from 0.7 of the way to it


# ---- Values -------------------------------------------------------------------------------------------------


def adjusted(image, brightness, contrast, saturation, turn):
    """The four steps one after the other, pixel by pixel, without cuts."""
    luma = np.array([0.299, 0.587, 0.114])
    image = image.astype(float) * brightness
    grey = (image.reshape(-1, 3) @ luma).mean()
    image = grey + contrast * (image - grey)
    angle = 2 * math.pi * turn
    axis = np.ones(3) / math.sqrt(3)
    out = np.empty_like(image)
    for place in np.ndindex(image.shape[:2]):
        color = image[place]
        y = color @ luma
        color = y + saturation * (color - y)
        # Haeberli: turned about the grey axis, in a space sheared so that planes of equal luma are upright to it.
        turned = (
            color * math.cos(angle)
            + np.cross(axis, color) * math.sin(angle)
            + axis * (axis @ color) * (1 - math.cos(angle))
        )
        out[place] = turned + (color @ luma - turned @ luma)
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.uint8, 0.51), (np.float32, 2e-6), (np.float64, 1e-13)])
@pytest.mark.parametrize(
    "values", [(0.8, 1, 1, 0), (1, 0.6, 1, 0), (1, 1, 0.5, 0), (1, 1, 1, 0.15), (0.9, 0.8, 0.7, -0.2)]
)
def test_colours_pixel_by_pixel(values, dtype, tolerance):
    x = pictures(3, 5, 6, 3, dtype)
    changed, _ = run(augment.ColorJitter(*((v, v) for v in values)), x)
    white = 255 if dtype == np.uint8 else 1
    for image, result in zip(x, changed, strict=True):
        wanted = np.clip(adjusted(image, *values), 0, white)
        np.testing.assert_allclose(result, wanted, atol=tolerance)


@pytest.mark.parametrize(("name", "number"), [("Brightness", 0), ("Contrast", 1), ("Color", 2)])
def test_colours_beside_pillow(name, number):
    pillow = pytest.importorskip("PIL.Image")
    enhance = pytest.importorskip("PIL.ImageEnhance")
    x = pictures(4, 20, 20, 3, np.uint8)
    for factor in (0.0, 0.4, 0.9, 1.3):
        factors = [(1.0, 1.0)] * 3
        factors[number] = (factor, factor)
        changed, _ = run(augment.ColorJitter(*factors), x)
        for image, result in zip(x, changed, strict=True):
            wanted = np.asarray(getattr(enhance, name)(pillow.fromarray(image)).enhance(factor))
            assert np.abs(result.astype(int) - wanted).max() <= 2  # Pillow rounds greys and means to integers


def test_colour_identities():
    x = pictures(h=4, w=4)
    np.testing.assert_array_equal(run(augment.ColorJitter(), x)[0], x)
    grey = np.repeat(pictures(c=1), 3, axis=-1)
    np.testing.assert_allclose(run(augment.ColorJitter(saturation=0.9, hue=0.5), grey)[0], grey, atol=1e-6)
    middle = 0.4 + 0.2 * x.astype(np.float64)  # which no turn takes beyond black or white
    half = augment.ColorJitter(hue=(0.5, 0.5))
    np.testing.assert_allclose(run(half, run(half, middle)[0])[0], middle, atol=1e-12)
    turned, _ = run(augment.ColorJitter(hue=0.5), middle)
    luma = augment.colors.LUMA
    np.testing.assert_allclose(turned @ luma, middle @ luma, atol=1e-12)
    assert np.abs(turned - middle).max() > 0.05
    one = pictures(c=1)
    np.testing.assert_allclose(run(augment.ColorJitter((0.5, 0.5)), one)[0], one / 2, atol=1e-6)
    four = pictures(c=4)
    factor = 0.5
    mean = four.mean(axis=(1, 2, 3), keepdims=True)
    wanted = mean + factor * (four - mean)
    np.testing.assert_allclose(run(augment.ColorJitter(contrast=(0.5, 0.5)), four)[0], wanted, atol=1e-6)


def test_factors_are_drawn_for_each_image():
    x = np.full((3000, 1, 1, 3), 0.25)
    values = run(augment.ColorJitter(brightness=0.6), x)[0][:, 0, 0, 0] / 0.25
    assert 0.4 <= values.min() < 0.42
    assert 1.58 < values.max() <= 1.6
    assert abs(values.mean() - 1) < 0.03
    assert run(augment.ColorJitter(brightness=3), x)[0].min() >= 0


@pytest.mark.parametrize("dtype", TYPES)
def test_noise(dtype):
    white = 255 if dtype == np.uint8 else 1
    x = np.full((200, 16, 16, 3), 127 if dtype == np.uint8 else 0.5, dtype)
    difference = (run(augment.Noise(0.1), x)[0] - x.astype(float)) / white
    assert abs(difference.std() - 0.1) < 0.001
    assert abs(difference.mean()) < 0.001
    each = (run(augment.Noise((0.02, 0.12)), x)[0] / white).std(axis=(1, 2, 3))
    assert abs(each.mean() - 0.07) < 0.008
    assert each.min() < 0.03
    assert each.max() > 0.11
    black = run(augment.Noise(0.5), np.zeros_like(x))[0]
    assert black.min() == 0
    assert black.max() <= white
    if dtype != np.uint8:
        assert run(augment.Noise(0.5, clip=False), 3 * x)[0].max() > 2
    np.testing.assert_array_equal(run(augment.Noise(0), x)[0], x)


@pytest.mark.parametrize("size", [1, 4, (3, 6), 30])
def test_cutout(size):
    h, w = np.broadcast_to(size, 2)
    x = np.ones((500, 9, 12, 2), np.float32)
    cut, _ = run(augment.Cutout(size, 0.5), x)
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(9, size=500), rng.integers(12, size=500)
    wanted = x.copy()
    for i in range(500):
        for row, column in np.ndindex(9, 12):
            if 0 <= row - rows[i] + h // 2 < h and 0 <= column - columns[i] + w // 2 < w:
                wanted[i, row, column] = 0.5
    np.testing.assert_array_equal(cut, wanted)


def test_bytes_as_floats():
    x = pictures(dtype=np.uint8)
    real, _ = run(augment.ToFloat(), x)
    assert real.dtype == np.float32
    np.testing.assert_array_equal(real, x.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(run(augment.ToFloat(), real)[0], real)
    assert repr(augment.ToFloat()) == "ToFloat()"


# ---- Mixing -------------------------------------------------------------------------------------------------


def flags(n, h=12, w=10, dtype=np.float64):
    """Image i is 1 in channel i and 0 elsewhere: a mean over pixels says how much of each image is in one."""
    x = np.zeros((n, h, w, n), dtype)
    x[np.arange(n), :, :, np.arange(n)] = 255 if dtype == np.uint8 else 1
    return x


MIXING = (augment.Mixup, augment.CutMix, augment.CowMix)


@pytest.mark.parametrize("p", [1, 0.4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.uint8, 3e-3), (np.float32, 1e-6), (np.float64, 1e-6)])
@pytest.mark.parametrize("kind", MIXING)
def test_targets_are_mixed_as_images_are(kind, dtype, tolerance, p):
    n = 40
    x = flags(n, dtype=dtype)
    mixed, soft = run(kind(classes=n, p=p), x, np.arange(n))
    white = 255 if dtype == np.uint8 else 1
    np.testing.assert_allclose(mixed.mean(axis=(1, 2), dtype=float) / white, soft, atol=tolerance)
    assert (soft.shape, soft.dtype) == ((n, n), np.float32)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-6)
    assert soft.min() >= 0
    assert (np.count_nonzero(soft, axis=1) <= 2).all()
    whole = np.count_nonzero(soft == 1) / n
    assert whole < 0.3 if p == 1 else 0.4 < whole < 0.9
    others = soft - np.diag(np.diag(soft))
    assert (np.count_nonzero(others, axis=0) <= 1).all()  # each goes into one other image at most


@pytest.mark.parametrize("kind", MIXING)
def test_targets_of_all_forms(kind):
    n = 9
    x, labels = flags(n), np.arange(n) % 3
    _, wanted = run(kind(classes=3), x, labels)
    one_hot = np.eye(3)[labels]
    for y in (one_hot, one_hot.astype(np.float32)):
        _, soft = run(kind(), x, y)
        assert soft.dtype == y.dtype
        np.testing.assert_allclose(soft, wanted, atol=1e-6)
    _, numbers = run(kind(), x, labels * 1.0)
    np.testing.assert_allclose(numbers, wanted @ np.arange(3), atol=1e-6)
    _, two = run(kind(), x, np.stack([one_hot, 2 * one_hot], axis=1))
    np.testing.assert_allclose(two[:, 1], 2 * wanted, atol=1e-6)
    _, either = run(kind(classes=2), x, labels == 1)
    np.testing.assert_allclose(either[:, 1], wanted[:, 1], atol=1e-6)
    _, small = run(kind(classes=3), x, labels.astype(np.uint8))
    np.testing.assert_array_equal(small, wanted)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_of_mixup_are_beta(alpha):
    x = np.zeros((20_000, 1, 1, 1))
    _, y = run(augment.Mixup(alpha), x, np.arange(20_000) / 1.0)
    _, soft = run(augment.Mixup(alpha), x, np.stack([np.arange(20_000) == i for i in range(2)], axis=1) * 1.0)
    assert y.shape == (20_000,)
    assert soft.shape == (20_000, 2)
    x = (np.arange(20_000) % 2).reshape(-1, 1, 1, 1) * 1.0
    mixed, target = run(augment.Mixup(alpha), x, x[:, 0, 0, 0])
    np.testing.assert_allclose(mixed[:, 0, 0, 0], target, atol=1e-12)
    between = target[(target > 0) & (target < 1)]
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(between.mean() - 0.5) < 0.03
    assert abs(between.var() - variance) < 0.06 * variance


def test_cutmix_pastes_rectangles():
    n, h, w = 60, 12, 10
    mixed, _ = run(augment.CutMix(), flags(n, h, w))
    areas = []
    for i in range(n):
        assert set(np.unique(mixed[i])) == {0, 1}
        pasted = mixed[i, ..., i] == 0
        rows, columns = np.nonzero(pasted.any(axis=1))[0], np.nonzero(pasted.any(axis=0))[0]
        if len(rows):
            assert pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert pasted.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        areas.append(pasted.mean())
    assert np.std(areas) > 0.15


def test_cowmix_has_the_drawn_share():
    n, h, w = 30, 20, 15
    for proportion, count in ((0.3, 90), (0.0, 0), (1.0, 300)):
        mixed, _ = run(augment.CowMix(proportion, sigma=2.0), flags(n, h, w))
        pasted = np.stack([mixed[i, ..., i] == 0 for i in range(n)])
        assert (pasted.sum(axis=(1, 2)) == count).all()
    # Spots, not dust: next pixels are alike in most places, more so where the noise is smoother.
    edges = []
    for sigma in (0.2, 1.0, 4.0):
        mixed, _ = run(augment.CowMix(0.5, sigma), flags(n, h, w))
        pasted = np.stack([mixed[i, ..., i] == 0 for i in range(n)])
        edges.append((pasted[:, 1:] != pasted[:, :-1]).mean())
    assert edges[0] > 0.4
    assert edges[0] > 2 * edges[1] > 4 * edges[2]


def test_smoothing_beside_scipy(rng):
    ndimage = pytest.importorskip("scipy.ndimage")
    noise, sigma = rng.normal(size=(4, 33, 40)), np.array([1.5, 2.0, 3.0, 6.0])
    ours = smoothed(noise, sigma)
    for image, each, result in zip(noise, sigma, ours, strict=True):
        wanted = ndimage.gaussian_filter(image, each, mode="wrap", truncate=8.0)
        np.testing.assert_allclose(result, wanted, atol=1e-4 * np.abs(wanted).max())


# ---- Augmentations made of others ---------------------------------------------------------------------------


def test_compose_is_one_after_the_other(same_bits):
    parts = [augment.HorizontalFlip(), augment.RandomCrop(2), augment.Mixup(classes=4)]
    x, y = pictures(), np.arange(12) % 4
    rng, got = np.random.default_rng(0), run(augment.Compose(parts), x, y)
    for part in parts:
        x, y = part(x, y, rng)
    same_bits(got[0], x)
    same_bits(got[1], y)
    assert run(augment.Compose([]), x)[0].tobytes() == x.tobytes()
    np.testing.assert_array_equal(run(augment.Compose([lambda x, y, rng: (2 * x, y)]), x)[0], 2 * x)


def test_one_of_chooses_by_weight():
    def adds(number):
        return lambda x, y, rng: (x + number, y)

    x = np.zeros((5000, 1, 1, 1))
    for weights, wanted in ((None, [0, 1 / 3, 1 / 3, 1 / 3]), ((1, 0, 3), [0, 0.25, 0, 0.75])):
        out, _ = run(augment.OneOf([adds(1), adds(2), adds(3)], weights), x)
        shares = np.bincount(out.astype(int).ravel(), minlength=4) / 5000
        np.testing.assert_allclose(shares, wanted, atol=0.03)
        assert [share == 0 for share in shares] == [share == 0 for share in wanted]
    out, _ = run(augment.OneOf([adds(1)], p=0.25), x)
    assert abs(out.mean() - 0.25) < 0.03


def test_one_of_makes_all_targets_soft_where_one_is():
    n = 40
    choice = augment.OneOf([augment.HorizontalFlip(p=1), augment.CutMix(classes=n)])
    mixed, soft = run(choice, flags(n, 12, 10, np.float32), np.arange(n))
    np.testing.assert_allclose(mixed.mean(axis=(1, 2)), soft, atol=1e-6)
    assert 0.3 < np.count_nonzero(soft == 1) / n < 0.9
    hard = augment.OneOf([augment.HorizontalFlip(), augment.Noise()])
    assert run(hard, pictures(), np.arange(12))[1].tolist() == list(range(12))


def test_each_is_ones_own_function():
    x = pictures(dtype=np.uint8)
    out, _ = run(augment.Each(lambda image, rng: image[::2, ::-1]), x)
    np.testing.assert_array_equal(out, x[:, ::2, ::-1])

    def spoils(image, rng):
        image[...] = 0
        return image

    run(augment.Each(spoils), x)
    assert x.any()
    rng = np.random.default_rng(0)
    out, _ = run(augment.Each(lambda image, rng: image * rng.random()), pictures())
    np.testing.assert_array_equal(out, np.stack([image * rng.random() for image in pictures()]))


# ---- Views --------------------------------------------------------------------------------------------------


def test_ten_crops():
    x = ramps(2, 9, 12)
    views = list(augment.ten_crop((4, 6))(x))
    corners = [(0, 0), (0, 6), (5, 0), (5, 6), (2, 3)]
    assert len(views) == len(augment.ten_crop(4)) == 10
    for view, (top, left) in zip(views, corners, strict=False):
        np.testing.assert_array_equal(view, x[:, top : top + 4, left : left + 6])
    for view, mirrored in zip(views[:5], views[5:], strict=True):
        np.testing.assert_array_equal(mirrored, view[:, :, ::-1])
        assert mirrored.flags.c_contiguous
    with pytest.raises(ValueError, match=r"^size must be at most that of the images, \(9, 12\), got \(10, 10\)"):
        list(augment.ten_crop(10)(x))


def test_flips_and_scales():
    x = pictures()
    views = list(augment.flips(vertical=True)(x))
    for view, wanted in zip(views, (x, x[:, :, ::-1], x[:, ::-1], x[:, ::-1, ::-1]), strict=True):
        np.testing.assert_array_equal(view, wanted)
    smaller, same, larger = augment.scales((0.5, 1, 2))(ramps(1, 9, 9))
    np.testing.assert_array_equal(same, ramps(1, 9, 9))
    np.testing.assert_allclose(larger, 4 + (ramps(1, 9, 9) - 4) / 2)
    np.testing.assert_allclose(smaller, np.clip(4 + (ramps(1, 9, 9) - 4) * 2, 0, 8))
    both = augment.scales((1, 2)) * augment.flips()
    assert repr(both) == "scales((1.0, 2.0)) * flips()"
    for view, wanted in zip(both(ramps(1, 9, 9)), (same, same[:, :, ::-1], larger, larger[:, :, ::-1]), strict=True):
        np.testing.assert_allclose(view, wanted)


def test_predictions_are_averaged():
    x, weight = pictures(), np.random.default_rng(0).normal(size=(4 * 6 * 3, 5)).astype(np.float32)
    views = augment.ten_crop((4, 6))

    def predict(x):
        return x.reshape(len(x), -1) @ weight

    got = augment.average(predict, x, views)
    assert (got.shape, got.dtype) == ((12, 5), np.float32)
    np.testing.assert_allclose(got, np.mean([predict(view) for view in views(x)], axis=0), rtol=1e-5)
    assert augment.average(lambda x: np.arange(12), x, views).dtype == np.float64
    for arguments, message in (
        ((5, x, views), "predict must be callable, got int"),
        ((predict, x, list(views(x))), "views must be Views, such as augment.flips"),
        ((lambda x: x[:3], x, views), r"predict must return numbers \(n, …\) for 12 images"),
        ((lambda x: x, x, augment.ten_crop(4) * augment.ten_crop(3)), None),
        ((predict, x[0], views), "x must be images of shape"),
    ):
        if message:
            with pytest.raises((TypeError, ValueError), match=f"^{message}"):
                augment.average(*arguments)
    shapes = itertools.count(1)
    with pytest.raises(ValueError, match=r"^predict must return one shape for all views, got \(12, 1\) and \(12, 2\)"):
        augment.average(lambda x: np.zeros((12, next(shapes))), x, views)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: augment.ten_crop(0), "size must be at least 1"),
        (lambda: augment.flips(1), "vertical must be True or False"),
        (lambda: augment.scales(2), "factors must be a sequence of numbers, got 2"),
        (lambda: augment.scales([]), "factors must be a sequence of numbers"),
        (lambda: augment.scales([0]), "factors must be in"),
        (lambda: augment.Views("x", []), "functions must be a sequence"),
        (lambda: augment.flips() * 2, "unsupported operand"),
    ],
)
def test_wrong_views(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()


# ---- Pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_preview(channels, dtype, tmp_path):
    pytest.importorskip("matplotlib")
    x, y = pictures(3, c=channels, dtype=dtype), np.array([1, 0, 3])
    flip = augment.HorizontalFlip(p=1)
    sheet = augment.preview(x, flip, y, draws=2, names="abcd", path=tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    axes = np.array(sheet.axes).reshape(3, 3)
    white = 255 if dtype == np.uint8 else 1
    for row, column in np.ndindex(3, 3):
        shown = axes[row, column].images[0].get_array()
        wanted = x[row] if column == 0 else x[row][:, ::-1]
        np.testing.assert_allclose(np.squeeze(shown), np.squeeze(wanted / white), atol=1e-6)
        assert axes[row, column].get_xlabel() == "bad"[0 if row == 0 else 1] if row < 2 else "d"
    assert sheet.get_suptitle() == repr(flip)
    mixed = augment.preview(x, augment.Mixup(classes=4), y)
    assert len(mixed.axes) == 24
    captions = [ax.get_xlabel() for ax in mixed.axes]
    assert captions[0] == "1"
    assert all(re.fullmatch(r"\d 1\.00|\d 0\.\d\d(\n\d 0\.\d\d)?", each) for each in captions[1:8])
    assert augment.preview(x, augment.HorizontalFlip(), np.linspace(0, 1, 3)).axes[8].get_xlabel() == "0.5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": pictures(21)}, r"x must be 20 images at most, of one or three channels, got \(21, 9, 11, 3\)"),
        ({"x": pictures(c=2)}, "x must be 20 images at most"),
        ({"augmentation": augment.Noise}, r"augmentation must be callable as \(x, y, rng\), got <class"),
        ({"draws": 0}, "draws must be"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"y": np.arange(3)}, "y must have one target for each of 12 images"),
    ],
)
def test_wrong_previews(arguments, message):
    pytest.importorskip("matplotlib")
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        augment.preview(**{"x": pictures(), "augmentation": augment.Noise(), **arguments})
