"""Indicator matrices and numbers as targets of the estimators for scikit-learn."""

import inspect
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array, csr_matrix, lil_matrix
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.multioutput import RegressorChain
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, MultiLabelBinarizer
from sklearn.utils.multiclass import type_of_target

from softprompt import Classify, Ensemble, Regress, SoftpromptWarning, TrainingConfig, fit
from softprompt.data import to_table
from softprompt.errors import DataError
from softprompt.sklearn import SoftPromptClassifier, SoftPromptRegressor
from softprompt.tasks.targets import find_labels
from support.reviews import BAD, GOOD, make_reviews

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")
QUICK = {"epochs": 2, "batch_size": 8, "learning_rate": 0.05, "length": 3}
NAMES = ("bad", "good", "long")
WORDS = {-1: " bad", 0: " plot", 1: " good"}


@pytest.fixture
def texts():
    return [row["text"] for row in make_reviews(24, seed=0)]


def count(text):
    """The good words minus the bad ones, and the number of all."""
    words = text.split()
    good, bad = (sum(word in part for word in words) for part in (GOOD, BAD))
    return good, bad, len(words)


@pytest.fixture
def sets(texts):
    """The kinds of words in each text."""
    counts = [count(text) for text in texts]
    return [
        [n for n, m in zip(NAMES, (b > 0, g > 0, k > 5), strict=True) if m] for g, b, k in counts
    ]


@pytest.fixture
def marks(sets):
    return MultiLabelBinarizer().fit_transform(sets)


@pytest.fixture
def numbers(texts):
    return np.array([[good - bad, size] for good, bad, size in map(count, texts)], dtype=float)


@pytest.fixture
def classifier(backbone):
    return partial(SoftPromptClassifier, backbone("bert"), **QUICK)


@pytest.fixture
def regressor(backbone):
    return partial(SoftPromptRegressor, backbone("bert"), **QUICK)


def train(backbone, task, rows, fraction):
    config = TrainingConfig(epochs=2, batch_size=8, learning_rate=0.05)
    return fit(
        backbone, task, rows, validation=fraction, method="prompt-tuning", config=config,
        progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_an_indicator_matrix_trains_as_fit_does(
    backbone, classifier, texts, sets, marks, fraction
) -> None:
    """The same prompt, thresholds, probabilities and labels, to the last bit."""
    columns = pd.DataFrame(marks, columns=list(NAMES))
    trained = classifier(validation_fraction=fraction).fit(texts, columns)
    rows = [{"text": text, "labels": labels} for text, labels in zip(texts, sets, strict=True)]
    task = Classify("{soft:3}{text}", label_column="labels", multi_label=True)
    expected = train(backbone("bert"), task, rows, fraction)
    assert torch.equal(trained.model_.prompt.vectors, expected.prompt.vectors)
    thresholds = trained.model_.artifact.manifest.task["thresholds"]
    assert thresholds == expected.artifact.manifest.task["thresholds"]
    assert ({*thresholds.values()} == {0.5}) == (fraction == 0)
    shares = trained.predict_proba(texts)
    np.testing.assert_array_equal(shares, expected.predict_proba(texts, batch_size=8))
    found = MultiLabelBinarizer(classes=NAMES).fit_transform(
        [prediction.labels for prediction in expected.predict(texts, batch_size=8)]
    )
    np.testing.assert_array_equal(trained.predict(texts), found)
    least = [thresholds[name] for name in NAMES]
    np.testing.assert_array_equal(trained.predict(texts), shares >= least)
    assert trained.classes_.tolist() == list(NAMES)
    assert trained.score(texts, marks) == accuracy_score(marks, found)
    assert trained.score(texts, marks) == (marks == found).all(axis=1).mean()


def test_it_learns_sets(backbone) -> None:
    """A random model can learn the words that decide by heart."""
    texts = [row["text"] for row in make_reviews(48, seed=1)]
    marks = np.array([[bad > 0, good > 0] for good, bad, _ in map(count, texts)])
    trained = SoftPromptClassifier(
        backbone("bert"), epochs=30, batch_size=8, learning_rate=0.05, head_learning_rate=0.05,
        length=8, validation_fraction=0,
    ).fit(texts, marks)  # fmt: skip
    constant = max((marks == row).all(axis=1).mean() for row in marks)
    assert trained.score(texts, marks) > constant + 0.2


MATRICES = {
    "lists": lambda marks: marks.tolist(),
    "arrays": list,
    "floats": lambda marks: marks.astype(float),
    "booleans": lambda marks: marks.astype(bool),
    "bytes": lambda marks: marks.astype(np.int8),
    "sparse matrix": csr_matrix,
    "sparse array": csr_array,
    "sparse lists": lil_matrix,
    "frame": pd.DataFrame,
}


@pytest.mark.parametrize("shape", MATRICES.values(), ids=MATRICES)
def test_every_shape_of_sets_gives_the_same_answers(classifier, texts, marks, shape) -> None:
    expected = classifier().fit(texts, marks)
    y = shape(marks)
    trained = classifier().fit(texts, y)
    found = trained.predict(texts)
    np.testing.assert_array_equal(found, expected.predict(texts))
    np.testing.assert_array_equal(trained.predict_proba(texts), expected.predict_proba(texts))
    assert type(found) is np.ndarray
    assert found.dtype == (np.asarray(y).dtype if not hasattr(y, "toarray") else y.dtype)
    assert type_of_target(found) == type_of_target(y) == "multilabel-indicator"
    assert trained.classes_.tolist() == [0, 1, 2]
    assert trained.score(texts, y) == expected.score(texts, marks)


def test_more_than_ten_columns_keep_their_order(classifier, texts) -> None:
    """As text, 10 comes before 2."""
    marks = np.random.default_rng(0).integers(0, 2, size=(24, 12))
    trained = classifier(validation_fraction=0).fit(texts, marks)
    assert trained.model_.labels == tuple(map(str, range(12)))
    shares = trained.predict_proba(texts)
    assert shares.shape == (24, 12)
    for row, prediction in zip(shares, trained.model_.predict(texts, batch_size=8), strict=True):
        assert row.tolist() == [prediction.probabilities[str(at)] for at in range(12)]


def test_a_column_without_rows_is_kept_and_said(classifier, texts, marks) -> None:
    """As in a fold of a cross-validation whose rows all lack a label."""
    marks = np.insert(marks, 1, 0, axis=1)
    with pytest.warns(SoftpromptWarning, match="no row of y has the label '1', so that a prompt"):
        trained = classifier(validation_fraction=0).fit(texts, marks)
    assert trained.classes_.tolist() == [0, 1, 2, 3]
    assert trained.predict(texts).shape == marks.shape
    assert not trained.predict(texts)[:, 1].any()
    shares = trained.predict_proba(texts)
    assert (shares[:, 1] < 0.5).all()


def test_labels_without_rows_can_be_listed_for_sets_alone() -> None:
    table = to_table([{"labels": ["a", "b"]}, {"labels": ["b"]}])
    task = Classify(label_column="labels", multi_label=True, labels=["b", "c", "a"])
    assert find_labels(task, table) == ("b", "c", "a")
    with pytest.raises(
        DataError, match=r"lists 'b', 'c', but column 'labels' .* has 'a', 'b', 'c'"
    ):
        find_labels(Classify(label_column="labels", multi_label=True, labels=["b", "c"]), table)
    table = to_table([{"label": "a"}, {"label": "b"}])
    with pytest.raises(DataError, match="List each of these once"):
        find_labels(Classify(labels=["b", "c", "a"]), table)


def test_thresholds_and_weights_are_keyed_by_the_columns(classifier, texts, marks) -> None:
    free = classifier(thresholds=0.0).fit(texts, marks)
    assert free.predict(texts).all()
    mixed = classifier(thresholds={0: 0.0, 1: 1, 2: np.float64(1)}).fit(texts, marks)
    assert (mixed.predict(texts) == [1, 0, 0]).all()
    np.testing.assert_array_equal(mixed.predict_proba(texts), free.predict_proba(texts))
    weighed = classifier(class_weight={0: 1.0, 1: 4.0, 2: 1.0}).fit(texts, marks)
    assert weighed.model_.artifact.manifest.task["class_weights"] == {"0": 1.0, "1": 4.0, "2": 1.0}
    balanced = classifier(class_weight="balanced", validation_fraction=0).fit(texts, marks)
    positive = marks.sum(axis=0)
    weights = balanced.model_.artifact.manifest.task["class_weights"]
    assert [weights[str(at)] for at in range(3)] == pytest.approx((24 - positive) / positive)


def test_a_temperature_is_that_of_the_task(backbone, classifier, texts) -> None:
    """One that validation rows choose changes probabilities, and no label."""
    rows = make_reviews(24, seed=0)
    labels = [row["label"] for row in rows]
    plain, chosen = (classifier(temperature=t).fit(texts, labels) for t in (1, "auto"))
    assert torch.equal(chosen.model_.prompt.vectors, plain.model_.prompt.vectors)
    assert chosen.predict(texts).tolist() == plain.predict(texts).tolist()
    temperature = chosen.model_.artifact.manifest.task["temperature"]
    assert temperature != 1
    logits = np.log(plain.predict_proba(texts)) / temperature
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(chosen.predict_proba(texts), shares, atol=1e-5)
    given = classifier(temperature=2).fit(texts, labels)
    expected = train(backbone("bert"), Classify("{soft:3}{text}", temperature=2.0), rows, 0.1)
    np.testing.assert_array_equal(
        given.predict_proba(texts), expected.predict_proba(texts, batch_size=8)
    )


def test_an_ensemble_predicts_sets_and_numbers(
    classifier, regressor, texts, marks, numbers
) -> None:
    several = {"seeds": 2, "combine_seeds": "ensemble", "epochs": 1}
    trained = classifier(**several).fit(texts, marks)
    assert isinstance(trained.model_, Ensemble)
    each = [member.predict_proba(texts) for member in trained.model_.members]
    np.testing.assert_allclose(trained.predict_proba(texts), np.mean(each, axis=0), atol=1e-5)
    assert trained.predict(texts).shape == marks.shape
    guessed = regressor(**several).fit(texts, numbers)
    values = [[p.values for p in member.predict(texts)] for member in guessed.model_.members]
    np.testing.assert_allclose(guessed.predict(texts), np.mean(values, axis=0), atol=1e-4)


@pytest.mark.parametrize("fraction", [0.0, 0.25])
@pytest.mark.parametrize("columns", [None, 1, 2])
def test_numbers_train_as_fit_does(backbone, regressor, texts, numbers, columns, fraction) -> None:
    """The same prompt and the same numbers, to the last bit, in the form of y."""
    y = numbers[:, 0] if columns is None else numbers[:, :columns]
    trained = regressor(validation_fraction=fraction).fit(texts, y)
    rows = [{"text": text, "stars": cell} for text, cell in zip(texts, y.tolist(), strict=True)]
    expected = train(
        backbone("bert"), Regress("{soft:3}{text}", target_column="stars"), rows, fraction
    )
    assert torch.equal(trained.model_.prompt.vectors, expected.prompt.vectors)
    values = [prediction.values for prediction in expected.predict(texts, batch_size=8)]
    found = trained.predict(texts)
    assert found.dtype == np.float64
    assert found.shape == y.shape
    np.testing.assert_array_equal(found.reshape(24, -1), values)
    assert trained.score(texts, y) == r2_score(y, found)


def test_it_learns_numbers(backbone) -> None:
    texts = [row["text"] for row in make_reviews(48, seed=1)]
    y = [good - bad for good, bad, _ in map(count, texts)]
    trained = SoftPromptRegressor(
        backbone("bert"), epochs=30, batch_size=8, learning_rate=0.05, head_learning_rate=0.05,
        length=8, validation_fraction=0,
    ).fit(texts, y)  # fmt: skip
    assert trained.score(texts, y) > 0.5


NUMBERS = {
    "list": list,
    "integers": lambda y: y.astype(int),
    "single": lambda y: y.astype(np.float32),
    "series": pd.Series,
    "column": lambda y: y.reshape(-1, 1),
    "frame": lambda y: pd.DataFrame({"stars": y}),
    "texts": lambda y: [str(number) for number in y],
}


@pytest.mark.parametrize("shape", NUMBERS.values(), ids=NUMBERS)
def test_every_shape_of_numbers_gives_the_same_answers(regressor, texts, numbers, shape) -> None:
    expected = regressor().fit(texts, numbers[:, 0]).predict(texts)
    found = regressor().fit(texts, shape(numbers[:, 0])).predict(texts)
    assert found.shape == np.shape(shape(numbers[:, 0]))
    np.testing.assert_array_equal(found.ravel(), expected)


def test_number_words_and_losses_are_those_of_the_task(backbone, texts, numbers) -> None:
    y = np.clip(numbers[:, 0], -1, 1)
    make = partial(
        SoftPromptRegressor, backbone("llama"), template="{soft:3}{text} movie", words=WORDS,
        epochs=1,
    )  # fmt: skip
    trained = make(loss="huber").fit(texts, y)
    task = trained.model_.artifact.manifest.task
    assert task["words"] == {"-1": " bad", "0": " plot", "1": " good"}
    assert task["loss"] == "huber"
    found = trained.predict(texts)
    assert (np.abs(found) <= 1).all(), "a mean of the words' numbers"
    floats = make(loss="huber", words={float(n): word for n, word in WORDS.items()})
    np.testing.assert_array_equal(floats.fit(texts, y).predict(texts), found)


KINDS = {"sets": ("classifier", "marks"), "numbers": ("regressor", "numbers")}


@pytest.fixture(params=KINDS)
def problem(request, texts):
    """An estimator with settings, rows and targets."""
    make, y = (request.getfixturevalue(name) for name in KINDS[request.param])
    return make, np.array(texts), y


def test_cross_validation_is_a_loop_over_the_folds(problem) -> None:
    make, rows, y = problem
    expected, found = [], np.empty(y.shape)
    for part, test in KFold(3).split(rows):
        trained = make().fit(rows[part], y[part])
        expected.append(trained.score(rows[test], y[test]))
        found[test] = trained.predict(rows[test])
    scores = cross_val_score(make(), rows, y, cv=KFold(3), error_score="raise")
    assert scores.tolist() == expected
    np.testing.assert_array_equal(cross_val_predict(make(), rows, y, cv=KFold(3)), found)


def test_a_grid_search_finds_the_best_score(problem) -> None:
    make, rows, y = problem
    grid = {"learning_rate": [1e-9, 0.1]}
    search = GridSearchCV(make(), grid, cv=KFold(2), error_score="raise").fit(rows, y)
    scores = [
        cross_val_score(make().set_params(learning_rate=rate), rows, y, cv=KFold(2)).mean()
        for rate in grid["learning_rate"]
    ]
    assert search.cv_results_["mean_test_score"].tolist() == scores
    again = make().set_params(**search.best_params_).fit(rows, y)
    np.testing.assert_array_equal(search.predict(rows), again.predict(rows))


def test_in_a_pipeline_it_gets_what_the_step_before_makes(problem) -> None:
    make, rows, y = problem
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = Pipeline([("lower", lower), ("learn", make())])
    upper = [text.upper() for text in rows]
    expected = make().fit(list(rows), y).predict(rows)
    np.testing.assert_array_equal(pipeline.fit(upper, y).predict(upper), expected)


def test_a_chain_of_regressors_gets_columns(regressor, texts, numbers) -> None:
    """Another tool of scikit-learn, which adds numbers to the columns of X."""
    rows = np.array(texts, dtype=object).reshape(-1, 1)
    chain = RegressorChain(regressor(validation_fraction=0), order=[0, 1])
    with pytest.raises(ValueError, match="could not convert string to float"):
        chain.fit(rows, numbers)
    sizes = np.array([[len(text)] for text in texts])
    assert chain.fit(sizes, numbers).predict(sizes).shape == numbers.shape


def test_copies_have_the_settings_and_nothing_that_was_trained(problem) -> None:
    make, rows, y = problem
    trained = make(epochs=1).fit(rows, y)
    copy = clone(trained)
    params = trained.get_params()
    assert copy.get_params() == params
    assert type(copy)(**params).get_params() == params
    assert type(copy)().set_params(**params).get_params() == params
    assert copy.backbone is trained.backbone
    with pytest.raises(NotFittedError):
        copy.predict(rows)


@pytest.mark.parametrize("kind", [SoftPromptClassifier, SoftPromptRegressor])
def test_every_setting_is_an_argument_and_nothing_else_is_kept(kind) -> None:
    parameters = inspect.signature(kind).parameters
    assert [*kind().get_params()] == sorted(parameters)
    assert {*vars(kind())} == {*parameters}
    by_position = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert by_position == ["backbone"]
    one, other = kind(epochs=3), kind(epochs=3)
    assert one != other, "estimators are compared by identity, as scikit-learn's"
    assert repr(one) == f"{kind.__name__}(epochs=3)"
    assert (is_classifier(one), is_regressor(one)) == (
        kind is SoftPromptClassifier, kind is SoftPromptRegressor,
    )  # fmt: skip


def test_a_second_fit_may_have_other_targets(classifier, texts, marks) -> None:
    labels = [row["label"] for row in make_reviews(24, seed=0)]
    once = classifier().fit(texts, labels).predict(texts).tolist()
    twice = classifier().fit(texts, marks).fit(texts, labels)
    assert twice.predict(texts).tolist() == once
    assert twice.classes_.tolist() == ["negative", "positive"]


TWO = [[0, 1], [1, 0], [1, 1], [0, 0]]
WRONG_SETS = {
    "verbalizer": (
        {"verbalizer": {0: " a", 1: " b"}},
        TWO,
        "y is an indicator matrix, but the words",
    ),
    "temperature": ({"temperature": "auto"}, TWO, "temperature is 'auto', but y is an indicator"),
    "thresholds": (
        {"thresholds": 0.5},
        list("abab"),
        "thresholds is 0.5, but y has one label a row",
    ),
    "pooling": (
        {"verbalizer": {"a": " good", "b": " bad"}, "pooling": "mean"},
        list("abab"),
        "pooling is 'mean', but the language-model head scores the words of verbalizer",
    ),
    "other numbers": ({}, [[1, 2], [2, 1]] * 2, "y is a matrix with 2 in it, but an indicator"),
    "no label": ({}, [[0, 0]] * 4, "y has no row with a label. Give rows that have some."),
    "names": ({}, [["a", "b"]] * 4, "y is neither one label for each row nor an indicator matrix"),
    "ragged": ({}, [["a"], ["a", "b"], [], ["b"]], "y is neither one label for each row nor an"),
    "three values": ({}, [[0, 1, 2]] * 4, "y is neither one label for each row nor an indicator"),
    "cube": ({}, np.zeros((4, 2, 2), dtype=int), "y is neither one label for each row nor an"),
    "sparse column": ({}, csr_matrix([[1], [0], [1], [0]]), "y is neither one label for each row"),
    "double name": ({}, pd.DataFrame(TWO, columns=["a", "a"]), "y has two columns called 'a'"),
    "same text": ({}, pd.DataFrame(TWO, columns=[1, "1"]), "y has two columns called '1'. Rename"),
    "length": ({}, TWO[:3], "Found input variables with inconsistent numbers of samples: [4, 3]"),
}


@pytest.mark.parametrize(("more", "y", "message"), WRONG_SETS.values(), ids=WRONG_SETS)
def test_labels_that_do_not_fit_are_refused(classifier, more, y, message) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        classifier(**more).fit(["a", "b", "c", "d"], y)
    assert str(caught.value).startswith(message)


WRONG_NUMBERS = {
    "none": ({}, None, "SoftPromptRegressor requires y to be passed, but the target y is None"),
    "names": ({}, list("abab"), "y cannot be read as numbers: could not convert string to float"),
    "nan": ({}, [1.0, np.nan, 2.0, 3.0], "y cannot be read as numbers: Input y contains NaN."),
    "cube": ({}, np.zeros((4, 2, 2)), "y cannot be read as numbers: Found array with dim 3"),
    "sparse": ({}, csr_matrix([[1.0], [0.0]]), "y cannot be read as numbers: Sparse data was"),
    "ragged": ({}, [[1.0], [1.0, 2.0]], "y cannot be read as numbers: setting an array element"),
    "pooling": (
        {"words": WORDS, "pooling": "max"},
        np.ones(4),
        "pooling is 'max', but the language-model head scores the words of words",
    ),
    "words": ({"words": WORDS}, np.ones((4, 2)), "y has 2 numbers a row, but number words predict"),
    "length": (
        {},
        [1.0, 2.0],
        "Found input variables with inconsistent numbers of samples: [4, 2]",
    ),
}


@pytest.mark.parametrize(("more", "y", "message"), WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_numbers_that_do_not_fit_are_refused(regressor, more, y, message) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        regressor(**more).fit(["a", "b", "c", "d"], y)
    assert str(caught.value).startswith(message)


def test_the_field_of_a_row_may_have_the_name_of_the_target(regressor, numbers) -> None:
    rows = pd.DataFrame({"target": list("abcd"), "target_": list("efgh")})
    trained = regressor(epochs=1, validation_fraction=0).fit(rows, numbers[:4, 0])
    assert trained.model_.columns == ("target", "target_", "target__")


def test_importing_softprompt_does_not_import_the_estimators() -> None:
    code = "import sys, softprompt; sys.exit('softprompt.sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
