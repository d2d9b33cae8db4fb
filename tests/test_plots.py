"""Pictures of how models do and how they were chosen."""

import importlib.util
import itertools

import numpy as np
import pytest

from fastopt import plots

pytest.importorskip("matplotlib")
needs_sklearn = pytest.mark.skipif(not importlib.util.find_spec("sklearn"), reason="the extra sklearn")

RNG = np.random.default_rng(0)
Y = np.arange(60) % 3
SCORES = np.eye(3)[Y] + RNG.normal(0, 0.8, (60, 3))


def labels_of(page):
    return [text.get_text() for text in page.axes[0].get_legend().get_texts()]


def area(positive, negative):
    """How often a sample of the class has the higher score: what the area under a ROC curve is."""
    return np.mean([(a > b) + (a == b) / 2 for a, b in itertools.product(positive, negative)])


# ---- Scores of classifiers ----------------------------------------------------------------------------------------


@needs_sklearn
def test_areas_under_roc_curves():
    wanted = [area(SCORES[k == Y, k], SCORES[k != Y, k]) for k in range(3)]
    page = plots.roc(Y, SCORES, names=["cat", "dog", "cow"])
    names = [f"{name}, AUC {each:.3f}" for name, each in zip(("cat", "dog", "cow"), wanted, strict=True)]
    assert labels_of(page) == [*names, "chance, AUC 0.500"]
    assert page.axes[0].get_title() == f"ROC, mean AUC {np.mean(wanted):.4f}"
    words = np.array(["a", "b", "c"])[Y]
    assert labels_of(plots.roc(words, SCORES))[0] == f"a, AUC {wanted[0]:.3f}"


@needs_sklearn
@pytest.mark.parametrize("scores", [SCORES[:, 0], SCORES[:, :1], np.stack([-SCORES[:, 0], SCORES[:, 0]], axis=1)])
def test_of_two_classes_the_second_one(scores):
    wanted = area(SCORES[Y == 0, 0], SCORES[Y != 0, 0])
    for y in (Y == 0, (Y == 0).astype(float), np.where(Y == 0, "yes", "no")):
        (curve, _), name = labels_of(plots.roc(y, scores)), "yes" if np.asarray(y).dtype.kind == "U" else "1"
        assert curve == f"{name}, AUC {wanted:.3f}"


@needs_sklearn
def test_average_precision():
    y, scores = np.array([1, 0, 1, 1, 0]), np.array([5, 4, 3, 2, 1])  # recalls 1/3, 2/3, 1 at precisions 1, 2/3, 3/4
    wanted = (1 + 2 / 3 + 3 / 4) / 3
    assert labels_of(plots.precision_recall(y, scores)) == [f"1, AP {wanted:.3f}", "chance, AP 0.600"]
    page = plots.precision_recall(Y, SCORES)
    assert len(page.axes[0].lines) == 3
    assert "mean AP" in page.axes[0].get_title()


@needs_sklearn
def test_confusion():
    predicted = SCORES.argmax(axis=1)
    page = plots.confusion(Y, predicted, names=["cat", "dog", "cow"])
    counts = [str(np.sum((i == Y) & (predicted == j))) for i in range(3) for j in range(3)]
    assert [text.get_text() for text in page.axes[0].texts] == counts
    assert page.axes[0].get_title() == f"accuracy {np.mean(predicted == Y):.4f}"
    assert [text.get_text() for text in page.axes[0].get_xticklabels()] == ["cat", "dog", "cow"]


WRONG_SCORES = {
    "rows": (lambda: plots.roc(Y, SCORES[:5]), "scores must have one row per label, 60"),
    "finite": (lambda: plots.roc(Y, SCORES * np.nan), "scores must be finite"),
    "one class": (lambda: plots.roc(Y * 0, SCORES), "y must have samples in class 0 and others, got 60 in it"),
    "absent": (lambda: plots.precision_recall(Y % 2, SCORES), "y must have samples in class 2"),
    "classes": (lambda: plots.roc(Y.astype(str), SCORES[:, :2]), "y must have 2 classes"),
    "names": (lambda: plots.roc(Y, SCORES, names=["a"]), "names must hold a text for each of 3 classes"),
    "fractions": (lambda: plots.confusion(Y + 0.5, Y), "y must be labels of classes"),
    "matrix": (lambda: plots.confusion(Y[:, None], Y), r"y must be labels \(n,\)"),
    "lengths": (lambda: plots.confusion(Y, Y[:5]), "predicted must have one label per sample, 60, got 5"),
    "types": (lambda: plots.confusion(Y, Y.astype(str)), "predicted must have the type of y"),
    "no numbers": (lambda: plots.roc(Y, Y.astype(str)), "scores must be numbers"),
}


@needs_sklearn
@pytest.mark.parametrize(("call", "message"), WRONG_SCORES.values(), ids=WRONG_SCORES)
def test_wrong_scores_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()


# ---- Curves -------------------------------------------------------------------------------------------------------


def test_learning_curve():
    train, test = RNG.random((3, 4)), RNG.random((3, 4))
    ax = plots.learning_curve([1000, 10, 100], train, test, score="f1").axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [10, 100, 1000])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), test.mean(axis=1)[[1, 2, 0]])
    bands = [each.get_paths()[0].vertices[:, 1] for each in ax.collections]
    np.testing.assert_allclose(bands[0].max(), (train.mean(axis=1) + train.std(axis=1)).max())
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "training samples", "f1")
    assert not plots.learning_curve([10, 100], [1, 1], [0, 1]).axes[0].collections


def test_validation_curve():
    ax = plots.validation_curve([1, 2, 3], [1, 1, 1], [0.2, 0.5, 0.3], parameter="depth").axes[0]
    assert (ax.get_xscale(), ax.get_xlabel()) == ("linear", "depth")
    assert ax.lines[2].get_xdata()[0] == 2  # where validation is best
    assert plots.validation_curve([1e-3, 1], [1, 1], [1, 1]).axes[0].get_xscale() == "log"
    ax = plots.validation_curve(["adam", "sgd"], [1, 1], [1, 1]).axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["adam", "sgd"]


def test_histories():
    runs = {
        "small": {"loss": [1.0, None, 0.01], "val_loss": [1.0, 0.5, 0.4], "f1": [0.1, 0.2, 0.3]},
        "large": {"loss": [0.5]},
    }
    page = plots.histories(runs, metrics=("loss", "accuracy", "f1"))
    loss, f1 = page.axes
    assert loss.get_yscale() == "log"
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["small", "large"]
    assert [len(line.get_xdata()) for line in loss.lines] == [3, 3, 1]
    thin, thick, alone = (line.get_linewidth() for line in loss.lines)
    assert thin < thick == alone
    assert f1.get_ylabel() == "f1"


def test_styles_differ():
    looks = {(style["color"], style["linestyle"]) for style in map(plots._style, range(14))}
    assert len(looks) == 14


WRONG_CURVES = {
    "size": (lambda: plots.learning_curve([0, 1], [1, 1], [1, 1]), "sizes must be numbers of samples above 0"),
    "points": (lambda: plots.learning_curve([1, 2], [1], [1, 1]), "train_scores must have one row for each of 2"),
    "text": (lambda: plots.learning_curve([1], [1], [1], score=3), "score must be a str"),
    "values": (lambda: plots.validation_curve("abc", [1], [1]), "values must be a sequence"),
    "no runs": (lambda: plots.histories({}), "runs must hold one or more"),
    "one run": (lambda: plots.histories({"loss": [1.0]}), r"runs\['loss'\] must be"),
    "metric": (lambda: plots.histories({"a": {"val_loss": [1]}}, metrics=["f1"]), "metrics must be among loss; got f1"),
    "word": (lambda: plots.histories({"a": {"loss": [1]}}, metrics="loss"), "metrics must be a sequence of str"),
}


@pytest.mark.parametrize(("call", "message"), WRONG_CURVES.values(), ids=WRONG_CURVES)
def test_wrong_curves_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()


# ---- Searches -----------------------------------------------------------------------------------------------------

#: Four candidates of a halving search, two of which get a second round, one a third.
HALVING = {
    "params": [{"lr": lr, "kind": kind, "max_iter": n, "same": 1} for lr, kind, n in (
        (0.001, "a", 2), (0.01, "b", 2), (0.1, "a", 2), (1.0, "b", 2), (0.01, "b", 4), (0.1, "a", 4), (0.1, "a", 8),
    )],
    "iter": [0, 0, 0, 0, 1, 1, 2],
    "n_resources": [2, 2, 2, 2, 4, 4, 8],
    "mean_test_score": [0.1, 0.5, 0.6, np.nan, 0.9, 0.7, 0.8],
    "std_test_score": [0.1] * 7,
}  # fmt: skip


def test_last_rounds_of_a_halving_search():
    found = plots._trials(HALVING, "mean_test_score")
    assert [axis.name for axis in found.axes] == ["lr", "kind"]  # neither the epochs nor what never changes
    np.testing.assert_array_equal(found.scores, [0.1, np.nan, 0.9, 0.8])
    assert found.stopped.tolist() == [True, True, True, False]
    assert found.best == 3  # of those in the last round
    assert found.axes[0].log
    assert found.axes[1].words == ["a", "b"]


def test_parallel_coordinates():
    ax = plots.trials(HALVING).axes[0]
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert [line.get_linestyle() for line in lines] == ["--", "-", "--"]  # by score; the one that failed is left out
    assert lines[1].get_color() == "black"
    np.testing.assert_allclose(lines[0].get_ydata(), [0, 0, 0])
    np.testing.assert_allclose(lines[2].get_ydata(), [1 / 3, 1, 1])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["lr\n(log)", "kind", "mean_test_score"]


def test_scatter_by_parameter():
    lr, kind = plots.trials(HALVING, kind="scatter").axes
    marks = {
        each.get_label(): each.get_offsets().data.tolist() for each in lr.collections if each.get_label()[0] != "_"
    }
    assert marks == {
        "trained to the end": [[0.1, 0.8]], "stopped early": [[0.001, 0.1], [0.01, 0.9]], "best, 0.8": [[0.1, 0.8]],
    }  # fmt: skip
    assert [text.get_text() for text in kind.get_xticklabels()] == ["a", "b"]


def test_a_search_without_rounds_keeps_all():
    found = plots._trials(
        {"params": [{"a": 1}, {"a": 1}, {"b": None}], "split0_test_score": [1, 2, 3]}, "split0_test_score"
    )
    assert len(found.scores) == 3
    assert found.axes[0].words == ["1", "—"]
    assert not found.stopped.any()


WRONG_TRIALS = {
    "params": ({"mean_test_score": [1]}, "results must have 'params'"),
    "score": ({"params": [{}]}, "results must have 'mean_test_score'"),
    "lengths": ({"params": [{"a": 1}], "mean_test_score": [1, 2]}, r"results\['params'\] must be a dict for each of 2"),
    "constant": ({"params": [{"a": 1}] * 2, "mean_test_score": [1, 2]}, "results must have a parameter that varies"),
    "failed": (HALVING | {"mean_test_score": [np.nan] * 7}, "results must have a finite mean_test_score"),
    "iter": (HALVING | {"iter": [1]}, r"results\['iter'\] must have a number for each of 7"),
}


@pytest.mark.parametrize(("results", "message"), WRONG_TRIALS.values(), ids=WRONG_TRIALS)
def test_wrong_results_are_refused(results, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        plots.trials(results)


def test_written_to_a_path(tmp_path):
    for kind in ("parallel", "scatter"):
        plots.trials(HALVING, kind=kind, path=tmp_path / f"{kind}.png")
        assert (tmp_path / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="kind must be"):
        plots.trials(HALVING, kind="3d")
