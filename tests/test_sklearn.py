"""The estimators for scikit-learn: its tools work, and the answers are those of `fit`."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator

from softprompt import Classify, TrainingConfig, TrainingError, fit
from softprompt.sklearn import SoftPromptClassifier, SoftPromptRegressor, release_backbone
from softprompt.sklearn import estimator as module
from softprompt.sklearn.estimator import SETTINGS
from support.reviews import make_reviews

pytestmark = [
    pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning"),
]
QUICK = {"epochs": 2, "batch_size": 8, "learning_rate": 0.05, "length": 3}


@pytest.fixture
def rows():
    return partial(make_reviews, seed=0)


@pytest.fixture
def texts(rows):
    """Texts and their labels."""
    reviews = rows(24)
    return [row["text"] for row in reviews], [row["label"] for row in reviews]


@pytest.fixture
def classifier(backbone):
    def make(**more):
        return SoftPromptClassifier(backbone("bert"), **QUICK | more)

    return make


def test_it_trains_as_fit_does(backbone, classifier, texts) -> None:
    """The same prompt and the same probabilities, to the last bit."""
    trained = classifier(validation_fraction=0).fit(*texts)
    rows = [{"text": text, "label": label} for text, label in zip(*texts, strict=True)]
    config = TrainingConfig(epochs=2, batch_size=8, learning_rate=0.05)
    task = Classify("{soft:3}{text}")
    expected = fit(backbone("bert"), task, rows, validation=0, config=config)
    assert torch.equal(trained.model_.prompt.vectors, expected.prompt.vectors)
    probabilities = trained.predict_proba(texts[0])
    assert probabilities.tolist() == [
        [prediction.probabilities[name] for name in ("negative", "positive")]
        for prediction in expected.predict(texts[0], batch_size=8)
    ]
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(24), abs=1e-6)
    assert trained.predict(texts[0]).tolist() == [p.label for p in expected.predict(texts[0])]


def test_it_learns(classifier, rows) -> None:
    """Half of the rows are of either class; a random model can learn the rows by heart."""
    trained = classifier(epochs=30, head_learning_rate=0.05, length=8, validation_fraction=0)
    texts, labels = zip(*((row["text"], row["label"]) for row in rows(48)), strict=True)
    assert trained.fit(texts, labels).score(texts, labels) > 0.8


LABELS = {
    "strings": (["no", "yes"], np.str_),
    "integers": ([3, 7], np.integer),
    "booleans": ([False, True], np.bool_),
    "numpy's strings": (list(np.array(["no", "yes"])), np.str_),
    "objects": (np.array(["no", "yes"], dtype=object), str),
}


@pytest.mark.parametrize(("labels", "kind"), LABELS.values(), ids=LABELS)
def test_labels_come_back_in_their_type(classifier, texts, labels, kind) -> None:
    rows = texts[0]
    y = np.array(labels)[[int(label == "positive") for label in texts[1]]]
    y = y if kind is not str else y.astype(object)
    trained = classifier().fit(rows, y)
    assert trained.classes_.tolist() == list(labels)
    assert trained.classes_.dtype == y.dtype
    predicted = trained.predict(rows)
    assert predicted.dtype == y.dtype
    assert all(isinstance(label, kind) for label in predicted)
    by_name = dict(zip([str(label) for label in labels], labels, strict=True))
    assert list(predicted) == [by_name[p.label] for p in trained.model_.predict(rows)]


def test_a_verbalizer_is_keyed_by_the_labels(backbone, texts) -> None:
    trained = SoftPromptClassifier(
        backbone("llama"),
        template="{soft:3}{text} movie",
        verbalizer={0: " bad", 1: " good"},
        epochs=1,
    )
    trained.fit(texts[0], [int(label == "positive") for label in texts[1]])
    assert {*trained.predict(texts[0]).tolist()} <= {0, 1}
    assert trained.model_.artifact.manifest.task["verbalizer"] == {"0": " bad", "1": " good"}


SHAPES = {
    "tuple": tuple,
    "array": np.array,
    "objects": lambda texts: np.array(texts, dtype=object),
    "series": pd.Series,
    "mappings": lambda texts: [{"text": text} for text in texts],
    "frame": lambda texts: pd.DataFrame({"text": texts}),
    "column": lambda texts: np.array(texts, dtype=object).reshape(-1, 1),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_of_rows_gives_the_same_answers(classifier, texts, shape) -> None:
    expected = classifier().fit(*texts).predict_proba(texts[0])
    rows = shape(texts[0])
    trained = classifier().fit(rows, texts[1])
    assert np.array_equal(trained.predict_proba(rows), expected)
    assert vars(trained).get("n_features_in_") == (1 if np.ndim(rows) > 1 else None)


def test_a_second_fit_forgets_the_columns_of_the_first(classifier, texts) -> None:
    trained = classifier().fit(pd.DataFrame({"review": texts[0]}), texts[1])
    assert trained.model_.artifact.manifest.template == "{soft:3}{review}"
    trained.fit(*texts)
    assert not {"feature_names_in_", "n_features_in_"} & {*vars(trained)}
    assert trained.model_.artifact.manifest.template == "{soft:3}{text}"
    expected = classifier().fit(*texts).predict_proba(texts[0])
    assert np.array_equal(trained.predict_proba(texts[0]), expected)


def test_rows_with_other_columns_are_refused(classifier, texts) -> None:
    trained = classifier().fit(*texts)
    frame = pd.DataFrame({"text": texts[0], "year": range(24)})
    message = "X has 2 columns, but the estimator was trained with text. Give exactly"
    with pytest.raises(ValueError, match=message):
        trained.predict(frame.to_numpy())
    pairs = classifier(template="{soft:3}{text} {year}", length=None).fit(frame, texts[1])
    with pytest.raises(ValueError, match=r"X has 1 column, but the .* with text, year"):
        pairs.predict(texts[0])


def test_several_columns_are_the_fields_of_the_template(classifier, texts) -> None:
    frame = pd.DataFrame({"review": texts[0], "year": range(24)})
    named = classifier(template="{soft:3}{review} {year}", length=None).fit(frame, texts[1])
    rows = [{"review": text, "year": str(at)} for at, text in enumerate(texts[0])]
    expected = [prediction.label for prediction in named.model_.predict(rows)]
    assert named.predict(frame).tolist() == expected
    assert named.feature_names_in_.tolist() == ["review", "year"]
    unnamed = classifier(template="{soft:3}{review} {year}", length=None)
    unnamed.fit(frame.to_numpy(), texts[1])
    assert unnamed.predict(frame.to_numpy()).tolist() == expected
    assert classifier().fit(frame, texts[1]).model_.artifact.manifest.template == (
        "{soft:3}{review}{sep}{year}"
    )


def test_cross_validation_is_a_loop_over_the_folds(classifier, texts) -> None:
    rows, labels = np.array(texts[0]), np.array(texts[1])
    folds = StratifiedKFold(3)
    expected = []
    for train, test in folds.split(rows, labels):
        trained = classifier().fit(rows[train], labels[train])
        expected.append(np.mean(trained.predict(rows[test]) == labels[test]))
    scores = cross_val_score(classifier(), rows, labels, cv=folds, error_score="raise")
    assert scores.tolist() == expected


def test_a_grid_search_over_learning_rates(classifier, texts) -> None:
    grid = {"learning_rate": [1e-9, 0.1]}
    search = GridSearchCV(classifier(epochs=4), grid, cv=2, error_score="raise").fit(*texts)
    scores = {
        rate: cross_val_score(classifier(epochs=4, learning_rate=rate), *texts, cv=2).mean()
        for rate in grid["learning_rate"]
    }
    assert dict(zip(grid["learning_rate"], search.cv_results_["mean_test_score"], strict=True)) == (
        scores
    )
    assert search.best_params_["learning_rate"] == max(scores, key=scores.get)
    assert search.predict(texts[0]).tolist() == search.best_estimator_.predict(texts[0]).tolist()


def test_in_a_pipeline_it_gets_what_the_step_before_makes(classifier, texts) -> None:
    lower = FunctionTransformer(lambda rows: [text.lower() for text in rows])
    pipeline = Pipeline([("lower", lower), ("classify", classifier())])
    upper = [text.upper() for text in texts[0]]
    probabilities = pipeline.fit(upper, texts[1]).predict_proba(upper)
    assert np.array_equal(probabilities, classifier().fit(*texts).predict_proba(texts[0]))
    assert pipeline.set_params(classify__epochs=7).named_steps["classify"].epochs == 7


def test_copies_share_the_backbone_and_nothing_that_was_trained(classifier, texts) -> None:
    trained = classifier(verbalizer=None, epochs=1).fit(*texts)
    copy = clone(trained)
    assert copy.backbone is trained.backbone
    assert copy.get_params() == trained.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(texts[0])


def test_a_backbone_by_name_is_loaded_once(saved, texts, monkeypatch) -> None:
    loads, load = [], module.load_backbone
    monkeypatch.setattr(
        module, "load_backbone", lambda name, **more: loads.append(name) or load(name, **more)
    )
    release_backbone()
    named = SoftPromptClassifier(str(saved("bert")), dtype="float32", device="cpu", **QUICK)
    cross_val_score(named, *texts, cv=3, error_score="raise")
    assert loads == [named.backbone]
    named.fit(*texts)
    first = named.model_.backbone
    assert loads == [named.backbone]
    release_backbone()
    assert named.fit(*texts).model_.backbone is not first
    release_backbone()


@pytest.mark.parametrize("kind", [SoftPromptClassifier, SoftPromptRegressor])
def test_the_settings_are_those_of_a_recipe(kind) -> None:
    """Under the same names, with the same defaults."""
    params = kind().get_params()
    fields = TrainingConfig.model_fields
    assert {*fields} - {*SETTINGS} == {"seed", "trackers"}
    for name in SETTINGS:
        default = fields[name].get_default()
        assert params[name] == (None if default == {} else default), name
    assert params["random_state"] == fields["seed"].get_default()


def test_the_seed(classifier, texts) -> None:
    def probabilities(**more):
        return classifier(init=None, **more).fit(*texts).predict_proba(texts[0])

    once = probabilities(random_state=1)
    assert np.array_equal(probabilities(random_state=1), once)
    assert np.array_equal(probabilities(random_state=np.int64(1)), once)
    assert not np.array_equal(probabilities(random_state=2), once)
    drawn = [probabilities(random_state=np.random.RandomState(3)) for _ in range(2)]
    assert np.array_equal(*drawn)


@pytest.mark.parametrize(
    ("more", "X", "y", "message"),
    [
        ({}, "one text", ["a"], "X is one text, 'one text', but must be a list of texts. Give"),
        ({}, ["a", None], ["a", "b"], "row 1 (counted from 0) of X is None, but the first is a"),
        ({}, [{"text": "a"}, {"text": None}], ["a", "b"], "row 1 (counted from 0) of X has no '"),
        ({}, ["a", "b"], ["a", "a"], "y has one class only, 'a', but must have at least 2"),
        ({}, ["a", "b"], ["a"], "Found input variables with inconsistent numbers of samples: [2"),
        ({}, ["a", "b"], None, "SoftPromptClassifier requires y to be passed, but the target y is"),
        (
            {"template": "{soft:3}{text}"},
            ["a"] * 4,
            ["a", "b"] * 2,
            "length is 3, but the template",
        ),
        ({"length": 0}, ["a"] * 4, ["a", "b"] * 2, "length is 0, but must be 1 or more"),
        (
            {"template": "{soft:3}{a}{b}", "length": None},
            ["a"] * 4,
            ["a", "b"] * 2,
            "X has 1 column, but the template has the fields a, b. Give a data frame or mappings",
        ),
    ],
)
def test_rows_and_settings_that_do_not_fit_are_refused(classifier, more, X, y, message) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        classifier(**more).fit(X, y)
    assert str(caught.value).startswith(message)


def test_an_unknown_method_lists_the_options(classifier, texts) -> None:
    with pytest.raises(TrainingError, match=r"unknown method 'p-tunin'. Options: multitask-"):
        classifier(method="p-tunin").fit(*texts)


# The checks of scikit-learn that estimators of texts cannot pass, with the reason.
NO_DIGITS = "a language model cannot learn from the digits of random numbers"
EXPECTED = {
    SoftPromptClassifier: {"check_classifiers_train": NO_DIGITS},
    SoftPromptRegressor: {"check_regressors_train": NO_DIGITS},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPECTED)
def test_scikit_learns_own_checks(saved, kind) -> None:
    """Numbers are read as texts, so all checks run: those of the interface and the others."""
    estimator = kind(
        str(saved("bert")),
        dtype="float32",
        device="cpu",
        epochs=1,
        length=1,
        batch_size=64,
        validation_fraction=0,
    )
    expected = EXPECTED[kind]
    results = check_estimator(
        estimator, on_fail=None, on_skip=None, legacy=True, expected_failed_checks=expected
    )
    release_backbone()
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert failed == {}
    assert {r["check_name"] for r in results if r["status"] == "xfail"} == {*expected}
    passed = {r["check_name"] for r in results if r["status"] == "passed"}
    assert len(passed) > 40
    # scikit-learn selects the checks by these tags.
    if kind is SoftPromptClassifier:
        assert "check_classifiers_multilabel_output_format_predict_proba" in passed
    else:
        assert "check_regressor_multioutput" in passed
    tags = get_tags(estimator)
    assert tags.input_tags.string
    assert tags.target_tags.required
    assert not tags.input_tags.allow_nan
