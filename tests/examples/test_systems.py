"""Published systems: each recipe passes, and runs from end to end on a small stand-in.

What is proven is that the recipes do what they say, on a tiny random backbone and rows whose words
tell their answer; not what the published backbones would learn.
"""

import json
from collections.abc import Callable, Mapping, Sequence
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
from softprompt.tasks.heads import ClassifierHead
from softprompt.train.summary import compute_trainable_share
from support.cli_runner import CommandResult, run_command

ROOT = Path(__file__).resolve().parents[2]
GOOD, BAD = ("good", "great", "wonderful", "funny"), ("bad", "terrible", "boring", "badly")
PLAIN = ("the", "a", "it", "was", "movie", "film")
COUNTS = {"train": 120, "validation": 32, "test": 60}
# Of so few rows, shares that a validation can be made of.
SHARES = "data.split_sizes={ train = 0.75, validation = 0.25, test = 0.0 }"


@dataclass(frozen=True)
class System:
    """A recipe and what it is run on here.

    Args:
        file: beneath ``examples``.
        family: of the tiny backbone.
        texts: the columns of text that its data has.
        answer: the column of right answers.
        answers: for a bad row and for a good one, as the data has them; none: they are written.
        changes: of sizes and of how long it is trained; nothing else of the recipe is changed.
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
        """Rows whose words tell their answer, bad and good in turn."""
        draw = Random(seed)  # noqa: S311  # words, not keys
        rows = []
        for number in range(count):
            telling = draw.choice((BAD, GOOD)[number % 2])
            row = {}
            for column in self.texts:
                words = [telling, *draw.choices(PLAIN, k=draw.randint(1, 4))]
                draw.shuffle(words)
                row[column] = " ".join(words)
            right = self.answers[number % 2] if self.answers else f"the film was {telling}"
            rows.append({**row, self.answer: right})
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
class Site:
    """A system on this machine.

    Args:
        system: which.
        folder: where its data and runs are.
        changes: ``--set`` options that put tiny parts in place of the published ones.
    """

    system: System
    folder: Path
    changes: tuple[str, ...]

    def train(self, name: str = "run", *more: str) -> CommandResult:
        """Train, and say what came of it."""
        changed = [part for change in (*self.changes, *more) for part in ("--set", change)]
        said = run_command(
            "train", self.system.path, *changed, "--output", self.folder / name, "--json"
        )
        assert said.status == 0, said.err
        return said

    def events(self, name: str = "run") -> list[Mapping[str, Any]]:
        """The validations of a run."""
        lines = (self.folder / name / "events.jsonl").read_text("utf-8").splitlines()
        return [e for e in map(json.loads, lines) if e["event"] == "evaluation"]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def site(saved, tmp_path) -> Callable[[str], Site]:
    """A system's data and backbone, small, in a folder."""

    def build(name: str) -> Site:
        system = SYSTEMS[name]
        given = system.path.read_text("utf-8")
        changes = [f"backbone.name={saved(system.family)}", "backbone.dtype=float32"]
        changes.append("backbone.device=cpu")
        for seed, (split, count) in enumerate(COUNTS.items()):
            if f"\n{split} = " in given:
                rows = system.rows(count, seed=seed)
                changes.append(f"data.{split}={write(tmp_path / f'{split}.jsonl', rows)}")
        return Site(system, tmp_path, (*changes, *system.changes))

    return build


FILES = sorted(path for path in (ROOT / "examples").glob("*/*.toml") if path.stem != "comparison")
HEADS = ("bert-sst2", "bert-sst2-shallow", "bert-prefix", "roberta-mrpc")


def test_every_recipe_of_a_folder_is_run_here() -> None:
    assert sorted(system.path for system in SYSTEMS.values()) == FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_check_passes_without_network(path: Path) -> None:
    """What is on the Hub is named and not fetched; it is nobody's fault."""
    recipe, found = read_recipe(path), run_command("check", path, "--json")
    assert (found.status, found.json["faults"], found.json["plan"]) == (0, [], None)
    data_set, backbone = found.json["notes"]
    assert repr(recipe.data.train.partition("[")[0]) in data_set
    assert repr(recipe.backbone.name) in backbone


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_recipe_runs_to_its_end(site, name: str) -> None:
    """It loses less than at the start, and its artifact answers as it was judged."""
    here = site(name)
    found = here.train().json
    first, *others = (event["metrics"]["loss"] for event in here.events())
    assert min(others) < first
    judged = "test" if "test" in found else "validation"
    again = run_command("evaluate", here.folder / "run", "--split", judged, "--json").json
    metrics = {key: value for key, value in found[judged].items() if isinstance(value, float)}
    assert {key: again[key] for key in metrics} == pytest.approx(metrics, rel=1e-5)
    answers = answered(here)
    if here.system.answers:
        assert {*answers} <= {*again["confusion"]["labels"]}
        assert "other" not in again["confusion"]["predicted_labels"]
    if name in HEADS:
        # The random backbone's states tell the words apart, so a head can learn; random words for
        # labels mean nothing to it, so the others can but lose less.
        counts = again["confusion"]["counts"]
        assert again["accuracy"] > max(map(sum, counts)) / sum(map(sum, counts)) + 0.1


def answered(here: Site) -> list[str]:
    """What ``predict`` says of new rows, which is what the artifact says in Python."""
    rows = here.system.rows(12, seed=9)
    source = write(here.folder / "new.jsonl", rows)
    lines = run_command("predict", here.folder / "run", "--input", source).lines
    said = list(PromptModel.from_pretrained(here.folder / "run").predict(rows))
    answers = [line.get("label", line.get("answer")) for line in lines]
    assert answers == [answer.label for answer in said]
    for line, answer in zip(lines, said, strict=True):
        if answer.probabilities:
            assert line["probabilities"] == pytest.approx(answer.probabilities, abs=1e-5)
            assert sum(answer.probabilities.values()) == pytest.approx(1)
    return answers


def test_what_is_written_freely_and_is_no_label_is_other(site) -> None:
    """As the tutorial decodes: a backbone that was not taught writes anything."""
    here = site("t5-imdb")
    found = here.train("run", "task.constrained_decoding=false", "train.max_steps=1").json["test"]
    table = found["confusion"]
    assert table["labels"] == ["negative", "positive"]
    assert table["predicted_labels"] == ["negative", "positive", "other"]
    assert [sum(row) for row in table["counts"]] == [30, 30]
    assert sum(row[2] for row in table["counts"]) > 0
    hits = table["counts"][0][0] + table["counts"][1][1]
    assert found["accuracy"] == hits / 60
    held = here.train("held", "train.max_steps=1").json["test"]["confusion"]
    assert held["predicted_labels"] == ["negative", "positive"]


def test_both_parts_of_imdb_have_a_curve(site) -> None:
    here = site("t5-imdb")
    here.train("run", "train.epochs=2")
    for event in here.events():
        assert {"loss", "accuracy"} <= event["train"].keys() & event["metrics"].keys()
    assert [event["epoch"] for event in here.events()] == [0, 1, 2]


def test_sst2_is_chosen_by_some_rows_and_judged_by_all(site) -> None:
    here = site("bert-sst2")
    found = here.train("run", "train.epochs=2", "train.eval_every_steps=4").json
    assert {event["rows"] for event in here.events()} == {24}
    model, rows = PromptModel.from_pretrained(here.folder / "run"), 30  # a quarter of 120
    whole = run_command("evaluate", here.folder / "run", "--split", "validation", "--json").json
    assert whole["rows"] == rows
    assert whole["accuracy"] == pytest.approx(found["validation"]["accuracy"])
    assert model.task.head is not None


def recipe_of(name: str) -> Recipe:
    return read_recipe(SYSTEMS[name].path)


@pytest.fixture
def published(backbone) -> Callable[..., Method]:
    """A recipe's method at its published size, without the backbone."""

    def build(name: str, family: str, *sizes: int) -> Method:
        settings = recipe_of(name).method_settings
        *_, width = sizes
        if settings.prompt_kind == "input":
            start: InputPrompt | KVPrefix = InputPrompt(torch.zeros(sizes))
        else:
            start = KVPrefix(torch.zeros(sizes), torch.zeros(sizes), tuple(range(sizes[0])))
            width = sizes[1] * sizes[3]
        geometry = replace(backbone(family).geometry, hidden_size=width)
        return settings.build(geometry, start, generator=torch.Generator().manual_seed(0))

    return build


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_mrpc_trains_what_the_guide_trains(published) -> None:
    """The guide's own line, on a RoBERTa-large that takes no memory."""
    with torch.device("meta"):
        config = RobertaConfig(
            vocab_size=50_265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
            intermediate_size=4096, max_position_embeddings=514, type_vocab_size=1,
        )  # fmt: skip
        large = RobertaForMaskedLM(config)
    assert count(large.base_model) == 354_310_144
    settings = recipe_of("roberta-mrpc").task_settings
    assert isinstance(settings, Classify)
    assert parse_template(settings.template or "").soft_length == 20
    head = ClassifierHead(1024, 2, kind=settings.head, seed=0)
    trained = count(published("roberta-mrpc", "roberta", 20, 1024), head)
    assert trained == 1_351_938
    said = compute_trainable_share(trained, count(large.base_model))
    assert said == "trainable 1,351,938 of 355,662,082 (0.38 %)"


def test_the_head_that_is_not_run_is_not_counted(site, plain) -> None:
    here = site("roberta-mrpc")
    changed = [part for change in here.changes for part in ("--set", change)]
    plan = run_command("check", here.system.path, *changed, "--json").json["plan"]
    assert plan["parameters"] == count(plain("roberta").base_model) < count(plain("roberta"))


# Of the papers and guides: trained vectors or keys and values, by arithmetic.
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
    recipe = recipe_of(name)
    soft = parse_template(recipe.task_settings.template or "").soft_length
    length = soft or recipe.method.collect_settings()["length"]
    assert length == sizes[-2]
    method = published(name, family, *sizes)
    assert count(method) == trained
    for tensor in method().to_tensors().values():
        assert tuple(tensor.shape) == sizes


def test_the_tweets_prompt_is_33_kilobytes(site) -> None:
    """PEFT's folder of config and weights: 8 vectors of 1,024 numbers in fp32."""
    here = site("bloomz-tweets")
    here.train("run", "train.epochs=1")
    small = load_artifact(here.folder / "run")
    vectors = torch.randn(8, 1024, generator=torch.Generator().manual_seed(0))
    assert small.prompt.length == 8
    manifest = replace(small.manifest, shapes={"prompt.vectors": [8, 1024]})
    wide = replace(small, manifest=manifest, prompt=InputPrompt(vectors))
    folder = save_artifact(wide, here.folder / "wide")
    weights = (folder / "prompt.safetensors").stat().st_size
    assert 8 * 1024 * 4 < weights < 8 * 1024 * 4 + 512
