"""``import`` and ``export`` by the command line: each format, and the messages."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from softprompt.artifact import load_artifact
from softprompt.injection import load_backbone
from softprompt.interop.convert import import_prompts
from softprompt.tasks import Generate

TEXTS = ["a good film", "the story was dull and the actor sad", "music"]
EXACT = ["--set", "backbone.dtype=float32", "--set", "backbone.device=cpu"]
VECTORS = torch.linspace(-0.5, 0.5, 96).view(3, 32)
ROWS = torch.linspace(-0.5, 0.5, 3 * 128).view(3, 128)
SCORE = {"base_model.score.weight": torch.linspace(-1, 1, 64).view(2, 32)}
POOLED = {
    "prefix_encoder.embedding.weight": ROWS,
    "bert.pooler.dense.weight": torch.linspace(-1, 1, 1024).view(32, 32),
    "bert.pooler.dense.bias": torch.zeros(32),
    "classifier.weight": torch.linspace(-1, 1, 64).view(2, 32).flip(0),
    "classifier.bias": torch.zeros(2),
}


@pytest.fixture
def adapter(backbones, tmp_path) -> Callable[..., Path]:
    """A PEFT adapter that names a backbone."""

    def make(
        family: str = "llama", tensors: Mapping[str, Tensor] | None = None, **more: Any
    ) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        saved = tensors or {"prompt_embeddings": VECTORS}
        safetensors.torch.save_file(dict(saved), folder / "adapter_model.safetensors")
        config = {
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "num_virtual_tokens": 3,
            "base_model_name_or_path": str(backbones[family]),
        }
        (folder / "adapter_config.json").write_text(json.dumps(config | more))
        return folder

    return make


@pytest.fixture
def answers(run) -> Callable[..., list[Any]]:
    """Predicts `TEXTS` with an artifact."""

    def get(folder: Path) -> list[Any]:
        result = run("predict", folder, *TEXTS)
        assert result.status == 0, result.err
        return result.lines

    return get


@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_exported_and_imported_vectors_predict_the_same(trained, answers, run, tmp_path, form):
    """Vectors that are exported and imported again, with the same task."""
    result = run("export", form, trained.folder, "--output", tmp_path / "out")
    assert (result.status, result.out) == (0, f"{tmp_path / 'out' / f'prompt.{form}'}\n")
    old = load_artifact(trained.folder)
    result = run(
        "import", form, tmp_path / "out", "--output", tmp_path / "mood", "--json",
        "--backbone", old.manifest.backbone["name"],
        "--set", "task.template={text} sentiment{soft:4}",
        "--set", 'task.verbalizer={negative=" negative", positive=" positive"}',
        *EXACT,
    )  # fmt: skip
    assert result.status == 0, result.err
    assert result.json == {
        "imported": [
            {
                "artifact": str(tmp_path / "mood"),
                "backbone": old.manifest.backbone["name"],
                "kind": "input",
                "length": 4,
                "shift_positions": None,
                "template": "{text} sentiment{soft:4}",
                "task": "classify",
                "labels": ["negative", "positive"],
            }
        ]
    }
    assert torch.equal(load_artifact(tmp_path / "mood").prompt.vectors, old.prompt.vectors)
    assert answers(tmp_path / "mood") == answers(trained.folder)
    rows = trained.home.path / "test.jsonl"
    imported = run("evaluate", tmp_path / "mood", rows, "--json").json
    original = run("evaluate", trained.folder, rows, "--json").json
    assert imported | {"artifact": ""} == original | {"artifact": ""}


def test_an_adapter_is_imported_and_exported(adapter, backbones, answers, run, tmp_path):
    result = run("import", "peft", adapter(), "--output", tmp_path / "mood", *EXACT)
    assert result.status == 0
    assert "{soft:3}{bos}{text}" in result.out
    assert "softprompt predict" in result.err
    backbone = load_backbone(str(backbones["llama"]), dtype="float32", device="cpu")
    model = import_prompts("peft", adapter(), backbone=backbone)[""]
    assert answers(tmp_path / "mood") == [
        {"text": text, "answer": answer.label}
        for text, answer in zip(TEXTS, model.predict(TEXTS), strict=True)
    ]
    result = run("export", "peft", tmp_path / "mood", "--output", tmp_path / "out", "--json")
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert result.json == {"format": "peft", "folder": str(tmp_path / "out"), "files": names}
    tensors = safetensors.torch.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert tensors.keys() == {"prompt_embeddings"}
    assert torch.equal(tensors["prompt_embeddings"], VECTORS)


def test_googles_array_for_a_t5(backbones, run, tmp_path):
    np.save(tmp_path / "prompt.npy", VECTORS.numpy())
    (tmp_path / "prompt.npy").rename(tmp_path / "encoder.prompt.prompt.prompt")
    result = run(
        "import", "npy", tmp_path / "encoder.prompt.prompt.prompt", "--output", tmp_path / "mood",
        "--backbone", backbones["t5"], "--set", "task.kind=generate",
        "--set", "task.max_new_tokens=3", "--json", *EXACT,
    )  # fmt: skip
    assert result.json["imported"][0]["template"] == "{soft:3}{text}"
    assert load_artifact(tmp_path / "mood").manifest.task["max_new_tokens"] == 3
    lines = run("predict", tmp_path / "mood", *TEXTS).lines
    backbone = load_backbone(str(backbones["t5"]), dtype="float32", device="cpu")
    source = tmp_path / "encoder.prompt.prompt.prompt"
    model = import_prompts("npy", source, backbone=backbone, task=Generate(max_new_tokens=3))[""]
    assert [line["answer"] for line in lines] == [a.label for a in model.predict(TEXTS)]


def test_a_checkpoint_of_p_tuning_v2(backbones, answers, run, tmp_path):
    safetensors.torch.save_file(POOLED, tmp_path / "model.safetensors")
    result = run(
        "import", "p-tuning-v2", tmp_path / "model.safetensors", "--output", tmp_path / "mood",
        "--backbone", backbones["bert"], "--set", 'task.labels=["negative", "positive"]', "--json",
    )  # fmt: skip
    (fact,) = result.json["imported"]
    assert (fact["kind"], fact["shift_positions"], fact["length"]) == ("kv", True, 3)
    assert fact["labels"] == ["negative", "positive"]
    lines = answers(tmp_path / "mood")
    assert {*lines[0]["probabilities"]} == {"negative", "positive"}
    rows = [{"text": line["text"], "label": line["label"]} for line in lines]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run("evaluate", tmp_path / "mood", tmp_path / "rows.jsonl", "--json").json
    assert found["accuracy"] == 1
    assert run("export", "p-tuning-v2", tmp_path / "mood", "--output", tmp_path / "out").status == 0
    tensors = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert tensors.keys() == POOLED.keys()
    assert all(torch.equal(tensors[name], POOLED[name]) for name in tensors)


def test_an_imported_prompt_can_be_inspected(adapter, run, tmp_path):
    assert run("import", "peft", adapter(), "--output", tmp_path / "mood").status == 0
    result = run("show", tmp_path / "mood")
    assert result.status == 0, result.err
    assert "imported from peft" in result.out
    assert "nearest words" in result.out
    found = run("show", tmp_path / "mood", "--json").json
    assert found["recipe"]["imported"]["format"] == "peft"
    assert len(found["soft_tokens"]) == 3
    # The artifact names no data, so the rows must be given.
    for command in (["evaluate"], ["show", "--attention"]):
        assert run(command[0], tmp_path / "mood", *command[1:]).is_mistake(
            "the artifact does not say which data it was trained on. Give the rows, or a file."
        )
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "good", "target": "film"}\n')
    assert run("show", tmp_path / "mood", "--attention", "--data", rows).status == 0
    assert run("evaluate", tmp_path / "mood", rows).status == 0


def make_multitask() -> dict[str, Tensor]:
    """The tensors of three tasks, with rank one."""
    return {
        "prompt_embeddings": VECTORS,
        "prefix_task_cols": torch.linspace(0.5, 1.5, 9).view(3, 3, 1),
        "prefix_task_rows": torch.linspace(0.2, 1.2, 96).view(3, 1, 32),
    }


def test_several_prompts_get_a_folder_each(adapter, run, tmp_path):
    folder = adapter("llama", make_multitask(), peft_type="MULTITASK_PROMPT_TUNING")
    result = run("import", "peft", folder, "--output", tmp_path / "all", "--json")
    places = [tmp_path / "all" / f"task-{at}" for at in range(3)]
    assert [fact["artifact"] for fact in result.json["imported"]] == [*map(str, places)]
    tensors = make_multitask()
    for at, place in enumerate(places):  # PEFT: shared, times the task's product (Wang et al. 2023)
        wanted = VECTORS * (tensors["prefix_task_cols"][at] @ tensors["prefix_task_rows"][at])
        torch.testing.assert_close(load_artifact(place).prompt.vectors, wanted)
        assert load_artifact(place).manifest.recipe["imported"]["task"] == f"task-{at}"


def test_one_of_several_prompts_is_picked(adapter, run, tmp_path):
    folder = adapter("llama", make_multitask(), peft_type="MULTITASK_PROMPT_TUNING")
    assert run("import", "peft", folder, "--output", tmp_path / "all").status == 0
    pick = ("--pick", "task-1")
    result = run("import", "peft", folder, *pick, "--output", tmp_path / "one", "--json")
    assert [fact["artifact"] for fact in result.json["imported"]] == [str(tmp_path / "one")]
    one, same = (load_artifact(path) for path in (tmp_path / "one", tmp_path / "all" / "task-1"))
    assert torch.equal(one.prompt.vectors, same.prompt.vectors)
    result = run("import", "peft", folder, "--pick", "task1", "--output", tmp_path / "no")
    assert result.is_mistake(
        "unknown prompt 'task1'. Options: task-0, task-1, task-2. Did you mean 'task-"
    )
    result = run("import", "peft", adapter(), *pick, "--output", tmp_path / "no")
    assert result.is_mistake(
        "there is a single prompt, so there is no 'task-1'. Leave the name out."
    )
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("form", ["npy", "p-tuning-v2", "safetensors"])
def test_without_a_backbone_in_the_files_it_must_be_given(run, tmp_path, form):
    np.save(tmp_path / "prompt.npy", VECTORS.numpy())
    for name, key in (("model", "prefix_encoder.embedding.weight"), ("prompt", "prompt")):
        safetensors.torch.save_file({key: VECTORS}, tmp_path / f"{name}.safetensors")
    result = run("import", form, tmp_path, "--output", tmp_path / "mood")
    assert result.is_mistake(
        f"{tmp_path} does not name the backbone that its prompt was trained on. Give --backbone "
        "with a Hub id, a folder, or a builtin: name."
    )
    assert not (tmp_path / "mood").exists()


def test_a_backbone_in_another_place(adapter, backbones, run, tmp_path):
    folder = adapter(base_model_name_or_path="meta/Llama")
    result = run("import", "peft", folder, "--output", tmp_path / "mood")
    assert result.is_mistake("backbone 'meta/Llama' could not be loaded:")
    result = run(
        "import", "peft", folder, "--output", tmp_path / "mood", "--backbone", backbones["llama"]
    )
    path = str(backbones["llama"])
    assert result.status == 0
    assert f"the files name the backbone 'meta/Llama'; using {path!r} instead." in result.err
    assert load_artifact(tmp_path / "mood").manifest.backbone["name"] == path
    # The backbone that the files name, given as an option, needs no message.
    result = run(
        "import", "peft", adapter(), "--output", tmp_path / "b", "--backbone", backbones["llama"]
    )
    assert "the files name" not in result.err


def test_another_backbone_is_refused_by_its_shapes(adapter, backbones, run, tmp_path):
    wide = adapter(tensors={"prompt_embeddings": torch.ones(3, 48)})
    result = run("import", "peft", wide, "--output", tmp_path / "mood")
    assert result.is_mistake(
        "has 48 numbers, but",
        "embeds tokens in 32",
        "name it with --backbone (backbone=… in Python).",
    )
    result = run(
        "import", "peft", adapter(), "--output", tmp_path / "mood", "--backbone", backbones["bert"]
    )
    assert result.is_mistake(
        "the file does not say which task the prompt is for. Give the task: kind"
    )


def test_all_misspelt_settings_at_once(adapter, run, tmp_path):
    result = run(
        "import", "peft", adapter(), "--output", tmp_path / "mood",
        "--set", "task.kind=classify", "--set", "task.verbalise={a=1}", "--set", "tsk.kind=x",
        "--set", "backbone.dtyp=float32", "--set", "task.label_column=3",
    )  # fmt: skip
    assert result.is_mistake(
        "4 faults",
        "unknown table 'tsk'. Options: backbone, task. Did you mean 'task'?",
        "backbone.dtyp: unknown key 'dtyp'. Options: ",
        "Did you mean 'dtype'?",
        "task.verbalise: unknown key 'verbalise'.",
        "Did you mean 'verbalizer'?",
        "task.label_column: input should be a valid string, not 3.",
    )
    assert not (tmp_path / "mood").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "task.kind=clasify",
            "task.kind: unknown task 'clasify'. Options: choose, classify, extract, generate, ",
        ),
        (
            "task.kind=[1]",
            "task.kind: unknown task '[1]'. Options: choose, classify, extract, generate, ",
        ),
        (
            "task.template={text}",
            "task.kind: is missing. Add it: choose, classify, extract, generate, regress or tag.",
        ),
        (
            "task.labelz=3",
            "task.kind: is missing. Add it: choose, classify, extract, generate, regress or tag.",
        ),
        ("task=5", "task: must be a table of keys, not 5."),
        ("backbone=5", "backbone: must be a table of keys, not 5."),
        ("task.kind", "'task.kind'"),
    ],
)
def test_settings_that_are_not_valid(adapter, run, tmp_path, change, message):
    result = run("import", "peft", adapter(), "--output", tmp_path / "mood", "--set", change)
    assert result.is_mistake(message)


def test_labels_alone_imply_classification(adapter, run, answers, tmp_path):
    """As in the documentation: a key that only one kind has makes the kind unnecessary."""
    tensors = {"prompt_embeddings": VECTORS} | SCORE
    folder = adapter("llama", tensors, task_type="SEQ_CLS")
    result = run("import", "peft", folder, "--output", tmp_path / "a", "--json")
    assert result.json["imported"][0]["labels"] == ["LABEL_0", "LABEL_1"]
    result = run(
        "import", "peft", folder, "--output", tmp_path / "b", "--set", 'task.labels=["bad", "good"]'
    )
    assert result.status == 0, result.err
    named = {"LABEL_0": "bad", "LABEL_1": "good"}
    plain, renamed = answers(tmp_path / "a"), answers(tmp_path / "b")
    assert [named[line["label"]] for line in plain] == [line["label"] for line in renamed]


def test_an_artifact_is_replaced_and_other_files_are_not(adapter, run, trained, tmp_path):
    assert run("import", "peft", adapter(), "--output", tmp_path / "mood").status == 0
    twice = {"prompt_embeddings": VECTORS * 2}
    assert run("import", "peft", adapter(tensors=twice), "--output", tmp_path / "mood").status == 0
    assert torch.equal(load_artifact(tmp_path / "mood").prompt.vectors, VECTORS * 2)
    (tmp_path / "mood" / "notes.txt").write_text("mine")
    result = run("import", "peft", adapter(), "--output", tmp_path / "mood")
    assert result.is_mistake(
        "also contains notes.txt, which saving an artifact there would remove."
    )
    assert torch.equal(load_artifact(tmp_path / "mood").prompt.vectors, VECTORS * 2)


def test_a_fault_leaves_the_old_artifact(adapter, run, tmp_path):
    assert run("import", "peft", adapter(), "--output", tmp_path / "mood").status == 0
    bad = adapter(tensors={"prompt_embeddings": VECTORS / 0})
    result = run("import", "peft", bad, "--output", tmp_path / "mood")
    assert result.is_mistake("values are NaN or infinite")
    assert torch.equal(load_artifact(tmp_path / "mood").prompt.vectors, VECTORS)


def test_unknown_formats_and_paths(adapter, run, trained, tmp_path):
    """They are reported before the backbone is loaded: this one does not exist."""
    gone = ["--backbone", "no/where", "--output", tmp_path / "mood"]
    assert run("import", "peff", adapter(), *gone).is_mistake("Did you mean 'peft'?")
    assert run("import", "npy", tmp_path / "x", *gone).is_mistake(
        f"there is no file or folder {tmp_path / 'x'}. Give the file or folder to import."
    )
    assert run("import", "peft", "ada/mood", *gone).is_mistake(
        "If it is on the Hub: hf download ada/mood --local-dir FOLDER"
    )
    assert run("export", "peff", tmp_path / "x", "--output", tmp_path / "y").is_mistake(
        "unknown format to export 'peff'. Options: ", "Did you mean 'peft'?"
    )
    assert run("export", "peft", tmp_path / "x", "--output", tmp_path / "y").is_mistake(
        f"there is no folder {tmp_path / 'x'}"
    )
    result = run("export", "peft", trained.folder, "--output", tmp_path / "y")
    assert result.is_mistake("but PEFT puts all of them first")
    result = run("export", "npy", trained.folder, "--output", trained.folder)
    assert result.is_mistake("exists and is not empty, so it is not overwritten.")
    assert not (tmp_path / "y").exists()
    assert not (tmp_path / "mood").exists()
