"""``show`` prints the content of an artifact; all commands that read it report its faults."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from softprompt.artifact import load_artifact
from support.artifacts import forge


def test_the_facts_are_the_manifests(trained, run) -> None:
    result = run("show", trained.folder, "--json", "--no-backbone").json
    folder = trained.folder / "artifact"
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    del manifest["digest"], manifest["manifest_digest"]
    assert {key: result[key] for key in manifest} == manifest
    assert result["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert "soft_tokens" not in result


def test_the_facts_can_be_read(trained, run) -> None:
    result = run("show", trained.folder, "--no-backbone")
    lines = {
        line.split("  ", 1)[0]: line.split("  ", 1)[-1].strip() for line in result.out.splitlines()
    }
    manifest = load_artifact(trained.folder).manifest
    assert lines["prompt"].startswith("4 soft tokens, vectors among the input embeddings, float32")
    assert lines["method"].startswith("prompt-tuning, init = {from = 'vocabulary'")
    assert lines["template"] == repr(manifest.template)
    assert lines["labels"] == "negative, positive"
    assert manifest.backbone["fingerprint"] in result.out
    assert f"train: 40 rows, sha256 {manifest.data['train']['sha256'][:16]}" in result.out
    assert f"loss {manifest.metrics['validation']['loss']:.4f}" in lines["validation"]


def test_every_soft_token_has_its_nearest_words(trained, run) -> None:
    result = run("show", trained.folder)
    found = run("show", trained.folder, "--json").json
    tokens, distances = found["soft_tokens"], found["metrics"]["moved"]["each"]
    assert [len(token["words"]) for token in tokens] == [5] * 4
    for number, token in enumerate(tokens):
        first = f"{token['words'][0]!r} {token['cosines'][0]:.2f}"
        distance = f"{distances[number]:.3f}"
        assert f"\n{number}  {token['norm']:>6.2f}  {distance:>7}  {first}, " in result.out


def test_the_distance_is_that_from_the_initialization(home, run) -> None:
    """The initialization is the artifact of another run."""
    run("train", home.recipe, "--output", "first", "--quiet")
    home.data["method"]["init"] = {"from": "artifact", "path": "first"}
    run("train", home.recipe, "--output", "second", "--quiet")
    start, now = (load_artifact(Path(name)).prompt.vectors for name in ("first", "second"))
    found = run("show", "second", "--json", "--no-backbone").json["metrics"]["moved"]
    distances = (now - start).norm(dim=1) / start.norm(dim=1)
    assert found["each"] == pytest.approx(distances.tolist(), rel=1e-4)
    assert found["overall"] == pytest.approx(float((now - start).norm() / start.norm()), rel=1e-4)
    lines = run("show", "second", "--no-backbone").out.splitlines()
    assert [line.split() for line in lines[-4:]] == [
        [str(n), f"{distance:.3f}"] for n, distance in enumerate(found["each"])
    ]
    assert any(
        line.split()
        == f"distance {found['overall']:.3f} from initialization, relative to its norm".split()
        for line in lines
    )


def test_a_distance_that_was_not_recorded(copy: Path, run) -> None:
    path = copy / "manifest.json"
    content = json.loads(path.read_text("utf-8"))
    words = run("show", copy, "--json").json["soft_tokens"]
    del content["metrics"]["moved"]
    path.write_bytes(forge(json.dumps(content).encode()))
    result = run("show", copy)
    assert any(line.split() == ["distance", "not", "recorded"] for line in result.out.splitlines())
    assert run("show", copy, "--json").json["soft_tokens"] == words
    assert f"\n0  {words[0]['norm']:>6.2f}  {'-':>7}  " in result.out


def test_a_prefix_has_norms_layer_by_layer(home, run) -> None:
    home.data["task"]["template"] = "{text} sentiment"
    home.data["method"] = {"name": "p-tuning-v2", "length": 3, "layers": "1:"}
    run("train", home.recipe, "--output", "out", "--quiet")
    prompt = load_artifact(Path("out")).prompt
    (site,) = run("show", "out", "--json").json["sites"]
    assert site["layer"] == 1
    norms = [tensor.pow(2).sum(dim=-1).sqrt().mean() for tensor in (prompt.keys, prompt.values)]
    assert [site["keys"], site["values"]] == pytest.approx([float(n) for n in norms], rel=1e-5)
    lines = run("show", "out").out.splitlines()
    assert lines[-2].split() == ["layer", "keys", "values", "distance"]
    (distance,) = run("show", "out", "--json").json["metrics"]["moved"]["each"]
    numbers = [site["keys"], site["values"], distance]
    assert lines[-1].split() == ["1", *(f"{number:.3f}" for number in numbers)]


@pytest.fixture
def copy(trained, tmp_path: Path) -> Path:
    """An artifact to damage."""
    return Path(shutil.copytree(trained.folder / "artifact", tmp_path / "artifact"))


def damage(folder: Path, how: str) -> None:
    tensors, manifest = folder / "prompt.safetensors", folder / "manifest.json"
    match how:
        case "truncated":
            tensors.write_bytes(tensors.read_bytes()[:-7])
        case "pickle":
            torch.save({"a": torch.ones(1)}, tensors)
        case "pickle under its own name":
            tensors.rename(folder / "prompt.bin")
        case "tensor of another shape":
            safetensors.torch.save_file({"prompt.vectors": torch.ones(4, 9)}, tensors)
        case "manifest cut":
            manifest.write_bytes(manifest.read_bytes()[:100])
        case "unknown key":
            content = json.loads(manifest.read_text("utf-8"))
            manifest.write_text(json.dumps(content | {"extra": 1}), "utf-8")
        case "newer":
            content = json.loads(manifest.read_text("utf-8"))
            manifest.write_text(json.dumps(content | {"schema": 99}), "utf-8")
        case "link":
            outside = Path(shutil.move(tensors, folder.parent / "elsewhere"))
            tensors.symlink_to(outside)
        case "gone":
            shutil.rmtree(folder)


DAMAGES = {
    "truncated": ["prompt.safetensors", "truncated or damaged"],
    "pickle": ["is a pickle or an archive of torch.save", "refused", "any code"],
    "pickle under its own name": ["has no file prompt.safetensors", "looks like a pickle"],
    "tensor of another shape": ["SHA-256", "train again"],
    "manifest cut": ["manifest.json is not JSON"],
    "unknown key": ["unknown key 'extra'"],
    "newer": ["schema 99", "pip install -U softprompt"],
    "link": ["is a link to", "outside the folder"],
    "gone": ["there is no folder", "artifact"],
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_artifact_is_refused_by_all_commands(copy: Path, run, how: str) -> None:
    damage(copy, how)
    for command in (["show"], ["predict", "good"], ["evaluate"]):
        verb, *rest = command
        result = run(verb, copy, *rest)
        assert result.is_mistake(*DAMAGES[how])
        assert result.out == ""


def test_a_prompt_for_another_backbone_is_refused(home, run, saved, new_model) -> None:
    model = new_model("llama")
    home.data["backbone"]["name"] = str(saved("llama", model))
    assert run("train", home.recipe, "--output", "out", "--quiet").status == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    saved("llama", model)
    for command in (["show"], ["predict", "good"], ["evaluate"]):
        verb, *rest = command
        result = run(verb, "out", *rest)
        assert result.is_mistake(
            "the prompt was trained on", "fingerprint", "A prompt works only on its own backbone"
        )
    assert run("show", "out", "--no-backbone").status == 0


def test_without_the_backbone_the_rest_is_shown(home, run, saved) -> None:
    folder = saved("llama")
    home.data["backbone"]["name"] = str(folder)
    run("train", home.recipe, "--output", "out", "--quiet")
    shutil.rmtree(folder)
    result = run("show", "out")
    assert result.status == 0
    assert "no nearest words: " in result.err
    assert "4 soft tokens" in result.out
    assert run("predict", "out", "good").is_mistake("no file or folder", "llama")


def test_the_readout_of_a_trained_head_is_shown(home, run) -> None:
    home.data["task"] = {"kind": "classify", "template": "{text}", "pooling": "mean"}
    home.data["method"] = {"name": "p-tuning-v2", "length": 3}
    run("train", home.recipe, "--output", "out", "--quiet")
    assert run("show", "out", "--json").json["task"]["pooling"] == "mean"
    assert "classify, by a trained head that reads: mean" in run("show", "out").out
