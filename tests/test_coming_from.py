"""docs/coming-from.md, row by row, beside the other library where it is installed; the calls in `fastopt.dialects`."""

import ast
import copy
import html
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import dialects, nn

PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"


# ---- The page ---------------------------------------------------------------------------------------------------


def sections():
    """The sections of the page: title, Python that is run before its rows (with that of the page's beginning), rows."""
    if not PAGE.exists():
        return {}
    start, *parts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    found = {}
    for part in parts:
        title, _, text = part.partition("\n")
        setup = "".join(re.findall(r"^```python\n(.*?)^```", start + text, re.DOTALL | re.MULTILINE))
        lines = re.findall(r"^\| (.*) \| (.*) \|$", text, re.MULTILINE)
        found[title] = setup, [line for line in lines if set("".join(line)) - set("-| ")][1:]
    return found


SECTIONS = sections()


def rows_of(title: str) -> list:
    return [pytest.param(*row, id=row[0]) for row in SECTIONS.get(title, ("", []))[1]]


def code(cell: str) -> list[str]:
    """What stands in a cell in backticks; the words between are for the reader."""
    return [html.unescape(each) for each in re.findall(r"`([^`]+)`", cell)]


def value_of(text: str, names: dict) -> object:
    """Runs a cell; the value of its last statement, where that is an expression."""
    tree = ast.parse(text)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, text, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), text, "eval"), names)


def started(title: str) -> dict:
    names = {}
    exec(SECTIONS[title][0], names)
    return names


# ---- What is compared -------------------------------------------------------------------------------------------


def numbers(value):
    """An array, where a value is one, of NumPy or PyTorch, or a number; else None."""
    if type(value).__name__ in ("Tensor", "Parameter"):
        value = value.detach().numpy()
    if isinstance(value, (np.ndarray, np.generic, int, float)) and not isinstance(value, bool):
        return np.asarray(value) if np.asarray(value).dtype.kind in "fiu" else None
    return None


def same(theirs, ours) -> bool:
    """Compares numbers, also within lists, tuples and dicts of one length; whether there were any."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        theirs, ours = [*theirs.values()], [*ours.values()]
    if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)) and len(theirs) == len(ours):
        compared = [same(*pair) for pair in zip(theirs, ours, strict=True)]  # all of them
        return any(compared)
    if isinstance(ours, tuple) and len(ours) == 2 and numbers(theirs) is not None:
        ours = ours[0]  # without the cache
    theirs, ours = numbers(theirs), numbers(ours)
    if theirs is None or ours is None:
        return False
    if theirs.ndim == 2 and theirs.shape == ours.shape[::-1] != ours.shape:
        theirs = theirs.T  # PyTorch's weights are (outputs, inputs)
    double = theirs.dtype == ours.dtype == np.float64 and theirs.ndim > 0
    np.testing.assert_allclose(
        ours, theirs, **({"rtol": 1e-9, "atol": 1e-12} if double else {"rtol": 1e-4, "atol": 1e-5})
    )
    return True


def same_layers(torch, theirs, ours, rng) -> bool:
    """Compares outputs and gradients of a module and a layer with the same parameters."""
    theirs = theirs.double()
    images = "2d" in repr(theirs) or "GroupNorm" in repr(theirs)
    x = rng.normal(size=(4, 8, 8, 3) if images else (6, 5))
    if isinstance(theirs, torch.nn.Embedding):
        x = rng.integers(10, size=(6, 5))
    ours.build(x.shape[1:], rng, np.float64)
    for (name, tensor), param in zip(theirs.named_parameters(), ours.params.values(), strict=True):
        param[...] = rng.normal(size=param.shape)
        values = param if param.ndim < 3 else param.reshape(*param.shape[:2], -1, tensor.shape[0])
        order = (3, 2, 0, 1) if values.ndim == 4 else (1, 0) if isinstance(theirs, torch.nn.Linear) else (0, 1)
        assert name in ("weight", "bias")
        tensor.data = torch.from_numpy(
            np.ascontiguousarray(values.transpose(order[: values.ndim] if values.ndim > 1 else 0))
        )
    to_theirs = (0, 3, 1, 2) if images else tuple(range(x.ndim))
    given = torch.from_numpy(np.ascontiguousarray(x.transpose(to_theirs))).requires_grad_(x.dtype == np.float64)
    wanted = theirs(given)
    y, cache = ours.forward(x, training=True)
    back = (0, 2, 3, 1) if wanted.ndim == 4 else tuple(range(wanted.ndim))
    assert same(wanted.detach().numpy().transpose(back), y)
    if x.dtype == np.float64:
        dy = rng.normal(size=y.shape)
        wanted.backward(torch.from_numpy(np.ascontiguousarray(dy.transpose(np.argsort(back)))))
        dx, _ = ours.backward(dy, cache)
        assert same(given.grad.numpy().transpose(np.argsort(to_theirs)), dx)
    return True


def same_losses(torch, theirs, ours, names) -> bool:
    """Compares a loss and its gradient."""
    targets = names["b"]
    if isinstance(theirs, torch.nn.CrossEntropyLoss):
        targets = names["t"]
    elif isinstance(theirs, torch.nn.BCEWithLogitsLoss):
        targets = 1 / (1 + np.exp(-names["b"]))
    outputs = torch.from_numpy(names["a"]).requires_grad_()
    wanted = theirs(outputs, torch.from_numpy(targets))
    wanted.backward()
    loss, gradient = ours(names["a"], targets)
    return same([wanted, outputs.grad], [loss, gradient])


def same_optimizers(theirs, ours) -> bool:
    """Compares a few steps from the same parameters."""
    (tensor,) = theirs.param_groups[0]["params"]
    param, rng = ours.params[0], np.random.default_rng(1)
    for _ in range(5):
        grad = rng.normal(size=param.shape)
        tensor.grad = tensor.new_tensor(grad)
        theirs.step()
        ours.step([grad])
        assert same(tensor, param)
    return True


# ---- Rows -------------------------------------------------------------------------------------------------------


def test_the_page_is_read():
    if not PAGE.exists():
        pytest.skip("the page is not beside the tests")
    assert [*SECTIONS] == ["Keras", "PyTorch", "scikit-learn", "Plain NumPy"]
    assert PAGE.read_text().count("\n| ") == sum(len(rows) for _, rows in SECTIONS.values()) + len(SECTIONS)
    assert all(len(code(left)) >= 1 == len(code(right)) for _, rows in SECTIONS.values() for left, right in rows)


@pytest.fixture
def settings():
    """Gives back what rows may change for the whole process."""
    threads = fastopt.get_num_threads()
    yield
    fastopt.set_num_threads(threads)


def both(left: str, right: str, theirs: dict, ours: dict) -> bool:
    """Runs both sides of a row and compares their values, and all that both have; whether there was anything."""
    before = {name: copy.deepcopy(value) for name, value in theirs.items() if numbers(value) is not None}
    value = [value_of(each, theirs) for each in code(left)]
    own = value_of(*code(right), ours)
    alike = "loss_curve_" not in left and "train_test_split" not in left  # of two runs, of two generators
    compared = alike and same(value[0] if len(value) == 1 else value, own)
    names = [name for name in theirs if name in ours and not name.startswith("_")]
    moved = [changed(before.get(name), theirs[name]) for name in names if same(theirs[name], ours[name])]
    return compared or any(moved)


def changed(before, after) -> bool:
    before, after = numbers(before), numbers(after)
    return after is not None and (before is None or not np.array_equal(before, after))


@pytest.mark.parametrize(("left", "right"), rows_of("Keras"))
def test_keras(left, right, settings, tmp_path, monkeypatch):
    """Which is not installed: its side is read, not run."""
    monkeypatch.chdir(tmp_path)
    for each in code(left):
        ast.parse(each)
    value_of(*code(right), started("Keras"))


@pytest.mark.parametrize(("left", "right"), rows_of("Plain NumPy"))
def test_numpy(left, right):
    compared = both(left, right, started("Plain NumPy"), started("Plain NumPy"))
    assert compared == ("rng.random" not in left)


@pytest.mark.filterwarnings("ignore")  # its own
@pytest.mark.parametrize(("left", "right"), rows_of("PyTorch"))
def test_torch(left, right, settings, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    ours, theirs = started("PyTorch"), in_torch(torch)
    first = value_of(code(left)[0], in_torch(torch)) if left.startswith(("`torch.nn.", "`torch.optim.")) else None
    if isinstance(first, torch.nn.Module) and "Loss" in repr(first):
        assert same_losses(torch, first, value_of(*code(right), ours), ours)
    elif isinstance(first, torch.nn.Module) and not re.search("Dropout|Averaged", repr(type(first))):
        assert same_layers(torch, first, value_of(*code(right), ours), np.random.default_rng(2))
    elif isinstance(first, torch.optim.Optimizer):
        assert same_optimizers(first, value_of(*code(right), ours))
    else:
        compared = both(left, right, theirs, ours)
        assert same([*theirs["net"].parameters()], [*ours["model"].params.values()])
        assert compared or not isinstance(first, torch.Tensor) or left.endswith("and the step")


def in_torch(torch) -> dict:
    """The names of the page as PyTorch's: arrays, a network with the weights of the model, and what goes with it."""
    ours = started("PyTorch")
    theirs = {name: torch.from_numpy(value) for name, value in ours.items() if isinstance(value, np.ndarray)}
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    for tensor, param in zip(net.parameters(), ours["model"].params.values(), strict=True):
        tensor.data = torch.from_numpy(np.ascontiguousarray(param.T))
    optimizer, dataset = torch.optim.Adam(net.parameters()), torch.utils.data.TensorDataset(theirs["x"], theirs["y"])
    own = {"net": net, "criterion": torch.nn.CrossEntropyLoss(), "optimizer": optimizer, "dataset": dataset}
    return {"torch": torch, **theirs, **own}


@pytest.mark.filterwarnings("ignore")  # that it has not converged
@pytest.mark.parametrize(("left", "right"), rows_of("scikit-learn"))
def test_sklearn(left, right, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sklearn = pytest.importorskip("sklearn")
    ours = started("scikit-learn")
    theirs = {name: ours[name].copy() for name in ("x", "y")}
    exec(SKLEARN, theirs)
    clf, params = theirs["clf"], ours["model"].params
    clf.coefs_, clf.intercepts_ = ([params[f"{i}.{name}"].copy() for i in (1, 2)] for name in ("weight", "bias"))
    compared = both(left, right, theirs, ours)
    assert compared or not re.search(r"coefs_|intercepts_|predict|score", left), sklearn.__version__


@pytest.mark.filterwarnings("ignore")
def test_alpha_of_sklearn():
    """One step of gradient descent on a batch of 32, with the decay that the page has."""
    neural_network = pytest.importorskip("sklearn.neural_network")
    (cell,) = (right for left, right in SECTIONS["scikit-learn"][1] if "alpha" in left)
    x, y = np.random.default_rng(3).normal(size=(32, 5)), np.arange(32) % 3
    clf = neural_network.MLPClassifier((4,), solver="sgd", momentum=0.0, learning_rate_init=0.5, alpha=1e-3 * 1000)
    clf.partial_fit(x, y, classes=[0, 1, 2])
    model = nn.Sequential([nn.Dense(4, activation="relu"), nn.Dense(3)], (5,), dtype=np.float64)
    params = model.params
    clf.coefs_, clf.intercepts_ = ([params[f"{i}.{name}"].copy() for i in (0, 1)] for name in ("weight", "bias"))
    clf.partial_fit(x, y)
    options = cell.partition("fastopt.Adam(model.params, ")[2].removesuffix("))`").replace("1e-3", "1e-3 * 1000")
    optimizer = eval(f"fastopt.SGD(params, 0.5, {options})", {"fastopt": fastopt, "params": params})
    model.fit(x, y, optimizer=optimizer)
    assert same([*clf.coefs_, *clf.intercepts_], [params[f"{i}.{name}"] for name in ("weight", "bias") for i in (0, 1)])


SKLEARN = """
import copy

import joblib
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils.class_weight import compute_sample_weight

clf = MLPClassifier((32,), max_iter=1, random_state=0).fit(x.reshape(128, -1), y)
"""


# ---- What is to be written instead ------------------------------------------------------------------------------


def keywords_of(function) -> set[str]:
    """What it takes; ``**`` where that is not said."""
    named = inspect.signature(function).parameters
    whole = function._setting_names() if hasattr(function, "_setting_names") else []
    return {*named, *whole} | {"**" for each in named.values() if each.kind is each.VAR_KEYWORD and not whole}


def calls_in(text: str) -> list[ast.Call]:
    """The calls in what is to be written instead, behind which there may be words."""
    calls, ends = [], [i + 1 for i, character in enumerate(text) if character == ")"]
    for start in (match.start() for match in re.finditer(r"\b(?:fastopt|nn|model)\.", text)):
        for end in reversed(ends):
            try:
                tree = ast.parse(text[start:end].replace("=…", "=0").replace(", …", "").replace("…", "0"))
            except SyntaxError:
                continue
            calls += [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
            break
    return calls


def check_calls(text: str) -> None:
    """Calls must be of what is there, and with keywords that it takes."""
    places = {"fastopt": fastopt, "nn": nn, "model": nn.Sequential([nn.Dense(2)], (2,))}
    for call in calls_in(text):
        function = eval(ast.unparse(call.func), dict(places))
        if "**" not in keywords_of(function):
            assert {keyword.arg for keyword in call.keywords} <= keywords_of(function), text


@pytest.mark.parametrize("table", [dialects.KEYWORDS, dialects.VALUES], ids=["keywords", "values"])
def test_calls_to_write_instead(table):
    """`tests/test_dialects.py` has what is said of each row."""
    texts = {row.instead for row in dialects.rows(table)}
    for text in texts:
        check_calls(text)
    assert sum(len(calls_in(text)) for text in texts) >= 10


def test_calls_are_found_in_words():
    calls = calls_in("fastopt.Adam(params, beta1=…, beta2=…), or nn.Hinge(margin=0.0), which is like it")
    assert {ast.unparse(call) for call in calls} == {"fastopt.Adam(params, beta1=0, beta2=0)", "nn.Hinge(margin=0.0)"}
    for wrong in ("fastopt.Adam(params, rho=…)", "lr=…, or nn.EarlyStopping(tol=1)"):
        with pytest.raises(AssertionError):
            check_calls(wrong)
    with pytest.raises(AttributeError):
        check_calls("fastopt.Adamm(params)")
