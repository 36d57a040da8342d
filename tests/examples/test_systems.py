"""Published systems: each recipe passes, and runs from end to end on a small stand-in.

The tests show that the recipes do what they state, on tiny random backbones and rows whose words
decide the answer. They do not show what the published backbones would learn.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaForMaskedLM

from softprompt.artifact import load_artifact, save_artifact
from softprompt.data import parse_template
from softprompt.inference import PromptModel
from softprompt.methods import Method
from softprompt.prompt import InputPrompt, KVPrefix
from softprompt.recipe import Recipe, read_recipe
from softprompt.tasks import Classify
from softprompt.tasks.classifier_head import ClassifierHead
from softprompt.train.summary import compute_trainable_share
from support.cli_runner import CommandResult, run_command
from support.reviews import write_rows

ROOT = Path(__file__).resolve().parents[2]
GOOD, BAD = ("good", "great", "wonderful", "funny"), ("bad", "terrible", "boring", "badly")
PLAIN = ("the", "a", "it", "was", "movie", "film")
COUNTS = {"train": 120, "validation": 32, "test": 60}
# Fractions with enough validation rows, because there are so few rows here.
SHARES = "data.split_sizes={ train = 0.75, validation = 0.25, test = 0.0 }"


@dataclass(frozen=True)
class System:
    """A recipe, and its tiny backbone and data here.

    Args:
        file: the recipe, below ``examples``.
        family: of the tiny backbone.
        texts: the columns of text.
        answer: the column of the answers.
        answers: the answers for a bad row and a good one; empty if the answer is free text.
        changes: ``--set`` options that change sizes and the length of training, and nothing else.
    """

    file: str
    family: str
    texts: tuple[str, ...]
    answer: str
    answers: tuple[Any, ...]
    changes: tuple[str, ...]

    @property
    def path(self) -> Path:
        return ROOT / "examples" / self.file

    def rows(self, count: int, *, seed: int) -> list[dict[str, Any]]:
        """Rows whose words decide the answer, bad and good in turn."""
        random = Random(seed)  # noqa: S311  # words, not keys
        rows = []
        for number in range(count):
            label_word = random.choice((BAD, GOOD)[number % 2])
            row = {}
            for column in self.texts:
                words = [label_word, *random.choices(PLAIN, k=random.randint(1, 4))]
                random.shuffle(words)
                row[column] = " ".join(words)
            answer = self.answers[number % 2] if self.answers else f"the film was {label_word}"
            rows.append({**row, self.answer: answer})
        return rows


SYSTEMS = {
    "t5-imdb": System(
        "t5-imdb-prompt-tuning/recipe.toml", "t5", ("text",), "label", ("neg", "pos"),
        ("train.batch_size=8", "train.eval_train_rows=20", "train.epochs=3"),
    ),
    "bert-sst2": System(
        "bert-sst2-p-tuning-v2/recipe.toml", "bert", ("sentence",), "label",
        ("negative", "positive"), ("train.batch_size=8", "train.max_eval_rows=24",
        "train.eval_every_steps=20", SHARES),
    ),
    "bert-sst2-shallow": System(
        "bert-sst2-p-tuning-v2/shallow.toml", "bert", ("sentence",), "label",
        ("negative", "positive"), ("train.batch_size=8", "train.max_eval_rows=24",
        "train.eval_every_steps=20", SHARES),
    ),
    "bert-prefix": System(
        "bert-prefix-vs-fine-tuning/recipe.toml", "bert", ("text",), "label", ("neg", "pos"),
        ("train.batch_size=8", "train.epochs=20"),
    ),
    "roberta-mrpc": System(
        "roberta-mrpc-p-tuning/recipe.toml", "roberta", ("sentence1", "sentence2"), "label",
        ("not_equivalent", "equivalent"), ("train.batch_size=8",),
    ),
    "bloomz-tweets": System(
        "bloomz-tweets-prompt-tuning/recipe.toml", "bloom", ("Tweet text",), "Label",
        ("no complaint", "complaint"), ("train.epochs=4", "task.max_new_tokens=12"),
    ),
    "lester-t5": System(
        "lester-t5-superglue/recipe.toml", "t5", ("question", "passage"), "label",
        ("False", "True"),
        ("train.max_steps=60", "train.batch_size=8", "train.eval_every_steps=20"),
    ),
    "li-liang-gpt2": System(
        "li-liang-gpt2-e2e/recipe.toml", "gpt2", ("meaning_representation",), "target", (),
        ("task.max_new_tokens=16", "task.num_beams=2", "data.max_length=64", "train.epochs=4"),
    ),
    "cloze-roberta": System(
        "cloze-roberta/recipe.toml", "roberta", ("sentence",), "label",
        ("negative", "positive"), ("train.batch_size=8", SHARES),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class LocalSystem:
    """A system with its data and backbone on disk.

    Args:
        system: the system.
        folder: of its data and runs.
        changes: ``--set`` options that replace the published data and backbone by tiny ones.
    """

    system: System
    folder: Path
    changes: tuple[str, ...]

    def train(self, name: str = "run", *more: str) -> CommandResult:
        """Train, and return the result of ``train --json``."""
        changed = [part for change in (*self.changes, *more) for part in ("--set", change)]
        result = run_command(
            "train", self.system.path, *changed, "--output", self.folder / name, "--json"
        )
        assert result.status == 0, result.err
        return result

    def events(self, name: str = "run") -> list[Mapping[str, Any]]:
        """The validations of a run."""
        lines = (self.folder / name / "events.jsonl").read_text("utf-8").splitlines()
        return [e for e in map(json.loads, lines) if e["event"] == "evaluation"]


@pytest.fixture
def local(saved, tmp_path) -> Callable[[str], LocalSystem]:
    """A system by its name, with tiny data and a tiny backbone in a folder."""

    def build(name: str) -> LocalSystem:
        system = SYSTEMS[name]
        recipe = system.path.read_text("utf-8")
        changes = [f"backbone.name={saved(system.family)}", "backbone.dtype=float32"]
        changes.append("backbone.device=cpu")
        for seed, (split, count) in enumerate(COUNTS.items()):
            if f"\n{split} = " in recipe:
                path = write_rows(tmp_path / f"{split}.jsonl", system.rows(count, seed=seed))
                changes.append(f"data.{split}={path}")
        return LocalSystem(system, tmp_path, (*changes, *system.changes))

    return build


FILES = sorted(path for path in (ROOT / "examples").glob("*/*.toml") if path.stem != "comparison")
HEADS = ("bert-sst2", "bert-sst2-shallow", "bert-prefix", "roberta-mrpc")


def test_every_recipe_of_a_folder_is_run_here() -> None:
    assert sorted(system.path for system in SYSTEMS.values()) == FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_check_passes_without_network(path: Path) -> None:
    """Data and backbones on the Hub are named in notes and not fetched; they are not faults."""
    recipe, found = read_recipe(path), run_command("check", path, "--json")
    assert (found.status, found.json["faults"], found.json["plan"]) == (0, [], None)
    data_set, backbone = found.json["notes"]
    assert repr(recipe.data.train.partition("[")[0]) in data_set
    assert repr(recipe.backbone.name) in backbone


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_recipe_runs_to_its_end(local, name: str) -> None:
    """Its loss decreases, and its artifact has the metrics that training reported."""
    here = local(name)
    found = here.train().json
    first, *others = (event["metrics"]["loss"] for event in here.events())
    assert min(others) < first
    split = "test" if "test" in found else "validation"
    again = run_command("evaluate", here.folder / "run", "--split", split, "--json").json
    metrics = {key: value for key, value in found[split].items() if isinstance(value, float)}
    assert {key: again[key] for key in metrics} == pytest.approx(metrics, rel=1e-5)
    answers = predict_answers(here)
    if here.system.answers:
        assert {*answers} <= {*again["confusion"]["labels"]}
        assert "other" not in again["confusion"]["predicted_labels"]
    if name in HEADS:
        # States of a random backbone differ between words, so a head can learn. Label words mean
        # nothing to it, so for the other systems only the loss decreases.
        counts = again["confusion"]["counts"]
        assert again["accuracy"] > max(map(sum, counts)) / sum(map(sum, counts)) + 0.1


def predict_answers(here: LocalSystem) -> list[str]:
    """The answers of ``predict`` for new rows, which are those of the artifact in Python."""
    rows = here.system.rows(12, seed=9)
    source = write_rows(here.folder / "new.jsonl", rows)
    lines = run_command("predict", here.folder / "run", "--input", source).lines
    predictions = PromptModel.from_pretrained(here.folder / "run").predict(rows)
    answers = [line.get("answer", line.get("label")) for line in lines]
    assert answers == [prediction.label for prediction in predictions]
    for line, prediction in zip(lines, predictions, strict=True):
        if prediction.probabilities:
            assert line["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)
            assert sum(prediction.probabilities.values()) == pytest.approx(1)
    return answers


def test_free_text_that_is_not_a_label_is_other(local) -> None:
    """Decoding as in the tutorial: an untrained backbone generates any text."""
    here = local("t5-imdb")
    found = here.train("run", "task.constrained_decoding=false", "train.max_steps=1").json["test"]
    table = found["confusion"]
    assert table["labels"] == ["negative", "positive"]
    assert table["predicted_labels"] == ["negative", "positive", "other"]
    assert [sum(row) for row in table["counts"]] == [30, 30]
    assert sum(row[2] for row in table["counts"]) > 0
    hits = table["counts"][0][0] + table["counts"][1][1]
    assert found["accuracy"] == hits / 60
    constrained = here.train("constrained", "train.max_steps=1").json["test"]["confusion"]
    assert constrained["predicted_labels"] == ["negative", "positive"]


def test_both_parts_of_imdb_have_a_curve(local) -> None:
    here = local("t5-imdb")
    here.train("run", "train.epochs=2")
    for event in here.events():
        assert {"loss", "accuracy"} <= event["train"].keys() & event["metrics"].keys()
    assert [event["epoch"] for event in here.events()] == [0, 1, 2]


def test_sst2_is_selected_by_some_rows_and_evaluated_on_all(local) -> None:
    here = local("bert-sst2")
    found = here.train("run", "train.epochs=2", "train.eval_every_steps=4").json
    assert {event["rows"] for event in here.events()} == {24}
    report = run_command("evaluate", here.folder / "run", "--split", "validation", "--json").json
    assert report["rows"] == 30  # a quarter of 120
    assert report["accuracy"] == pytest.approx(found["validation"]["accuracy"])
    assert PromptModel.from_pretrained(here.folder / "run").task.head is not None


def read_system_recipe(name: str) -> Recipe:
    return read_recipe(SYSTEMS[name].path)


@pytest.fixture
def published(backbone) -> Callable[..., Method]:
    """A recipe's method at its published size, without the backbone."""

    def build(name: str, family: str, *sizes: int) -> Method:
        settings = read_system_recipe(name).method_settings
        *_, width = sizes
        if settings.prompt_kind == "input":
            start: InputPrompt | KVPrefix = InputPrompt(torch.zeros(sizes))
        else:
            start = KVPrefix(torch.zeros(sizes), torch.zeros(sizes), tuple(range(sizes[0])))
            width = sizes[1] * sizes[3]
        geometry = replace(backbone(family).geometry, hidden_size=width)
        return settings.build(geometry, start, generator=torch.Generator().manual_seed(0))

    return build


def count_parameters(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_mrpc_trains_what_the_guide_trains(published) -> None:
    """The number that the guide prints, for a RoBERTa-large on the meta device."""
    with torch.device("meta"):
        config = RobertaConfig(
            vocab_size=50_265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
            intermediate_size=4096, max_position_embeddings=514, type_vocab_size=1,
        )  # fmt: skip
        large = RobertaForMaskedLM(config)
    assert count_parameters(large.base_model) == 354_310_144
    settings = read_system_recipe("roberta-mrpc").task_settings
    assert isinstance(settings, Classify)
    assert parse_template(settings.template or "").soft_length == 20
    head = ClassifierHead(1024, 2, kind=settings.head, seed=0)
    trained = count_parameters(published("roberta-mrpc", "roberta", 20, 1024), head)
    assert trained == 1_351_938
    share = compute_trainable_share(trained, count_parameters(large.base_model))
    assert share == "trainable 1,351,938 of 355,662,082 (0.38 %)"


def test_a_head_that_is_not_used_is_not_counted(local, plain) -> None:
    here = local("roberta-mrpc")
    changed = [part for change in here.changes for part in ("--set", change)]
    plan = run_command("check", here.system.path, *changed, "--json").json["plan"]
    model = plain("roberta")
    assert plan["parameters"] == count_parameters(model.base_model) < count_parameters(model)


# Numbers of trained parameters, calculated from the papers and guides.
SIZES = [
    ("t5-imdb", "t5", (10, 768), 10 * 768),
    ("lester-t5", "t5", (100, 768), 76_800),  # Lester et al. 2021, T5-Base
    ("bloomz-tweets", "bloom", (8, 1024), 8 * 1024),
    ("bert-sst2-shallow", "bert", (20, 768), 20 * 768),
    ("bert-sst2", "bert", (12, 12, 20, 64), 20 * 2 * 12 * 768),
    (
        "bert-prefix", "bert", (12, 12, 5, 64),
        5 * 768 + (768 * 512 + 512) + (512 + 1) * 2 * 12 * 768,
    ),
    (
        "li-liang-gpt2", "gpt2", (24, 16, 10, 64),
        10 * 1024 + (1024 * 512 + 512) + (512 + 1) * 2 * 24 * 1024,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "family", "sizes", "trained"), SIZES)
def test_a_prompt_has_the_published_size(published, name, family, sizes, trained) -> None:
    recipe = read_system_recipe(name)
    soft = parse_template(recipe.task_settings.template or "").soft_length
    length = soft or recipe.method.collect_settings()["length"]
    assert length == sizes[-2]
    method = published(name, family, *sizes)
    assert count_parameters(method) == trained
    for tensor in method().to_tensors().values():
        assert tuple(tensor.shape) == sizes


def test_the_tweets_prompt_is_33_kilobytes(local) -> None:
    """As PEFT's folder of configuration and weights: 8 vectors of 1,024 numbers in fp32."""
    here = local("bloomz-tweets")
    here.train("run", "train.epochs=1")
    small = load_artifact(here.folder / "run")
    vectors = torch.randn(8, 1024, generator=torch.Generator().manual_seed(0))
    assert small.prompt.length == 8
    manifest = replace(small.manifest, shapes={"prompt.vectors": [8, 1024]})
    wide = replace(small, manifest=manifest, prompt=InputPrompt(vectors))
    folder = save_artifact(wide, here.folder / "wide")
    weights = (folder / "prompt.safetensors").stat().st_size
    assert 8 * 1024 * 4 < weights < 8 * 1024 * 4 + 512
