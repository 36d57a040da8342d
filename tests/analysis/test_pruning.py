"""Pruning: soft tokens that matter are kept, and shorter prompts are what they say."""

import pytest
import torch
from torch.testing import assert_close

from softprompt.analysis import prune
from softprompt.analysis.pruning import compute_importance, keep_soft_tokens
from softprompt.artifact import load_artifact, make_artifact
from softprompt.data import parse_template
from softprompt.errors import ArtifactError, DataError, PromptError
from softprompt.inference import PromptModel, attach
from softprompt.prompt import InputPrompt, KVPrefix
from support.artifacts import Desk
from support.reviews import make_reviews

WORDS = {"negative": " bad", "positive": " good"}
ROWS = make_reviews(11, seed=0)
FAMILIES = ["llama", "bert", "t5"]
KINDS = ["input", "kv"]


@pytest.fixture
def trained(backbone, maker):
    """Models of random prompts of 5 soft tokens, with label words."""
    desk = Desk(backbone, maker)

    def make(family: str, kind: str, *, prompt=None) -> PromptModel:
        own = backbone(family)
        if prompt is None:
            make = maker(family)
            prompt = make.input_prompt(5) if kind == "input" else make.prefix(5)
        soft = "{soft:2}{text} is{soft:3}" if isinstance(prompt, InputPrompt) else "{text} is"
        if isinstance(prompt, InputPrompt):
            soft = soft.replace("3", str(prompt.length - 2))
        settings = desk.asking(own, soft)
        settings = type(settings)(template=settings.template, verbalizer=WORDS)
        labels = {"labels": [*WORDS]}
        return desk.model(own, prompt, settings, **labels)

    return make


def loss_of(model, rows=ROWS, prompt=None) -> torch.Tensor:
    examples = [model.task.make_example(row) for row in rows]
    return model.task.compute_loss(examples, [prompt or model.prompt]).total / len(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_importance_is_the_mean_absolute_gradient_of_a_factor(trained, family, kind):
    """Row by row, with a factor before each soft token."""
    model = trained(family, kind)
    found = compute_importance(model, [model.task.make_example(row) for row in ROWS])
    wanted = torch.zeros(5)
    for row in ROWS:
        factor = torch.ones(5, requires_grad=True)
        by_axis = factor[:, None]  # [P, E], or [L, N, P, D]
        scaled = model.prompt.map_tensors(lambda t, by_axis=by_axis: t * by_axis)
        loss = loss_of(model, [row], scaled)
        wanted += torch.autograd.grad(loss, factor)[0].abs()
    assert_close(found, wanted / len(ROWS), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_soft_token_without_effect_goes_first(trained, maker, kind):
    """A planted one: a factor before zeros changes nothing."""
    make = maker("llama")
    if kind == "kv":
        prompt = make.prefix(5)
        prompt.values[:, :, 2], prompt.keys[:, :, 2] = 0, 0
        model = trained("llama", kind, prompt=prompt)
    else:
        vectors = make.input_prompt(5).vectors
        vectors[2] = 0
        model = trained("llama", kind, prompt=InputPrompt(vectors))
    result = prune(model, ROWS, length=4)
    assert result.importance[2] == pytest.approx(0, abs=1e-7)
    assert result.chosen.kept == (0, 1, 3, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_length_is_evaluated_as_a_prompt_of_its_own(backbone, trained, family, kind):
    model = trained(family, kind)
    result = prune(model, ROWS)
    assert [each.length for each in result.lengths] == [5, 4, 3, 2, 1]
    order = sorted(range(5), key=lambda at: -result.importance[at])
    whole = model.evaluate(ROWS).metrics
    assert result.lengths[0].metrics == whole
    for each in result.lengths:
        assert each.kept == tuple(sorted(order[: each.length]))
        assert len(each.kept) == each.length
        prompt = keep_soft_tokens(model.prompt, each.kept)
        template = model.artifact.manifest.template
        if kind == "input":
            counts = [sum(at < 2 for at in each.kept), sum(at >= 2 for at in each.kept)]
            for old, new in zip(("{soft:2}", "{soft:3}"), counts, strict=True):
                template = template.replace(old, f"{{soft: {new}}}" if new else "")
            template = template.replace("soft: ", "soft:")
        manifest = model.artifact.manifest
        alone = attach(
            make_artifact(
                prompt,
                {},
                template=template,
                max_length=None,
                task=manifest.task | {"template": template},
                labels=manifest.labels,
                backbone=manifest.backbone,
                data={},
                recipe={},
                metrics={},
            ),
            backbone(family),
        )
        assert alone.evaluate(ROWS).metrics == each.metrics


@pytest.mark.parametrize("kind", KINDS)
def test_the_shortest_that_is_at_least_as_good_is_chosen(trained, kind):
    result = prune(trained("llama", kind), ROWS)
    losses = [each.metrics["loss"] for each in result.lengths]
    good = [each for each, loss in zip(result.lengths, losses, strict=True) if loss <= losses[0]]
    assert result.chosen == min(good, key=lambda each: each.length)
    by_accuracy = prune(trained("llama", kind), ROWS, metric="accuracy")
    whole = by_accuracy.lengths[0].metrics["accuracy"]
    shortest = min(e.length for e in by_accuracy.lengths if e.metrics["accuracy"] >= whole)
    assert by_accuracy.chosen.length == shortest


@pytest.mark.parametrize("kind", KINDS)
def test_the_shorter_artifact_is_whole(trained, tmp_path, kind):
    """Saved and loaded again it has the same scores, and records what was kept."""
    model = trained("llama", kind)
    result = prune(model, ROWS, length=3)
    folder = result.model.save(tmp_path / "short")
    again = PromptModel.from_pretrained(folder, backbone=model.backbone)
    assert again.evaluate(ROWS).metrics == result.chosen.metrics
    assert again.prompt.length == 3
    manifest = load_artifact(folder).manifest
    assert manifest.metrics["pruned"] == {"from": 5, "kept": [*result.chosen.kept]}
    assert parse_template(manifest.template).soft_length == (3 if kind == "input" else 0)
    assert "moved" not in manifest.metrics
    assert model.prompt.length == 5


def test_of_a_long_prompt_a_few_lengths_are_evaluated(trained, maker):
    result = prune(trained("llama", "kv", prompt=maker("llama").prefix(40)), ROWS[:4], length=17)
    lengths = [each.length for each in result.lengths]
    assert lengths[0] == 40
    assert lengths[-1] == 1
    assert 17 in lengths
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) <= 13


@pytest.mark.parametrize(
    ("template", "kept", "wanted"),
    [
        ("{soft:2}{text}{soft:3}", (0, 1, 2, 3, 4), "{soft:2}{text}{soft:3}"),
        ("{soft:2}{text}{soft:3}", (1, 4), "{soft:1}{text}{soft:1}"),
        ("{soft:2}{text}{soft:3}", (2, 3), "{text}{soft:2}"),
        ("{{soft:9}} {soft:2}{text}", (0,), "{{soft:9}} {soft:1}{text}"),
        ("{soft:02}{bos}{text} {mask}", (1,), "{soft:1}{bos}{text} {mask}"),
    ],
)
def test_templates_keep_the_places_of_soft_tokens(template, kept, wanted):
    assert parse_template(template).keep_soft_tokens(kept) == wanted


@pytest.mark.parametrize("length", [0, 6])
def test_lengths_that_are_not_possible(trained, length):
    with pytest.raises(PromptError) as error:
        prune(trained("llama", "kv"), ROWS, length=length)
    assert str(error.value) == (
        f"the prompt has 5 soft tokens, so {length} cannot be kept. Keep 1 to 5."
    )


def test_an_unknown_metric(trained):
    with pytest.raises(DataError, match=r"unknown metric 'acuracy'.* Did you mean 'accuracy'\?"):
        prune(trained("llama", "kv"), ROWS, metric="acuracy")


def test_without_rows_and_without_recorded_data(trained):
    with pytest.raises(ArtifactError, match="does not say which data it was trained on"):
        prune(trained("llama", "kv"))


def test_kinds_are_kept(trained):
    assert isinstance(prune(trained("llama", "kv"), ROWS, length=2).model.prompt, KVPrefix)
    assert isinstance(prune(trained("llama", "input"), ROWS, length=2).model.prompt, InputPrompt)
