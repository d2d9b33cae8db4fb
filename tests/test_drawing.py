"""Figures: the palette, the style of axes, and small files."""

import itertools
import sys

import numpy as np
import pytest

from fastopt import drawing

#: What is left of linear RGB colours for those who lack one kind of cone: G. Machado, M. Oliveira and L. Fernandes, "A
#: physiologically-based model for simulation of color vision deficiency", 2009, severity 1.
DEFICIENCIES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3),
}


def lab(colour, deficiency):
    """CIE 1976 L*a*b* of a colour, as it is seen; white of sRGB."""
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_can_be_told_apart(deficiency):
    for one, other in itertools.combinations([*drawing.COLOURS, "#FFFFFF"], 2):
        assert np.linalg.norm(lab(one, deficiency) - lab(other, deficiency)) > 10, (one, other)


def test_the_measure_of_colours():
    np.testing.assert_allclose(lab("#FFFFFF", "none"), (100, 0, 0), atol=0.05)
    np.testing.assert_allclose(lab("#FF0000", "none"), (53.24, 80.09, 67.20), atol=0.1)
    seen = {kind: [lab(colour, kind) for colour in ("#8C564B", "#2C7A2C")] for kind in ("none", "deuteranopia")}
    apart = {kind: np.linalg.norm(brown - green) for kind, (brown, green) in seen.items()}
    assert apart["deuteranopia"] < 20 < 60 < apart["none"]


def test_axes_have_the_palette_whatever_the_settings_are():
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"axes.prop_cycle": matplotlib.cycler(color=["red"]), "axes.spines.top": True}):
        page = drawing.figure((4, 3))
        axes = page.subplots()
        lines = [axes.plot([0, i])[0] for i in range(7)]
        assert matplotlib.rcParams["axes.spines.top"]
    assert {line.get_color() for line in lines} == set(drawing.COLOURS)
    assert not axes.spines["top"].get_visible()
    assert axes.spines["left"].get_visible()


def test_png_files_are_of_few_colours(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    page = drawing.figure((6, 4))
    axes = page.subplots()
    for i in range(7):
        axes.plot(np.sin(np.arange(300) / (10 + i)), linewidth=3)
    drawing.save_png(page, tmp_path / "small.png")
    page.savefig(tmp_path / "large.png", dpi=100)
    with image.open(tmp_path / "small.png") as small, image.open(tmp_path / "large.png") as large:
        assert small.size == large.size == (600, 400)
        difference = np.abs(np.asarray(small.convert("RGB"), float) - np.asarray(large.convert("RGB"), float))
    assert difference.mean() < 1
    assert (tmp_path / "small.png").stat().st_size < 0.7 * (tmp_path / "large.png").stat().st_size


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"drawing needs matplotlib: pip install 'fastopt\[plot\]'"):
        drawing.figure((4, 3))
