"""The gallery: what each caption says, that each picture can be read, the page, and the command."""

import contextlib
import importlib.util
import io
import re
import sys
from pathlib import Path

import pytest

from fastopt import gallery
from fastopt.cli import main

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
FOLDER = Path(__file__).parents[1] / "docs" / "gallery"


@pytest.fixture(scope="module")
def data():
    """What each picture is drawn from, in its small form, once."""
    found = {}

    def run(name):
        if name == "newton":
            pytest.importorskip("scipy")
        if name not in found:
            found[name] = gallery.load(name).run(quick=True)
        return found[name]

    return run


# ---- Pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", gallery.NAMES)
def test_what_the_caption_says(name, data):
    gallery.load(name).claim(data(name))


def words_that_overlap(page):
    """Pairs of texts outside of the plots that lie on each other: ticks, labels, titles."""
    renderer = page.canvas.get_renderer()
    boxes = []
    for axes in page.axes:
        if not axes.axison or hasattr(axes, "zaxis"):
            continue
        texts = [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            texts += [
                tick.label1
                for tick in axis.get_major_ticks()
                if min(low, high) <= tick.get_loc() <= max(low, high) and tick.label1.get_visible()
            ]
        boxes += [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text().strip()]
    if page._suptitle is not None:
        boxes.append((page._suptitle.get_text(), page._suptitle.get_window_extent(renderer)))
    return [
        (one, other)
        for i, (one, a) in enumerate(boxes)
        for other, b in boxes[:i]
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", gallery.NAMES)
def test_picture_can_be_read(name, data, tmp_path):
    """Every axis that has ticks has a label, or shares that of a neighbour; and no words lie on each other."""
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    page = gallery.load(name).draw(data(name))
    FigureCanvasAgg(page).draw()
    assert not words_that_overlap(page)
    for axes in page.axes:
        if hasattr(axes, "zaxis"):
            continue
        for axis, shared in ((axes.xaxis, axes.get_shared_x_axes()), (axes.yaxis, axes.get_shared_y_axes())):
            ticks = [tick.label1.get_text() for tick in axis.get_major_ticks() if tick.label1.get_visible()]
            named = [
                other for other in shared.get_siblings(axes) if getattr(other, axis.axis_name + "axis").label.get_text()
            ]
            words = all(re.search("[A-Za-z]", tick) for tick in ticks if tick)
            title = axis.axis_name == "y" and axes.get_title()  # which says what is plotted
            assert not any(ticks) or named or words or title, f"{axis.axis_name} axis of {axes.get_title()!r}"
    gallery.save(page, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 70_000


def test_files_are_short():
    """Fewer than 40 lines, of which none refers to another picture."""
    for name in gallery.NAMES:
        source = gallery.source(name)
        assert gallery.lines_of_code(source) < 40, name
        assert not re.search(r"^(from|import) .*\bgallery\b", source, re.MULTILINE), name


def test_chapters_name_every_file():
    files = {path.stem for path in Path(gallery.__file__).parent.glob("*.py")} - {"__init__"}
    assert sorted(gallery.NAMES) == sorted(files)


def test_lines_of_code():
    assert gallery.lines_of_code('"""A.\n\nB.\n"""\n\nimport x\n\n\ndef f():\n    pass\n') == 3
    assert gallery.lines_of_code("") == 0
    assert gallery.lines_of_code('x = """\na\n"""\n') == 3


# ---- The page -----------------------------------------------------------------------------------------------


def test_page_is_that_of_the_captions():
    if not FOLDER.exists():
        pytest.skip("the page is not beside the tests")
    assert (FOLDER / "README.md").read_text() == gallery.page(), "make gallery"
    assert {path.stem for path in FOLDER.glob("*.png")} == set(gallery.NAMES)
    assert all(path.stat().st_size <= 60_000 for path in FOLDER.glob("*.png"))


def test_captions():
    for name in gallery.NAMES:
        picture = gallery.load(name)
        assert len(gallery.title(picture)) < 60, name
        assert len(gallery.caption(picture)) > 100, name
    headings = re.findall("^#+ (.*)$", gallery.page(), re.MULTILINE)
    anchors = re.findall('href="#(.*?)"', gallery.page())
    assert len({gallery.slug(heading) for heading in headings}) == len(headings)
    assert set(anchors) <= {gallery.slug(heading) for heading in headings}


# ---- The command --------------------------------------------------------------------------------------------


def run(*arguments):
    """Exit status, and the lines of standard output and error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["gallery", *map(str, arguments)])
    return status, out.getvalue().splitlines(), err.getvalue()


def test_list():
    status, lines, _ = run("--list")
    assert status == 0
    assert [line.split()[0] for line in lines] == list(gallery.NAMES)
    assert run("--list", "Tanh-Init")[1] == ["tanh_init  Ten tanh layers by initialisation"]


def test_source_is_the_file():
    for name in ("zigzag", "roc"):
        assert "\n".join(run(name, "--source")[1]) + "\n" == Path(gallery.__file__).with_name(f"{name}.py").read_text()


def test_only_what_is_asked_for_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "pictures"
    status, lines, _ = run("Norm-Cubes", "preprocessing", "--out", out)
    assert (status, lines) == (0, [f"wrote {out / 'norm_cubes.png'}", f"wrote {out / 'preprocessing.png'}"])
    before = (out / "preprocessing.png").stat().st_mtime_ns
    assert run("norm_cubes", "--out", out, "--format", "svg")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["norm_cubes.png", "norm_cubes.svg", "preprocessing.png"]
    assert (out / "preprocessing.png").stat().st_mtime_ns == before
    assert (out / "norm_cubes.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_of_your_own(tmp_path):
    pytest.importorskip("matplotlib")
    mine = tmp_path / "mine.py"
    mine.write_text(gallery.source("preprocessing").replace("+ [3.0, 1.0]", "+ [5.0, 1.0]"))
    assert run(mine, "--out", tmp_path)[:2] == (0, [f"wrote {tmp_path / 'mine.png'}"])
    mine.write_text(mine.read_text().replace("eps=0", "eps=1"))
    status, lines, error = run(mine, "--out", tmp_path)
    assert (status, lines) == (1, [f"wrote {tmp_path / 'mine.png'}"])
    assert error.startswith("fastopt: mine: what its caption claims does not hold")
    mine.write_text("def run(quick=False):\n    return 1\n")
    status, _, error = run(mine, "--out", tmp_path)
    assert (status, error) == (2, f"fastopt: {mine} must have the functions run, draw and claim; there is no draw\n")


def test_page_on_demand(tmp_path):
    pytest.importorskip("matplotlib")
    assert run("preprocessing", "--page", "--out", tmp_path)[0] == 0
    assert (tmp_path / "README.md").read_text() == gallery.page()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zigzig", "--out", "a"], "name must be one of 'zigzag', .*; got 'zigzig': did you mean 'zigzag'"),
        (["nowhere.py", "--out", "a"], "no such file: 'nowhere.py'"),
        (["zigzag"], "--out must be given: the folder to write to"),
    ],
)
def test_wrong_values(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, lines, error = run(*arguments)
    assert (status, lines) == (2, [])
    assert re.match(f"fastopt: {message}", error)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, lines, error = run("zigzag", "--out", tmp_path / "a")
    assert (status, lines) == (2, [])
    assert error == "fastopt: drawing needs matplotlib: pip install 'fastopt[plot]'\n"
    assert list(tmp_path.iterdir()) == []
    assert run("--list")[0] == 0


def test_a_picture_that_needs_a_further_extra(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    status, lines, error = run("newton", "preprocessing", "--out", tmp_path)
    assert (status, lines) == (1, [f"wrote {tmp_path / 'preprocessing.png'}"])
    assert re.match("fastopt: newton: .*scipy", error)
