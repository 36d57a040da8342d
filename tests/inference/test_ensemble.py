"""One mixed batch is each member alone, and a vote by hand."""

from collections import Counter
from collections.abc import Callable
from math import log

import pytest

from softprompt.errors import ArtifactError, DataError, PromptError
from softprompt.inference import Ensemble, PromptModel, attach
from softprompt.injection.forward import forward
from softprompt.tasks import Classify, Generate
from softprompt.tasks import base as runs
from support.parametrize import for_each

WAYS = (
    "causal words",
    "causal words, prefix",
    "masked words",
    "answer words",
    "head on [CLS]",
    "head on the last token",
    "text",
    "text of a seq2seq",
    "a choice",
)
WORDS = {"negative": " bad", "positive": [" good", " great"]}
ModelFactory = Callable[..., PromptModel]


@pytest.fixture
def mixed(model: ModelFactory, maker, backbone) -> Callable[[str], list[PromptModel]]:
    """Prompts of all kinds and several lengths, each with a template of its own."""

    def make(family: str) -> list[PromptModel]:
        mask = " {mask}" if backbone(family).geometry.architecture == "encoder" else ""
        one, two = maker(family), maker(family, 5)
        given = [
            ("{soft:3}{text} is" + mask, one.prompt("input")),
            ("so {text} was{soft:5}" + mask, two.prompt("input", 5)),
        ]
        given += [
            ("{text} is" + mask, one.prompt("kv", 2)),
            ("{text} {text} was" + mask, two.prompt("kv", 4)),
            ("{text}{soft:2} is" + mask, one.prompt("late", 2)),
        ]
        return [
            model((family, "words", ""), settings=Classify(t, verbalizer=WORDS), prompt=prompt)
            for t, prompt in given
        ]

    return make


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """The rows of each pass through a backbone."""
    found: list[int] = []

    def counted(backbone, inputs, **more):
        found.append(len(inputs.input_ids))
        return forward(backbone, inputs, **more)

    monkeypatch.setattr(runs, "forward", counted)
    return found


@for_each("family")
def test_a_mixed_batch_is_each_member_alone_and_voted(mixed, rows, passes, family: str) -> None:
    """Every family, both input prompts and prefixes, of different lengths and late."""
    members = mixed(family)
    alone = [member.predict(rows) for member in members]
    passes.clear()
    for vote in ("majority", "mean"):
        together = Ensemble(members, vote=vote).predict(rows, batch_size=1000)
        for at, answer in enumerate(together):
            given = [answers[at] for answers in alone]
            mean = {
                label: sum(one.probabilities[label] for one in given) / len(given)
                for label in ("negative", "positive")
            }
            assert answer.probabilities == pytest.approx(mean, abs=1e-5)
            votes = Counter(one.label for one in given)
            best = [label for label, count in votes.items() if count == max(votes.values())]
            near = {label: mean[label] for label in (best if vote == "majority" else mean)}
            assert answer.label == max(near, key=near.__getitem__)
    assert passes == [len(members) * len(rows)] * 2


TEXTS = {"text", "text of a seq2seq", "a choice"}
VOTES = [("majority", way) for way in WAYS] + [("mean", w) for w in WAYS if w not in TEXTS]


@pytest.mark.parametrize(("vote", "way"), VOTES)
def test_an_ensemble_of_one_is_the_model_to_the_last_bit(
    model: ModelFactory, rows, way, vote
) -> None:
    trained = model(way)
    one = Ensemble([trained], vote=vote)
    assert one.predict(rows) == trained.predict(rows)
    assert one.evaluate(rows) == trained.evaluate(rows)


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_one_are_the_model(model: ModelFactory, rows, way) -> None:
    trained = model(way)
    three = Ensemble([trained, trained, trained])
    for found, wanted in zip(three.predict(rows), trained.predict(rows), strict=True):
        assert found.label == wanted.label
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)
    found, wanted = (who.evaluate(rows, batch_size=5) for who in (three, trained))
    assert found.metrics == pytest.approx(wanted.metrics, abs=1e-5)
    assert (found.rows, found.confusion) == (wanted.rows, wanted.confusion)


@pytest.mark.parametrize("way", ["head on [CLS]", "head on the last token"])
def test_every_member_is_read_by_its_own_head(model: ModelFactory, rows, way) -> None:
    soft = "" if way == "head on [CLS]" else "{soft:3}"
    linear = model(way, seed=8, settings=Classify(f"a {soft} {{text}}", head="linear"))
    members = [model(way, seed=3), model(way, seed=4), linear]
    alone = [member.predict(rows) for member in members]
    assert len({answers[0].probabilities["positive"] for answers in alone}) == 3
    together = Ensemble(members, vote="mean").predict(rows, batch_size=7)
    for at, answer in enumerate(together):
        mean = sum(answers[at].probabilities["positive"] for answers in alone) / 3
        assert answer.probabilities["positive"] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_ensemble_and_each_member_are_evaluated(mixed, rows, family: str) -> None:
    members = mixed(family)
    ensemble = Ensemble(members)
    truth = [row["label"] for row in rows]
    views = [[m.task.make_example(row) for m in members] for row in rows]
    report = ensemble.evaluate_rendered(views, truth, batch_size=11)
    answers = ensemble.predict(rows)
    right = sum(a.label == t for a, t in zip(answers, truth, strict=True))
    loss = -sum(log(a.probabilities[t]) for a, t in zip(answers, truth, strict=True)) / len(rows)
    assert report.ensemble.metrics["accuracy"] == pytest.approx(right / len(rows))
    assert report.ensemble.metrics["loss"] == pytest.approx(loss, abs=1e-5)
    for member, member_report in zip(members, report.members, strict=True):
        alone = member.evaluate(rows)
        assert member_report.metrics == pytest.approx(alone.metrics, abs=1e-5)
        assert member_report.confusion == alone.confusion
    assert ensemble.evaluate(rows, batch_size=11) == report.ensemble


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_texts_are_voted_on_and_their_losses_averaged(
    model: ModelFactory, maker, rows, family
) -> None:
    members = [
        model(
            (family, "text", ""),
            settings=Generate(f"{{text}} is{{soft:{n}}}", max_new_tokens=2),
            prompt=maker(family, seed).prompt("input", n),
        )
        for seed, n in enumerate((3, 5, 2))
    ]
    ensemble = Ensemble(members)
    alone = [member.predict(rows) for member in members]
    for at, answer in enumerate(ensemble.predict(rows, batch_size=6)):
        count = Counter(answers[at].label for answers in alone)
        assert answer.label == count.most_common(1)[0][0]
    losses = [member.evaluate(rows).metrics["loss"] for member in members]
    assert len({round(loss, 4) for loss in losses}) == 3
    found = ensemble.evaluate(rows, batch_size=6)
    assert found.metrics["loss"] == pytest.approx(sum(losses) / 3, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_choices_are_voted_on_by_their_own_names(model: ModelFactory, maker, rows, family) -> None:
    """Decoding removes the space around them, but each is named by its tokens."""
    choices = (" good\n", "bad  film")
    settings = Generate("{text} is{soft:3}", choices=choices)
    members = [
        model(
            (family, "choice", ""),
            settings=settings,
            prompt=maker(family, seed).prompt("input", 3),
            choices=choices,
        )
        for seed in range(3)
    ]
    ensemble = Ensemble(members)
    labeled = [row | {"target": choices[n % 2]} for n, row in enumerate(rows)]
    votes = zip(*(member.predict(rows) for member in members), strict=True)
    labels = [Counter(p.label for p in of_row).most_common(1)[0][0] for of_row in votes]
    assert {*labels} <= {*choices}
    assert [prediction.label for prediction in ensemble.predict(rows)] == labels
    report = ensemble.evaluate(labeled)
    right = sum(row["target"] == label for row, label in zip(labeled, labels, strict=True))
    assert report.metrics["accuracy"] == report.metrics["exact_match"] == right / len(rows)
    assert report.confusion.predicted_labels == choices


def test_another_copy_of_the_backbone_gives_way(model: ModelFactory, rows, new_backbone) -> None:
    trained = model("head on [CLS]")
    twin = attach(trained.artifact, new_backbone("bert"))
    ensemble = Ensemble([trained, twin])
    assert ensemble.members[1].backbone is trained.backbone
    assert ensemble.predict(rows) == Ensemble([trained, trained]).predict(rows)


def refusal(members: list[PromptModel], **more: str) -> str:
    with pytest.raises((PromptError, ArtifactError)) as caught:
        Ensemble(members, **more)
    return str(caught.value)


def test_what_does_not_belong_together_is_refused(model: ModelFactory) -> None:
    trained = model("causal words")
    template = "{soft:3}{text} is"
    end = " Choose prompts that were trained for the same task."
    start = "the members of an ensemble need the same task, but "
    swapped = dict(reversed(WORDS.items()))
    other = model("causal words", settings=Classify(template, verbalizer=swapped))
    assert refusal([trained, trained, other]) == (
        f"{start}labels is ['negative', 'positive'] for the first and ['positive', 'negative'] for "
        f"member 3.{end}"
    )
    other = model("causal words", settings=Classify(template, "mood", WORDS))
    assert f"{start}label_column is 'label' for the first and 'mood' for" in refusal(
        [trained, other]
    )
    other = model(
        "causal words", settings=Classify(template, verbalizer=WORDS | {"positive": " a"})
    )
    assert f"{start}verbalizer is " in refusal([trained, other])
    assert "was trained on 'bert'" in refusal([trained, model("masked words")])
    head = model(("llama", "head", "input"))
    assert f"{start}verbalizer is " in refusal([trained, head])
    text = model(("llama", "text", "input"))
    assert f"{start}kind is 'classify' for the first and 'generate'" in refusal([trained, text])
    assert refusal([]) == "an ensemble needs models, but there are none. Give at least one."


def test_votes_that_cannot_be_are_refused(model: ModelFactory) -> None:
    assert refusal([model("causal words")], vote="most") == (
        "unknown vote 'most'. Options: majority, mean."
    )
    assert refusal([model("text")], vote="mean").startswith("generated texts have no probabilities")


def test_rows_are_checked_as_a_models(model: ModelFactory) -> None:
    trained = model("causal words")
    pair = Ensemble([trained, trained])
    with pytest.raises(DataError, match="the given data has no rows"):
        pair.evaluate([])
    with pytest.raises(DataError, match="the given data has no column 'label'"):
        pair.evaluate([{"text": "a"}])
    with pytest.raises(DataError, match="no field 'text'"):
        pair.predict([{"label": "a"}])
    assert pair.predict([]) == []
    assert [a.label for a in pair.predict(["a film"])] == [
        a.label for a in trained.predict(["a film"])
    ]
