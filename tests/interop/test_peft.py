"""Adapters written by PEFT predict here as in PEFT, and exported prompts in PEFT as here.

Every combination of method, family and task in which PEFT itself runs. The others are listed with
PEFT's error and tested too, so that the list stays true.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers as tf
from torch import Tensor, nn
from torch.testing import assert_close

from softprompt import Classify, load_backbone
from softprompt.artifact import (
    Artifact,
    describe_backbone,
    load_artifact,
    make_artifact,
    save_artifact,
)
from softprompt.backbone import Backbone, BatchInputs
from softprompt.errors import ArtifactError
from softprompt.inference import PromptModel, attach
from softprompt.injection import Decoding, forward, generate
from softprompt.interop.classifier_heads import get_head_layout
from softprompt.interop.convert import export_prompt, import_prompts
from softprompt.methods import METHODS, build_method
from softprompt.methods.initializers import FromRandom
from support.parametrize import for_each

peft = pytest.importorskip("peft")

pytestmark = [
    # of transformers, about names that PEFT still uses
    pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning"),
    pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter:UserWarning"),
]

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LENGTH, CLASSES = 4, 3
TEXTS = ["the movie was great", "a"]
DECODER = torch.tensor([[1, 40, 50]])
LABELS = ["bad", "fair", "good"]

KINDS: dict[str, Callable[..., Any]] = {
    "prompt-tuning": peft.PromptTuningConfig,
    "p-tuning-mlp": partial(
        peft.PromptEncoderConfig, encoder_reparameterization_type="MLP", encoder_hidden_size=12
    ),
    "p-tuning-lstm": partial(
        peft.PromptEncoderConfig, encoder_reparameterization_type="LSTM", encoder_hidden_size=12
    ),
    "multitask": partial(peft.MultitaskPromptTuningConfig, num_tasks=3, num_ranks=2),
    "prefix": peft.PrefixTuningConfig,
    "prefix-mlp": partial(peft.PrefixTuningConfig, prefix_projection=True, encoder_hidden_size=12),
    "cartridge": partial(peft.CartridgeConfig, num_frozen_tokens=1),
}
PREFIXES = ("prefix", "prefix-mlp", "cartridge")

# What PEFT itself cannot do, by (family, task, whether it is keys and values): what it says.
WIDTH = "Sizes of tensors must match"  # it takes the table's width for the hidden size
PAST = "does not support past key values"
DIMS = "Please specify"  # it looks for hidden_size, and DistilBERT's configuration has dim
EMBEDS = "Passing input embeddings is currently not supported"
THEIRS: dict[tuple[str, str, bool], str] = {
    **{(f, t, False): WIDTH for f in ("electra", "albert", "opt") for t in ("head", "words")},
    **{(f, "head", True): PAST for f in ("distilbert", "albert", "modernbert", "deberta_v2")},
    **{(f, "head", False): EMBEDS for f in ("t5", "bart")},
    ("t5", "head", True): "cls_layer_name",
    ("bart", "head", True): "cls_layer_name",
    ("distilbert", "words", True): "nothing",
    ("modernbert", "words", True): "size of tensor",
    ("deberta_v2", "words", True): "size of tensor",
    ("albert", "words", True): "nothing",
}


@dataclass(frozen=True)
class Cell:
    """A checkpoint of a family, as PEFT loads it and as we do."""

    folder: Path
    auto: type[Any]
    kind: str
    task: str
    backbone: Backbone

    @property
    def type(self) -> str:
        if self.task == "head":
            return "SEQ_CLS"
        return {
            "causal": "CAUSAL_LM",
            "encoder": "FEATURE_EXTRACTION",
            "encoder-decoder": "SEQ_2_SEQ_LM",
        }[self.kind]

    def plain(self) -> Any:
        """The model as transformers loads it, fresh."""
        return self.auto.from_pretrained(self.folder).eval()

    def said(self, theirs: Any, text: str, **more: Any) -> Tensor:
        """What PEFT says of a text: logits, or an encoder's last states."""
        given = self.backbone.tokenizer(text, return_tensors="pt")
        if self.kind == "encoder-decoder":
            more["decoder_input_ids"] = DECODER
        with torch.no_grad():
            out = theirs(given.input_ids, attention_mask=given.attention_mask, **more)
        found: Tensor = out.last_hidden_state if self.type == "FEATURE_EXTRACTION" else out.logits
        return found

    def ours(self, model: PromptModel, text: str) -> Tensor:
        """What we say of it."""
        example = model.render(text)
        if self.task == "head":
            with torch.no_grad():
                return model.task.compute_scores([example], [model.prompt])
        ids = torch.tensor([example.variants[0].input_ids])
        decoder = DECODER if self.kind == "encoder-decoder" else None
        inputs = BatchInputs(ids, torch.ones_like(ids), decoder_input_ids=decoder)
        with torch.no_grad():
            states = forward(self.backbone, inputs, prompts=[model.prompt])
            if self.type == "FEATURE_EXTRACTION":
                return states
            assert self.backbone.lm_head is not None
            return self.backbone.lm_head(states)


@pytest.fixture(scope="module")
def cells(tmp_path_factory, backbone, plain, drawn, tokenizer) -> Callable[[str, str], Cell]:
    """Checkpoints by family and task, each made once."""
    made: dict[tuple[str, str], Cell] = {}

    def get(family: str, task: str) -> Cell:
        if (family, task) not in made:
            folder, kind = tmp_path_factory.mktemp("cell"), backbone(family).geometry.architecture
            made[family, task] = new_cell(
                folder, plain(family).config, (drawn, tokenizer), kind, task
            )
        return made[family, task]

    return get


def new_cell(folder: Path, config, make, kind: str, task: str) -> Cell:
    drawn, tokenizer = make
    config = copy.deepcopy(config)
    if config.model_type == "t5":
        config.d_kv = 8  # heads times their size are the width, as PEFT's prefix needs
    autos = {
        "causal": tf.AutoModelForCausalLM,
        "encoder": tf.AutoModelForMaskedLM,
        "encoder-decoder": tf.AutoModelForSeq2SeqLM,
    }
    auto = autos[kind]
    if task == "head":
        auto, config.num_labels = tf.AutoModelForSequenceClassification, CLASSES
    drawn(auto, config).eval().save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    backbone = load_backbone(str(folder), dtype=torch.float32, device="cpu")
    own = tf.AutoModel if kind == "encoder" and task == "words" else auto
    return Cell(folder, own, kind, task, backbone)


def wrapped(cell: Cell, kind: str) -> Any:
    """A PEFT model with everything that it trains drawn at random."""
    dims = {"token_dim": 32, "num_attention_heads": 4, "num_layers": 2}
    more = dims if cell.backbone.geometry.model_type == "distilbert" else {}
    config = KINDS[kind](task_type=cell.type, num_virtual_tokens=LENGTH, **more)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = peft.get_peft_model(cell.plain(), config).eval()
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name or "prefix_task" in name:
                nn.init.normal_(parameter, std=0.5)
    return theirs


def imported(cell: Cell, folder: Path) -> dict[str, PromptModel]:
    task, config = None, json.loads((folder / "adapter_config.json").read_text("utf-8"))
    if cell.type == "FEATURE_EXTRACTION":  # which does not say what the states are for
        keys = config["peft_type"] in {"PREFIX_TUNING", "CARTRIDGE"}
        front = "" if keys else f"{{soft:{LENGTH}}}{{bos}}"
        task = Classify(f"{front}{{text}}{{mask}}", verbalizer={"bad": "bad", "good": "good"})
    return import_prompts("peft", folder, backbone=cell.backbone, task=task)


def text_of(cell: Cell, text: str) -> str:
    return f"{text}<mask>" if cell.type == "FEATURE_EXTRACTION" else text


def tensors(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("task", ["head", "words"])
@pytest.mark.parametrize("kind", KINDS)
@for_each("family")
def test_import_and_export(cells, tmp_path, family, kind, task):
    cell = cells(family, task)
    fault = THEIRS.get((family, task, kind in PREFIXES))
    if fault is not None:
        check_that_peft_fails(cell, kind, fault)
        return
    theirs = wrapped(cell, kind)
    theirs.save_pretrained(tmp_path / "theirs")
    models = imported(cell, tmp_path / "theirs")
    assert list(models) == (["task-0", "task-1", "task-2"] if kind == "multitask" else [""])
    for at, (name, model) in enumerate(models.items()):
        more = {"task_ids": torch.tensor([at])} if kind == "multitask" else {}
        kept = load_artifact(save_artifact(model.artifact, tmp_path / f"ours{name}"))
        export_prompt("peft", attach(kept, cell.backbone), output=tmp_path / f"back{name}")
        back = peft.PeftModel.from_pretrained(cell.plain(), tmp_path / f"back{name}").eval()
        check_tensors(tmp_path / "theirs", tmp_path / f"back{name}", theirs, kind, at)
        for text in TEXTS:
            again = cell.said(back, text_of(cell, text))
            assert_close(cell.ours(model, text), again, **CLOSE)
            if kind == "multitask" and cell.kind == "encoder-decoder":
                # Its forward also prompts the decoder, which its own generate never does.
                assert written(cell, model, text) == their_text(cell, theirs, text, **more)
                continue
            if kind == "multitask" and cell.type == "FEATURE_EXTRACTION":
                with pytest.raises(ValueError, match="task_ids cannot be None"):
                    cell.said(theirs, text, **more)
                continue
            assert_close(again, cell.said(theirs, text_of(cell, text), **more), **CLOSE)


def written(cell: Cell, model: PromptModel, text: str) -> list[int]:
    ids = torch.tensor([model.render(text).variants[0].input_ids])
    inputs = BatchInputs(ids, torch.ones_like(ids))
    decoding = Decoding(max_new_tokens=6)
    return generate(cell.backbone, inputs, prompts=[model.prompt], decoding=decoding)[0]


def their_text(cell: Cell, theirs: Any, text: str, **more: Any) -> list[int]:
    given = cell.backbone.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        ids = theirs.generate(
            input_ids=given.input_ids,
            attention_mask=given.attention_mask,
            max_new_tokens=7,  # BART's configuration would have the last one be the end
            do_sample=False,
            **more,
        )[0, 1:7].tolist()
    ends = cell.backbone.eos_token_ids
    return ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))]


def check_that_peft_fails(cell: Cell, kind: str, fault: str) -> None:
    if fault == "nothing":  # a prefix that changes nothing at all
        theirs = wrapped(cell, kind)
        bare = cell.said(cell.plain(), "a")
        assert torch.equal(cell.said(theirs, "a"), bare)
        return
    more = {"task_ids": torch.tensor([0])} if kind == "multitask" else {}
    with pytest.raises(Exception, match=f"{fault}|task_ids cannot be None"):
        cell.said(wrapped(cell, kind), "a", **more)


def check_tensors(first: Path, back: Path, theirs: Any, kind: str, at: int) -> None:
    """Bit for bit, but for what is never read: a decoder's half, and a task's own factors."""
    one, other = tensors(first), tensors(back)
    if kind == "multitask":
        one = {k: t for k, t in one.items() if not k.startswith("prefix_task")}
        with torch.no_grad():
            one["prompt_embeddings"] = theirs.get_prompt(1, torch.tensor([at]))[0]
    one["prompt_embeddings"] = one["prompt_embeddings"][:LENGTH]
    if kind in PREFIXES and theirs.config.is_encoder_decoder:
        # Of two layers PEFT reads the first one's keys and values for both.
        half = one["prompt_embeddings"].shape[1] // 2
        one["prompt_embeddings"] = one["prompt_embeddings"][:, :half]
        other["prompt_embeddings"] = other["prompt_embeddings"][:, :half]
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    config = [json.loads((f / "adapter_config.json").read_text()) for f in (first, back)]
    assert kind == "multitask" or config[0]["peft_type"] == config[1]["peft_type"]


METHOD_SETTINGS = {
    "prompt-tuning": {},
    "p-tuning": {"encoder_hidden_size": 8},
    "prefix-tuning": {"length": LENGTH, "encoder_hidden_size": 8, "shift_positions": True},
    "p-tuning-v2": {"length": LENGTH, "shift_positions": True},
}
# Where PEFT cannot load what we trained although we train it: its own faults above, and these.
NO_KEYS = {"deberta_v2"}


def trained(cell: Cell, name: str, *, method: dict[str, Any] | None = None) -> Artifact:
    """A prompt of one of our methods with a head that suits the family, all at random."""
    options = METHOD_SETTINGS[name] if method is None else method
    own = cell.backbone.geometry.self_attention_sites
    if "shift_positions" in options and cell.kind == "encoder-decoder":
        options = {"layers": f"{own[0]}:{own[-1] + 1}:{own[1] - own[0]}"} | options
    settings = METHODS[name](**options)
    shallow = settings.prompt_kind == "input"
    built = build_method(cell.backbone, settings, soft_length=LENGTH, init=FromRandom(), seed=3)
    soft = f"{{soft:{LENGTH}}}{{bos}}" if shallow else ""
    with torch.no_grad():
        prompt = built()
    if cell.kind == "encoder-decoder" and not shallow:
        # Of two layers both must have the same: see below.
        prompt = prompt.map_tensors(lambda tensor: tensor[:1].expand(len(tensor), -1, -1, -1))
    task: dict[str, object]
    head, labels = {}, []
    if cell.task == "head":
        family = cell.backbone.geometry.model_type
        form = get_head_layout(family, causal=cell.kind == "causal")
        state = cell.plain().state_dict()
        head = {o: t for k, t in state.items() if (o := form.from_foreign(k)) is not None}
        task = {"kind": "classify", "head": form.kind, "pooling": "first" if shallow else "cls"}
        labels = LABELS
    elif cell.kind == "encoder":
        task = {"kind": "classify", "verbalizer": {"bad": "bad", "good": "good"}}
        labels = ["bad", "good"]
    else:
        task = {"kind": "generate"}
    mask = "{mask}" if cell.type == "FEATURE_EXTRACTION" else ""
    return make_artifact(
        prompt,
        {name: tensor.contiguous() for name, tensor in head.items()},
        template=f"{soft}{{text}}{mask}",
        max_length=None,
        task=task,
        labels=labels,
        backbone=describe_backbone(cell.backbone),
        data={},
        recipe={},
        metrics={},
    )


@pytest.mark.parametrize("task", ["head", "words"])
@pytest.mark.parametrize("name", METHOD_SETTINGS)
@for_each("family")
def test_export_and_import(cells, tmp_path, family, name, task):
    cell, keys = cells(family, task), name in {"prefix-tuning", "p-tuning-v2"}
    if (family, task, keys) in THEIRS or (keys and family in NO_KEYS):
        pytest.skip("PEFT cannot do this; see the other test")
    model = attach(trained(cell, name), cell.backbone)
    export_prompt("peft", model, output=tmp_path / "theirs")
    theirs = peft.PeftModel.from_pretrained(cell.plain(), tmp_path / "theirs").eval()
    (again,) = imported(cell, tmp_path / "theirs").values()
    for key, tensor in model.artifact.to_tensors().items():
        assert torch.equal(tensor, again.artifact.to_tensors()[key]), key
    for text in TEXTS:
        ours = cell.ours(model, text)
        assert_close(cell.said(theirs, text_of(cell, text)), ours, **CLOSE)
        assert torch.equal(cell.ours(again, text), ours)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_context_tuning(cells, tmp_path, family):
    """CPT: words whose embeddings were moved. PEFT has it for causal language models alone."""
    cell, mask = cells(family, "words"), [1] * LENGTH
    config = peft.CPTConfig(
        task_type="CAUSAL_LM",
        cpt_token_ids=[40, 50, 60, 70],
        cpt_mask=mask,
        cpt_tokens_type_mask=mask,
    )
    theirs = peft.get_peft_model(cell.plain(), config).eval()
    nn.init.normal_(theirs.prompt_encoder["default"].delta_embedding.weight, std=0.01)
    theirs.save_pretrained(tmp_path / "theirs")
    (model,) = imported(cell, tmp_path / "theirs").values()
    export_prompt("peft", model, output=tmp_path / "back")
    back = peft.PeftModel.from_pretrained(cell.plain(), tmp_path / "back").eval()
    for text in TEXTS:
        wanted = cell.said(theirs, text)
        assert_close(cell.ours(model, text), wanted, **CLOSE)
        assert_close(cell.said(back, text), wanted, **CLOSE)


def test_padding_moves_their_answer_and_not_ours(cells, tmp_path):
    """What the documentation says of PEFT is so, and ours is that of the row alone."""
    cell = cells("llama", "words")
    theirs = wrapped(cell, "prompt-tuning")
    theirs.save_pretrained(tmp_path / "theirs")
    (model,) = imported(cell, tmp_path / "theirs").values()
    alone = cell.said(theirs, "the movie")[0, -1]
    given = cell.backbone.tokenizer("the movie", return_tensors="pt")
    pad = torch.ones(1, 3, dtype=torch.long)
    ids = torch.cat([pad * cell.backbone.pad_token_id, given.input_ids], dim=1)
    mask = torch.cat([pad * 0, given.attention_mask], dim=1)
    with torch.no_grad():
        padded = theirs(ids, attention_mask=mask).logits[0, -1]
    assert (padded - alone).abs().max() > 1e-2
    row = torch.tensor(model.render("the movie").variants[0].input_ids)
    ids = torch.cat([pad[0] * cell.backbone.pad_token_id, row])[None]
    mask = torch.cat([pad[0] * 0, torch.ones_like(row)])[None]
    with torch.no_grad():
        states = forward(cell.backbone, BatchInputs(ids, mask), prompts=[model.prompt])
    assert_close(cell.backbone.lm_head(states)[0, -1], alone, **CLOSE)


def test_layers_that_peft_cannot_tell_apart_are_refused(cells, tmp_path):
    """An even number of decoder layers: layer i reads the pair 2·i, counted round."""
    cell = cells("t5", "words")
    made = trained(cell, "p-tuning-v2")
    keys = made.prompt.keys.clone()
    keys[1] += 1
    other = replace(made, prompt=replace(made.prompt, keys=keys))
    with pytest.raises(ArtifactError, match="decoder layers 0 and 1 the same keys and values"):
        export_prompt("peft", attach(other, cell.backbone), output=tmp_path / "out")


REFUSED = [
    ("llama", "p-tuning-v2", {}, "Train with method.shift_positions = true"),
    (
        "llama",
        "p-tuning-v2",
        {"shift_positions": True, "layers": "1:"},
        "Train it on exactly these with method",
    ),
    ("llama", "prompt-tuning", {"template": "{text}{soft:4}"}, "such as '{soft:4}{bos}{text}'"),
    ("llama", "prompt-tuning", {"template": "{soft:4}{text}"}, "PEFT puts all of them first"),
    ("bert", "prompt-tuning", {"pooling": "cls"}, 'Train with task.pooling = "first"'),
    ("bert", "prompt-tuning", {"pooling": "mean"}, "the head reads the mean of the row's words"),
    (
        "bert",
        "p-tuning-v2",
        {"shift_positions": True, "pooling": "max"},
        'but PEFT\'s reads [CLS]. Train with task.pooling = "cls"',
    ),
    ("bert", "prompt-tuning", {"head": "linear"}, "Train with task.head = 'mlp-tanh'"),
]


@pytest.mark.parametrize(("family", "name", "changes", "message"), REFUSED)
def test_what_peft_cannot_store_is_refused(cells, tmp_path, family, name, changes, message):
    cell = cells(family, "head" if family == "bert" else "words")
    method = {k: v for k, v in changes.items() if k in {"shift_positions", "layers"}}
    made = trained(
        cell, name, method={"length": LENGTH} | method if method or not changes else None
    )
    task = dict(made.manifest.task) | {k: v for k, v in changes.items() if k in {"pooling", "head"}}
    manifest = replace(
        made.manifest, task=task, template=changes.get("template", made.manifest.template)
    )
    model = replace(attach(made, cell.backbone), artifact=replace(made, manifest=manifest))
    with pytest.raises(ArtifactError) as error:
        export_prompt("peft", model, output=tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()
