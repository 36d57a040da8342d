"""Requests to vLLM: the bytes that it reads, and vectors by which a plain model answers as ours.

The model that transformers made, fed with the vectors as ``inputs_embeds``, stands for the server;
``scripts/bench vllm`` asks a real one.
"""

import base64
import hashlib
import io
import json
import pickletools
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

import softprompt
from softprompt.cli import app
from softprompt.errors import ArtifactError, DataError, TemplateError
from softprompt.inference import PromptModel
from softprompt.injection import load_backbone
from softprompt.interop.convert import export_prompt
from softprompt.interop.vllm_client import VLLMPrompt, encode_prompt_embeds
from softprompt.tasks import Classify, Generate

FAMILIES = ("llama", "qwen3", "gemma3", "gpt2", "mistral", "phi3", "gpt_neox", "bloom")
TEMPLATES = {
    "front": "{soft:3}Review: {text} is",
    "behind": "Review: {text} is{soft:3}",
    "middle": "the{soft:2} film {text}{soft:1} is",
    "before all": "{soft:2}{bos}{soft:1}{text} is",
}
WORDS = {"negative": " bad", "positive": [" good", " great"]}
TEXTS = [
    "the film was good",
    "wonderful",
    "a dull <s> story and an awful </s> actor in a boring film",
]
TASKS = {
    "words": lambda template: Classify(template, verbalizer=WORDS),
    "text": lambda template: Generate(template, max_new_tokens=6),
}


@pytest.fixture
def trained(model) -> Callable[..., PromptModel]:
    """A model of a family; its prompt is random."""

    def make(family, kind="text", template=TEMPLATES["front"], *, settings=None, **more):
        return model((family, kind, "input"), settings=settings or TASKS[kind](template), **more)

    return make


@pytest.fixture
def exported(trained, tmp_path) -> Callable[..., Path]:
    """A folder of a small model."""

    def write(kind: str = "words", family: str = "llama") -> Path:
        return export_prompt("vllm", trained(family, kind), output=tmp_path / "out")

    return write


def served(plain: Any, body: dict[str, Any]) -> dict[str, Any]:
    """What a server says: a plain model run on the vectors of a request, greedily."""
    raw = io.BytesIO(base64.b64decode(body["prompt_embeds"], validate=True))
    rows = torch.load(raw, weights_only=True)[None]
    stops, ids, top = body["stop_token_ids"], [], {}
    for _ in range(body["max_tokens"]):
        with torch.no_grad():
            logits = plain(inputs_embeds=rows, use_cache=False).logits[0, -1]
        scores = logits.log_softmax(0)
        top = {f"token_id:{t}": scores[t].item() for t in body.get("logprob_token_ids", [])}
        allowed = body.get("allowed_token_ids", range(len(scores)))
        ids.append(max(allowed, key=lambda t: scores[t].item()))
        if ids[-1] in stops:
            break
        with torch.no_grad():
            new = plain.get_input_embeddings()(torch.tensor([[ids[-1]]]))
        rows = torch.cat([rows, new], dim=1)
    choice = {"index": 0, "token_ids": ids, "logprobs": {"top_logprobs": [top]} if top else None}
    return {"choices": [choice]}


# What is sent.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_wire_holds_one_dense_tensor_and_nothing_else(dtype):
    whole = torch.randn(9, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = whole[2:7, 1:6]  # neither contiguous nor the whole of its storage
    sent = encode_prompt_embeds(rows)
    raw = base64.b64decode(sent, validate=True)
    assert base64.b64encode(raw).decode("ascii") == sent  # the standard alphabet, padded
    archive = zipfile.ZipFile(io.BytesIO(raw))
    assert archive.testzip() is None
    assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    names = {name.removeprefix("archive/") for name in archive.namelist()}
    extra = {"byteorder", "version", ".format_version", ".storage_alignment"}
    assert names == {"data.pkl", "data/0", ".data/serialization_id", *extra}
    assert archive.read("archive/byteorder") == b"little"
    assert archive.read("archive/data/0") == _little_endian(rows)
    kind = {torch.float32: "Float", torch.bfloat16: "BFloat16", torch.float16: "Half"}[dtype]
    assert _named(archive.read("archive/data.pkl")) == {
        "torch._utils _rebuild_tensor_v2",
        f"torch {kind}Storage",
        "collections OrderedDict",
    }
    back = torch.load(io.BytesIO(raw), weights_only=True)
    assert (back.dtype, back.shape, back.is_contiguous()) == (dtype, (5, 5), True)
    assert torch.equal(back.view(torch.uint8), rows.contiguous().view(torch.uint8))


def _little_endian(rows: torch.Tensor) -> bytes:
    """Number by number, by arithmetic and Python's own packing."""
    numbers = rows.reshape(-1).tolist()
    match rows.dtype:
        case torch.float32:
            return struct.pack(f"<{len(numbers)}f", *numbers)
        case torch.float16:
            return struct.pack(f"<{len(numbers)}e", *numbers)
        case _:  # the upper half of an fp32 number
            return b"".join(struct.pack("<f", number)[2:] for number in numbers)


def _named(pickled: bytes) -> set[str]:
    """What a pickle would import; anything else that could is not in it."""
    found = list(pickletools.genops(pickled))
    codes = {code.name for code, _, _ in found}
    assert not codes & {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1"}
    return {argument for code, argument, _ in found if code.name == "GLOBAL"}


@pytest.mark.parametrize("kind", TASKS)
def test_a_request_is_json_of_known_keys_without_a_prompt(trained, kind):
    own = VLLMPrompt.from_model(trained("llama", kind))
    body = json.loads(json.dumps(own.request(TEXTS[0], model="smol", seed=3)))
    assert (body["model"], body["seed"], body["temperature"]) == ("smol", 3, 0)
    assert "prompt" not in body
    tokenizer = own.renderer.tokenizer
    if kind == "words":
        ids = [
            tokenizer(w, add_special_tokens=False)["input_ids"] for w in (" bad", " good", " great")
        ]
        assert [[i] for i in body["allowed_token_ids"]] == ids
        assert (body["logprob_token_ids"], body["max_tokens"]) == (body["allowed_token_ids"], 1)
    else:
        assert (body["max_tokens"], body["stop_token_ids"]) == (6, [tokenizer.eos_token_id])
        assert "allowed_token_ids" not in body
    with pytest.raises(DataError, match="Leave prompt out"):
        own.request(TEXTS[0], prompt="")


def test_a_sampling_task_asks_for_samples(trained):
    settings = Generate(
        TEMPLATES["front"], do_sample=True, temperature=0.7, top_k=5, top_p=0.9, max_new_tokens=9
    )
    body = VLLMPrompt.from_model(trained("llama", settings=settings)).request("good")
    assert (body["temperature"], body["top_k"], body["top_p"]) == (0.7, 5, 0.9)


# The vectors are those of our own run.


@pytest.mark.parametrize("place", TEMPLATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_label_words_score_as_ours(trained, plain, family, place, tmp_path):
    own = trained(family, "words", TEMPLATES[place])
    folder = export_prompt("vllm", own, output=tmp_path / "out")
    for client in (VLLMPrompt.from_model(own), VLLMPrompt.from_export(folder)):
        for text, ours in zip(TEXTS, own.predict(TEXTS), strict=True):
            answer = client.parse_response(served(plain(family), client.request(text)))
            assert answer.label == ours.label
            assert answer.probabilities == pytest.approx(ours.probabilities, abs=1e-5)


@pytest.mark.parametrize("place", TEMPLATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_written_as_ours(trained, plain, family, place, tmp_path):
    own = trained(family, "text", TEMPLATES[place])
    client = VLLMPrompt.from_export(export_prompt("vllm", own, output=tmp_path / "out"))
    for text, ours in zip(TEXTS, own.predict(TEXTS), strict=True):
        assert client.parse_response(served(plain(family), client.request(text))) == ours


@pytest.mark.parametrize("family", FAMILIES)
def test_real_tokens_are_embedded_as_the_model_does(trained, plain, family):
    """Gemma scales its table: what is sent must be scaled, and soft tokens must not be."""
    own = trained(family, "text", "{soft:3}{text}")
    client = VLLMPrompt.from_model(own)
    rows = client.prompt_embeddings("a good film")
    ids = own.backbone.tokenizer("a good film")["input_ids"]
    wanted = plain(family).get_input_embeddings()(torch.tensor(ids))
    # BOS stands first, then the soft tokens
    assert torch.equal(torch.cat([rows[:1], rows[4:]]), wanted)
    assert torch.equal(rows[1:4], own.prompt.vectors)


def test_a_stop_ends_the_text_and_space_is_stripped(trained):
    client = VLLMPrompt.from_model(trained("llama", "text"))
    tokenizer = client.renderer.tokenizer
    ids = tokenizer(" good film", add_special_tokens=False)["input_ids"]
    said = {"choices": [{"token_ids": [*ids, tokenizer.eos_token_id, 40]}]}
    assert client.parse_response(said).label == "good film"


@pytest.mark.parametrize("choices", ["from-data", (" good  film", "</s> bad\n")])
def test_generated_tokens_name_the_choice(trained, tmp_path, choices):
    """Also without the data that the choices were read from, and whatever their text becomes."""
    labels = (" good  film", "</s> bad\n")
    settings = Generate(TEMPLATES["front"], choices=choices, constrained_decoding=False)
    own = trained("llama", "choice", settings=settings, choices=labels)
    client = VLLMPrompt.from_export(export_prompt("vllm", own, output=tmp_path / "out"))
    tokenizer, stop = own.backbone.tokenizer, own.backbone.tokenizer.eos_token_id
    for label in labels:
        text = label if label[0] == " " else f" {label}"
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for prediction in (
            client.parse_response({"choices": [{"token_ids": [*ids, stop]}]}),
            VLLMPrompt.from_model(own).parse_response({"choices": [{"token_ids": ids}]}),
        ):
            assert (prediction.label, prediction.token_ids) == (label, tuple(ids))
    (ids,) = tokenizer([" good"], add_special_tokens=False)["input_ids"]
    assert client.parse_response({"choices": [{"token_ids": ids}]}).label == "good"


def test_too_long_a_text_is_cut_as_ours(trained):
    own = trained("llama", "words", max_length=20)
    long = " ".join(["good film"] * 30)
    client = VLLMPrompt.from_model(own)
    assert own.render(long).truncated
    assert (
        client.renderer.render({"text": long}).input_ids == own.render(long).variants[0].input_ids
    )
    writes = trained("llama", "text")  # 64 positions, of which six are for the answer
    assert len(VLLMPrompt.from_model(writes).prompt_embeddings(long)) == 58


def test_vectors_are_kept_in_the_precision_of_the_backbone(trained, backbone, tmp_path):
    own = trained("gemma3", "text", own=backbone("gemma3", torch.bfloat16))
    client = VLLMPrompt.from_export(export_prompt("vllm", own, output=tmp_path / "out"))
    assert client.prompt_embeddings("good").dtype == torch.bfloat16
    assert torch.equal(
        client.prompt_embeddings("good"), VLLMPrompt.from_model(own).prompt_embeddings("good")
    )
    assert torch.equal(client.vectors, own.prompt.vectors.bfloat16())


# What is refused.


def late(model: PromptModel, maker: Any) -> PromptModel:
    prompt = maker("llama").late_prompt()
    return replace(model, prompt=prompt, artifact=replace(model.artifact, prompt=prompt))


REFUSED = {
    "keys and values": (("llama", "text", "kv"), None, "Train vectors: prompt-tuning"),
    "encoder": (("bert", "words", "input"), None, "vLLM takes vectors for causal"),
    "encoder-decoder": (("t5", "words", "input"), None, "vLLM takes vectors for causal"),
    "trained head": (("gpt_neox", "head", "input"), None, "a verbalizer"),
    "narrow table": (("opt", "text", "input"), None, "the width 16 and its layers 32"),
    "long word": (
        ("llama", "words", "input"),
        Classify(TEMPLATES["front"], verbalizer={"a": " goodness me", "b": " bad"}),
        "label 'a' has a word of",
    ),
    "choices": (("llama", "choice", "input"), None, "task.constrained_decoding = false"),
    "beams": (
        ("llama", "text", "input"),
        Generate(TEMPLATES["front"], num_beams=2),
        "Set task.num_beams = 1",
    ),
}


@pytest.mark.parametrize("cell", REFUSED)
def test_what_vllm_cannot_do_is_refused(model, tmp_path, cell):
    way, settings, message = REFUSED[cell]
    own = model(way, settings=settings)
    with pytest.raises(ArtifactError) as caught:
        export_prompt("vllm", own, output=tmp_path / "out")
    assert message in str(caught.value)
    with pytest.raises(ArtifactError):
        VLLMPrompt.from_model(own)
    assert not (tmp_path / "out").exists()


def test_a_late_prompt_is_refused(model, maker, tmp_path):
    own = late(model(("llama", "text", "input")), maker)
    with pytest.raises(ArtifactError, match=r'enter at layer 1.*method\.layers = "all"'):
        export_prompt("vllm", own, output=tmp_path / "out")


# Folders.


def test_a_folder_needs_no_backbone(exported, monkeypatch):
    folder = exported()
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {n for n in names if not n.startswith("tokenizer/")} == {
        "vllm.json",
        "prompt.safetensors",
        "table.safetensors",
    }
    assert "tokenizer/tokenizer.json" in names
    monkeypatch.setattr("softprompt.backbone.loading.load_unverified", None)
    assert softprompt.VLLMPrompt.from_export(folder).labels == ("negative", "positive")


def plan_of(folder: Path, **changes: object) -> None:
    """Set keys of the plan."""
    path = folder / "vllm.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def put(folder: Path, name: str, raw: bytes) -> None:
    """Replace a file, and let the plan vouch for it."""
    (folder / name).write_bytes(raw)
    files = json.loads((folder / "vllm.json").read_text("utf-8"))["files"]
    plan_of(folder, files=files | {name: hashlib.sha256(raw).hexdigest()})


def put_table(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    table = safetensors.torch.load_file(folder / "table.safetensors")["table"].clone()
    put(folder, "table.safetensors", safetensors.torch.save({"table": change(table)}))


def nan(table: torch.Tensor) -> torch.Tensor:
    table[3, 3] = torch.nan
    return table


def pickled() -> bytes:
    made = io.BytesIO()
    torch.save({"table": torch.zeros(2)}, made)
    return made.getvalue()


def decoding(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "vllm.json").read_text("utf-8"))["decoding"]
    return found


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no plan": (lambda f: (f / "vllm.json").unlink(), "no vllm.json"),
    "no table": (lambda f: (f / "table.safetensors").unlink(), "no table.safetensors"),
    "no tokenizer": (
        lambda f: (f / "tokenizer/tokenizer.json").unlink(),
        "no tokenizer/tokenizer.json",
    ),
    "not JSON": (lambda f: (f / "vllm.json").write_text("{"), "not strict JSON"),
    "NaN in JSON": (
        lambda f: (f / "vllm.json").write_text('{"schema": NaN}'),
        "NaN is not a number in JSON",
    ),
    "a key twice": (
        lambda f: (f / "vllm.json").write_text('{"schema": 1, "schema": 1}'),
        "'schema' appears twice",
    ),
    "newer": (lambda f: plan_of(f, schema=2), "schema 2"),
    "unknown key": (lambda f: plan_of(f, extra=1), "extra in vllm.json"),
    "wrong type": (lambda f: plan_of(f, vocabulary="366"), "vocabulary in vllm.json"),
    "no length": (lambda f: plan_of(f, length=0), "length in vllm.json"),
    "unknown dtype": (lambda f: plan_of(f, dtype="int8"), "dtype is 'int8'"),
    "other dtype": (lambda f: plan_of(f, dtype="bfloat16"), "vectors in prompt.safetensors is"),
    "other size": (lambda f: plan_of(f, vocabulary=367), "but vllm.json says [367, 32]"),
    "other template": (
        lambda f: plan_of(f, template="{soft:2}{text}"),
        "has 2 soft tokens, but the prompt has 3",
    ),
    "one label": (lambda f: plan_of(f, words={"a": [5]}), "two or more labels"),
    "a word twice": (lambda f: plan_of(f, words={"a": [5], "b": [5]}), "all with different words"),
    "no word": (lambda f: plan_of(f, words={"a": [5], "b": []}), "all with different words"),
    "unknown word": (lambda f: plan_of(f, words={"a": [5], "b": [366]}), "the token 366"),
    "words of a writer": (lambda f: plan_of(f, task={"kind": "generate"}), "kind is 'generate'"),
    "long words": (
        lambda f: plan_of(f, decoding=decoding(f) | {"max_tokens": 2}),
        "max_tokens = 1",
    ),
    "choices without their names": (
        lambda f: plan_of(f, task={"kind": "classify", "choices": "from-data"}),
        "the task's choices are 'from-data'; they must be a list of texts",
    ),
    "negative temperature": (
        lambda f: plan_of(f, decoding=decoding(f) | {"temperature": -1.0}),
        "decoding.temperature",
    ),
    "outside": (
        lambda f: plan_of(f, files={"../secret": "0" * 64}),
        "files directly in tokenizer/",
    ),
    "deep outside": (
        lambda f: plan_of(
            f,
            files=json.loads((f / "vllm.json").read_text())["files"]
            | {"tokenizer/../../secret": "0" * 64},
        ),
        "files directly in tokenizer/",
    ),
    "no digest": (
        lambda f: plan_of(
            f, files=json.loads((f / "vllm.json").read_text())["files"] | {"table.safetensors": "x"}
        ),
        "not 64 hexadecimal digits",
    ),
    "changed": (
        lambda f: (f / "tokenizer/tokenizer_config.json").write_text("{}"),
        "tokenizer/tokenizer_config.json has the SHA-256",
    ),
    "one more": (
        lambda f: (f / "tokenizer/added_tokens.json").write_text("{}"),
        "added_tokens.json, which vllm.json does not name",
    ),
    "spoilt tokenizer": (
        lambda f: put(f, "tokenizer/tokenizer.json", b"{}"),
        "its tokenizer cannot be loaded",
    ),
    "truncated, damaged": (
        lambda f: put(f, "table.safetensors", (f / "table.safetensors").read_bytes()[:-7]),
        "truncated, damaged",
    ),
    "a pickle": (lambda f: put(f, "table.safetensors", pickled()), "is a pickle"),
    "NaN": (lambda f: put_table(f, nan), "table: 1 of its"),
    "other shape": (lambda f: put_table(f, lambda t: t[:-1].clone()), "table in table.safetensors"),
    "other precision": (lambda f: put_table(f, lambda t: t.half()), "in float16"),
    "other name": (
        lambda f: put(f, "table.safetensors", safetensors.torch.save({"x": torch.zeros(2)})),
        "holds x, not 'table' alone",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused(exported, damage):
    folder = exported()
    spoil, message = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(ArtifactError) as caught:
        VLLMPrompt.from_export(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["vllm.json", "table.safetensors", "tokenizer/tokenizer.json"])
def test_a_link_to_elsewhere_is_refused(exported, tmp_path, name):
    folder = exported()
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="outside the folder"):
        VLLMPrompt.from_export(folder)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="there is no folder"):
        VLLMPrompt.from_export(tmp_path / "absent")


def test_a_broken_template_is_refused(exported):
    folder = exported()
    plan_of(folder, template="{soft:3}{text")
    with pytest.raises(TemplateError, match="without its partner"):
        VLLMPrompt.from_export(folder)


# Responses.

RESPONSES = {
    "an error": ({"error": {"message": "no --enable-prompt-embeds."}}, "the server refused"),
    "two choices": ({"choices": [{}, {}]}, "has 2 choices"),
    "no choices": ({"object": "text_completion"}, "has 0 choices"),
    "bare": ({"choices": [{"index": 0, "text": "good"}]}, "lacks"),
    "one word only": (
        {"choices": [{"logprobs": {"top_logprobs": [{"token_id:5": -1.0}]}, "token_ids": None}]},
        "lacks",
    ),
}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("sort", RESPONSES)
def test_an_incomplete_response_is_refused(trained, kind, sort):
    response, message = RESPONSES[sort]
    with pytest.raises(DataError) as caught:
        VLLMPrompt.from_model(trained("llama", kind)).parse_response(response)
    assert message in str(caught.value)


def test_the_command_line_exports(trained, saved, tmp_path):
    """From an artifact on disk, with the backbone that it names; a misspelt format is corrected."""
    own = load_backbone(str(saved("llama")), dtype="float32", device="cpu")
    artifact = trained("llama", "words", own=own).save(tmp_path / "mood")
    arguments = ["export", "vllm", str(artifact), "--output", str(tmp_path / "out"), "--json"]
    told = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert {"vllm.json", "prompt.safetensors", "table.safetensors"} < {*told["files"]}
    plan = VLLMPrompt.from_export(told["folder"]).plan
    assert plan.backbone["fingerprint"] == own.fingerprint
    misspelt = CliRunner().invoke(app, ["export", "vlm", *arguments[2:]])
    assert misspelt.exit_code == 2
    assert "Did you mean 'vllm'" in misspelt.stderr
