"""Layers that adapt to data: beside scikit-learn, in models, in files, in pipelines."""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from fastopt import data, nn

EXAMPLE = Path(__file__).parents[2] / "examples" / "leak.py"

ALL = [
    nn.Center(),
    nn.Center("feature"),
    nn.Standardize(),
    nn.Standardize("feature", eps=0.1),
    nn.Whiten(),
    nn.Whiten("zca"),
    nn.Whiten("decorrelate", 2),
]


@pytest.fixture
def table(rng):
    """Features that are correlated, of other means and other scales."""
    return rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)) * [1, 10, 0.1, 3, 1] + [5, -20, 0, 100, 1]


# ---- Beside scikit-learn ------------------------------------------------------------------------------------


def test_standardize_is_the_standard_scaler(table):
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    table[:, 2] = 0.1  # of which a float64 mean has a rounding error
    theirs = preprocessing.StandardScaler().fit(table)
    ours = nn.Standardize().fit(table)
    np.testing.assert_allclose(ours.transform(table), theirs.transform(table), rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.inverse_transform(ours.transform(table)), table, rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.sqrt(ours.state["var"]), theirs.scale_, rtol=1e-10)
    centred = preprocessing.StandardScaler(with_std=False).fit_transform(table)
    np.testing.assert_allclose(nn.Center().fit_transform(table), centred, rtol=0, atol=1e-10)


@pytest.mark.parametrize("components", [None, 5, 3, 1])
def test_whiten_is_pca(table, components):
    decomposition = pytest.importorskip("sklearn.decomposition")
    for kind, whiten in (("pca", True), ("decorrelate", False)):
        theirs = decomposition.PCA(components, whiten=whiten, svd_solver="full").fit(table)
        ours = nn.Whiten(kind, components, eps=0).fit(table)
        wanted = theirs.transform(table)
        y = ours.transform(table)
        np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())
        wanted = theirs.inverse_transform(wanted)
        np.testing.assert_allclose(ours.inverse_transform(y), wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())


def test_zca_is_the_inverse_root_of_the_covariance(table):
    linalg = pytest.importorskip("scipy.linalg")
    ours = nn.Whiten("zca", eps=0).fit(table)
    covariance = np.cov(table.T)
    np.testing.assert_allclose(ours.state["weight"], linalg.fractional_matrix_power(covariance, -0.5), atol=1e-9)
    np.testing.assert_allclose(np.cov(ours.transform(table).T), np.eye(5), atol=1e-9)
    np.testing.assert_allclose(ours.inverse_transform(ours.transform(table)), table, atol=1e-9)


@pytest.mark.parametrize(
    ("per", "axes"), [("channel", (0, 1, 2)), ("pixel", (0,)), ("feature", (0,)), ("image", (1, 2, 3))]
)
def test_statistics_of_images(per, axes, rng):
    x = rng.normal(3, 2, (50, 4, 5, 3))
    centred = x - x.mean(axis=axes, keepdims=True)
    np.testing.assert_allclose(nn.Center(per).fit_transform(x), centred, atol=1e-12)
    wanted = centred / x.std(axis=axes, keepdims=True)
    np.testing.assert_allclose(nn.Standardize(per).fit_transform(x), wanted, atol=1e-10)


def test_many_parts_are_one(rng, monkeypatch, same_bits):
    """Statistics are computed a part at a time, of memory maps too."""
    x = rng.normal(7, 2, (30, 4))
    whole = [copy.deepcopy(layer).fit(x) for layer in ALL]
    monkeypatch.setattr(nn.preprocessing, "_PART", 16)
    for layer, other in zip(ALL, whole, strict=True):
        parts = copy.deepcopy(layer).fit(x)
        np.testing.assert_allclose(parts.transform(x), other.transform(x), atol=1e-10)


def test_an_image_of_one_colour_becomes_zeros():
    x = np.full((2, 3, 3, 1), 0.7)
    np.testing.assert_allclose(nn.Standardize("image").fit_transform(x), 0, atol=1e-6)


# ---- As a transformer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ALL, ids=repr)
def test_in_a_pipeline(layer, table, same_bits):
    base, pipeline = pytest.importorskip("sklearn.base"), pytest.importorskip("sklearn.pipeline")
    linear = pytest.importorskip("sklearn.linear_model")
    y = table @ np.arange(5.0)
    chain = pipeline.make_pipeline(copy.deepcopy(layer), linear.LinearRegression())
    twin = base.clone(chain).fit(table, y)
    alone = copy.deepcopy(layer).fit(table)
    same_bits(twin[:-1].transform(table), alone.transform(table))
    assert repr(base.clone(layer)) == repr(layer)
    assert not base.clone(twin[0]).adapted
    model = pytest.importorskip("sklearn.model_selection")
    scores = model.cross_val_score(chain, table, y, cv=3)
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()


def test_parameters_of_a_pipeline_are_searched(table):
    pipeline, linear = pytest.importorskip("sklearn.pipeline"), pytest.importorskip("sklearn.linear_model")
    model = pytest.importorskip("sklearn.model_selection")
    y = table @ np.arange(5.0)
    chain = pipeline.Pipeline([("white", nn.Whiten()), ("line", linear.LinearRegression())])
    search = model.GridSearchCV(chain, {"white__components": [1, 5]}, cv=3).fit(table, y)
    assert search.best_params_ == {"white__components": 5}
    assert search.best_estimator_[0].state["weight"].shape == (5, 5)


def test_data_frames(table):
    pandas, pipeline = pytest.importorskip("pandas"), pytest.importorskip("sklearn.pipeline")
    frame = pandas.DataFrame(table, columns=list("abcde"), index=np.arange(200) + 7)
    chain = pipeline.make_pipeline(nn.Standardize(), nn.Whiten(components=2)).set_output(transform="pandas")
    y = chain.fit_transform(frame)
    assert list(y.columns) == ["whiten0", "whiten1"]
    assert list(y.index) == list(frame.index)
    assert list(chain[0].get_feature_names_out()) == list("abcde")


def test_names_and_containers_without_frames(table):
    layer = nn.Standardize().fit(table)
    assert layer.get_feature_names_out().tolist() == ["x0", "x1", "x2", "x3", "x4"]
    assert layer.get_feature_names_out(list("abcde")).tolist() == list("abcde")
    assert layer.n_features_in_ == 5
    assert isinstance(layer.set_output(transform="default").transform(table), np.ndarray)
    with pytest.raises(ValueError, match="transform must be one of 'default', 'pandas', 'polars'"):
        layer.set_output(transform="arrow")
    with pytest.raises(ValueError, match="input_features must hold 5 names, got 2"):
        layer.get_feature_names_out(["a", "b"])


def test_changed_parameters_forget(table):
    layer = nn.Whiten().fit(table)
    assert layer.set_params().adapted
    assert layer.set_params(components=2) is layer
    assert (layer.components, layer.adapted, layer.get_params()["kind"]) == (2, False, "pca")
    with pytest.raises(ValueError, match="params must be among kind, components, eps; got 'power'"):
        layer.set_params(power=2)
    model = nn.Sequential([layer], (5,))
    with pytest.raises(ValueError, match="must be in no model"):
        model.layers[0].set_params(components=3)


def test_a_layer_is_fitted_again_for_others(table):
    layer = nn.Standardize().fit(table)
    assert layer.fit(table[:, :2].astype(np.float32)).transform(table[:, :2]).dtype == np.float32
    model = nn.Sequential([layer], (2,), dtype=np.float64)  # fitted before
    assert layer.adapted
    assert layer.state["mean"].dtype == np.float64
    with pytest.raises(ValueError, match=r"x must have shape \(n, 2\), got \(200, 5\)"):
        layer.fit(table)
    assert model.predict(table[:, :2]).shape == (200, 2)


# ---- In a model -------------------------------------------------------------------------------------------------


def test_fit_adapts_from_the_training_split_alone(rng, same_bits):
    x, y = rng.normal(5, 3, (60, 4)), rng.integers(3, size=60)
    model = nn.Sequential([nn.Standardize(), nn.Dense(3)], (4,), dtype=np.float64)
    model.fit(x[:40], y[:40], validation_data=(x[40:] + 100, y[40:]), epochs=1)
    np.testing.assert_allclose(model.state["0.mean"], x[:40].mean(axis=0), rtol=1e-12)
    before = model.state["0.mean"].copy()
    model.fit(x + 7, y, epochs=1)  # has adapted
    same_bits(model.state["0.mean"], before)
    model.adapt(x + 7)
    np.testing.assert_allclose(model.state["0.mean"], (x + 7).mean(axis=0), rtol=1e-12)


def test_each_adapts_to_what_comes_out_of_those_before(rng):
    x = rng.normal(5, 3, (300, 4, 4, 2)) * [1.0, 4.0]
    inner = nn.Sequential([nn.Flatten(), nn.Whiten(components=6, eps=0)])
    model = nn.Sequential([nn.Standardize(), inner, nn.Standardize(), nn.Dense(2)], (4, 4, 2), dtype=np.float64)
    model.adapt(x)
    white = nn.Whiten(components=6, eps=0).fit_transform(nn.Standardize().fit_transform(x))
    np.testing.assert_allclose(model.state["2.mean"], white.mean(axis=0), atol=1e-10)
    np.testing.assert_allclose(model.state["1.1.weight"], nn.Whiten(components=6, eps=0).fit(
        nn.Standardize().fit_transform(x)).state["weight"], atol=1e-10)  # fmt: skip


def test_it_travels_with_the_model(rng, tmp_path, same_bits):
    x = rng.normal(5, 3, (60, 4)).astype(np.float32)
    model = nn.Sequential([nn.Standardize(), nn.Whiten("zca"), nn.Dense(3)], (4,))
    model.adapt(x)
    model.save(tmp_path / "model.npz")
    loaded = nn.load(tmp_path / "model.npz")
    assert all(layer.adapted for layer in loaded.layers[:2])
    same_bits(loaded.predict(x), model.predict(x))
    loaded.fit(x + 9, np.zeros(60, int), epochs=1)
    same_bits(loaded.state["0.mean"], model.state["0.mean"])
    same_bits(model.copy().predict(x), model.predict(x))


def test_a_program_made_before_sees_what_was_learnt(rng, same_bits):
    x = rng.normal(5, 3, (60, 4)).astype(np.float32)
    model = nn.Sequential([nn.Standardize()], (4,))
    same_bits(model.predict(x), x)
    model.adapt(x)
    assert np.abs(model.predict(x).mean(axis=0)).max() < 1e-5


@pytest.mark.parametrize("layer", [nn.Center(), nn.Standardize(), nn.Whiten(), nn.Center("image")], ids=repr)
def test_programs_are_kernels_alone(layer):
    model = nn.Sequential([nn.Conv2D(4), copy.deepcopy(layer), nn.Flatten(), nn.Dense(3)], (4, 4, 1))
    assert model.compile(8).native
    assert model.compile(8, loss=nn.softmax_cross_entropy).native


# ---- Refusals ---------------------------------------------------------------------------------------------------


def _model(*layers):
    return nn.Sequential([*layers, nn.Dense(2)], (3,))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: nn.Center("row"), "per must be one of 'channel', 'feature', 'pixel', 'image'"),
        (lambda: nn.Standardize(eps=-1), "eps must be in"),
        (lambda: nn.Whiten("ica"), "kind must be one of 'pca', 'zca', 'decorrelate'"),
        (lambda: nn.Whiten(components=0), "components must be at least 1"),
        (lambda: _model(nn.Whiten(components=4)), "components must be at most 3, the numbers of an input, got 4"),
        (lambda: _model(nn.Center("pixel")), r"Center takes inputs of shape \(n, h, w, c\), got \(n, 3\)"),
        (lambda: _model().adapt(np.ones((4, 3))), "the model must have a layer that adapts"),
        (lambda: _model(nn.Center()).adapt(np.ones((4, 2))), r"x must have shape \(n, 3\), got \(4, 2\)"),
        (lambda: _model(nn.Center()).adapt(np.ones((0, 3))), "x must hold at least one sample"),
        (lambda: _model(nn.Center()).adapt(np.full((4, 3), np.nan)), r"x must be finite, got nan at x\[0, 0\]"),
        (lambda: _model(nn.Whiten()).adapt(np.ones((1, 3))), "at least two samples"),
        (lambda: _model(nn.Residual(nn.Center())).adapt(np.ones((4, 3))), "must stand in a list of layers to adapt"),
        (lambda: _model(nn.Standardize()).trainer(), "must adapt before steps are taken: call model.adapt"),
        (lambda: nn.Center().adapt(np.ones((4, 3))), "must be built before it adapts"),
        (lambda: nn.Center().transform(np.ones((4, 3))), r"must be fitted first: call fit\(x\)"),
        (lambda: nn.Center().fit(np.ones((4, 3))).transform(np.ones((4, 2))), r"x must have shape \(n, 3\), got"),
        (lambda: nn.Center().fit([["a"]]), "x must be an array of numbers"),
        (lambda: nn.Center("image").fit(np.ones((4, 2, 2, 1))).inverse_transform(np.ones((4, 2, 2, 1))), "no inverse"),
        (lambda: nn.Whiten(eps=0).fit(np.eye(4)[:, :3][[0, 1, 0, 1]]), "components must be at most 1, along which x"),
        (lambda: nn.preprocessing_picture(np.ones((4, 3))), r"x must have shape \(n, 2\), got \(4, 3\)"),
    ],
)
def test_refusals(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()


def test_what_cannot_be_learnt_leaves_what_was(rng, same_bits):
    x = rng.normal(size=(20, 3))
    layer = nn.Whiten(eps=0).fit(x)
    before = {name: array.copy() for name, array in layer.state.items()}
    with pytest.raises(ValueError, match="along which x varies"):
        layer.fit(np.zeros((20, 3)))
    for name, array in layer.state.items():
        same_bits(array, before[name])


# ---- Pictures ---------------------------------------------------------------------------------------------------


def test_picture(rng, tmp_path):
    pytest.importorskip("matplotlib")
    x = rng.normal(size=(300, 2)) @ [[2.0, 1.0], [0.0, 0.6]] + [3.0, 1.0]
    page = nn.preprocessing_picture(x, path=tmp_path / "picture.png")
    shown = [ax.collections[0].get_offsets().data for ax in page.axes]
    np.testing.assert_allclose(shown[0], x)
    for points in shown[1:]:
        np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)
    assert abs(np.cov(shown[2].T)[0, 1]) < 1e-12
    np.testing.assert_allclose(np.cov(shown[3].T), np.eye(2), atol=1e-10)
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_digits_are_whitened(same_bits):
    x, _ = data.digits()
    y = nn.Whiten(components=20).fit_transform(x[:1000])
    np.testing.assert_allclose(np.cov(y.T), np.eye(20), atol=1e-2)


# ---- The leak ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not beside the tests")
def test_a_leak_promises_what_new_data_do_not_hold():
    spec = importlib.util.spec_from_file_location("leak", EXAMPLE)
    leak = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(leak)
    table = leak.table(seeds=10, epochs=5, samples=100)
    (honest, held), (promised, broken) = table["the training data"], table["all data"]
    assert abs(honest - held) < 2.5
    assert promised - broken > 2.5
    assert promised > honest + 5
