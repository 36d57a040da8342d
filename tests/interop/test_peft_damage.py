"""Adapters with a false or hostile configuration, and tensors that do not belong together."""

import builtins
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from softprompt.errors import ArtifactError, BackboneError
from softprompt.interop.convert import export_prompt, import_prompts
from softprompt.interop.registry import read_base_model
from softprompt.tasks import Classify, Generate
from support.tiny_models import REFUSED

CONFIG: dict[str, Any] = {
    "peft_type": "PROMPT_TUNING",
    "task_type": "CAUSAL_LM",
    "num_virtual_tokens": 3,
    "base_model_name_or_path": "tiny/llama",
    "prompt_tuning_init": "RANDOM",
}
PROMPT = {"prompt_embeddings": torch.linspace(-1, 1, 96).view(3, 32)}
KINDS = "CARTRIDGE, CPT, MULTITASK_PROMPT_TUNING, PREFIX_TUNING, PROMPT_TUNING, P_TUNING"


def put(folder: Path, tensors: Mapping[str, Tensor] | None = None, **config: Any) -> Path:
    """An adapter; one key of its configuration is left out if it is None."""
    held = {k: v.contiguous() for k, v in (tensors or PROMPT).items()}
    safetensors.torch.save_file(held, folder / "adapter_model.safetensors")
    table = {key: value for key, value in (CONFIG | config).items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(table))
    return folder


LIES = {
    "no kind": (
        {"peft_type": None},
        f"unknown peft_type 'None'. Options: {KINDS}. Only soft prompts can be imported.",
    ),
    "LoRA": (
        {"peft_type": "LORA"},
        f"unknown peft_type 'LORA'. Options: {KINDS}. Only soft prompts can be imported.",
    ),
    "misspelt": (
        {"peft_type": "PROMT_TUNING"},
        (
            f"unknown peft_type 'PROMT_TUNING'. Options: {KINDS}. Did you mean 'PROMPT_TUNING'? "
            "Only soft prompts can be imported."
        ),
    ),
    "a list": (
        {"peft_type": ["PROMPT_TUNING"]},
        (
            f"unknown peft_type \"['PROMPT_TUNING']\". Options: {KINDS}. Did you mean "
            "'PROMPT_TUNING'? Only soft prompts can be imported."
        ),
    ),
    "another task": (
        {"task_type": "QUESTION_ANSWERS"},
        (
            "task_type is 'QUESTION_ANSWERS', which softprompt has no task for. It has CAUSAL_LM, "
            "FEATURE_EXTRACTION, SEQ_2_SEQ_LM, SEQ_CLS, TOKEN_CLS."
        ),
    ),
    "a table": (
        {"task_type": {"a": 1}},
        (
            "task_type is {'a': 1}, which softprompt has no task for. It has CAUSAL_LM, "
            "FEATURE_EXTRACTION, SEQ_2_SEQ_LM, SEQ_CLS, TOKEN_CLS."
        ),
    ),
} | {
    f"{length!r} tokens": (
        {"num_virtual_tokens": length},
        (
            f"num_virtual_tokens is {length!r}, but it must be a whole number from 1 up. Fetch it "
            "again."
        ),
    )
    for length in (None, 0, -3, "4", True, 3.0, [3])
}


@pytest.mark.parametrize(("config", "message"), LIES.values(), ids=LIES)
def test_a_configuration_with_a_false_value(refused, tmp_path, config, message):
    put(tmp_path, **config)
    assert refused("peft", tmp_path) == f"{tmp_path / 'adapter_config.json'}: {message}"


@pytest.mark.parametrize("length", [2, 4, 6])
def test_another_number_of_tokens_than_the_tensor(refused, tmp_path, length):
    put(tmp_path, num_virtual_tokens=length)
    assert refused("peft", tmp_path) == (
        f"{tmp_path / 'adapter_model.safetensors'}: prompt_embeddings is [3, 32], but PROMPT_TUNING"
        f" with {length} virtual tokens has {length} rows. Configuration and tensors are not from "
        "the same adapter."
    )


def test_a_decoder_that_the_backbone_lacks(refused, tmp_path):
    put(tmp_path, task_type="SEQ_2_SEQ_LM")
    assert refused("peft", tmp_path) == (
        f"{tmp_path}: task_type is SEQ_2_SEQ_LM, but 'llama' has no decoder. Name the adapter's"
        " own backbone with --backbone (backbone=… in Python)."
    )


NO_JSON = {
    b"": "Expecting value: line 1 column 1 (char 0)",
    b"{": "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    b'{"a": NaN}': "NaN is not a number in JSON",
    b'{"a": [-Infinity]}': "-Infinity is not a number in JSON",
    b'{"a": 1e999}': "1e999 overflows a float",
    b'{"peft_type": "LORA", "a": {"b": 1, "b": 2}}': "the key 'b' appears twice",
    b'\xff{"a": 1}': "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    '{"a": 1}'.encode("utf-16"): "'utf-8' codec can't decode byte 0xff in position 0",
    b'\xef\xbb\xbf{"a": 1}': "Unexpected UTF-8 BOM",
    b'{"a": ' + b"9" * 5000 + b"}": "a number has 5,000 digits",
    b"[" * 100_000: "it is nested more than 100 levels deep",
}


@pytest.mark.parametrize(("raw", "message"), NO_JSON.items(), ids=range(len(NO_JSON)))
def test_a_configuration_that_is_not_json(refused, tmp_path, raw, message):
    path = put(tmp_path) / "adapter_config.json"
    path.write_bytes(raw)
    said = refused("peft", tmp_path)
    assert said.startswith(f"{path} is not JSON in UTF-8 without duplicate keys: {message}")
    assert said.endswith(". Fetch it again.")


@pytest.mark.parametrize(
    ("raw", "kind"), [(b"[1]", "list"), (b'"x"', "str"), (b"null", "NoneType")]
)
def test_a_configuration_that_is_not_a_table(refused, tmp_path, raw, kind):
    path = put(tmp_path) / "adapter_config.json"
    path.write_bytes(raw)
    assert refused("peft", tmp_path) == (
        f"{path} holds a {kind}, but a table of keys is needed. Fetch it again."
    )


def test_a_single_file_is_not_an_adapter(refused, tmp_path):
    path = put(tmp_path) / "adapter_model.safetensors"
    assert refused("peft", path) == (
        f"{path} is a file, but a PEFT adapter is a folder. Give its folder {tmp_path}."
    )


def test_tensors_that_do_not_belong(refused, tmp_path):
    path, odd = tmp_path / "adapter_model.safetensors", torch.ones(2, 32)
    put(tmp_path, {"prompt": odd, "b": odd + 1})
    assert refused("peft", tmp_path) == (
        f"{path} has no tensor 'prompt_embeddings'; it has b, prompt. Fetch it again, or correct "
        "its configuration."
    )
    put(tmp_path, PROMPT | {"base_model.lora_A": odd})
    assert refused("peft", tmp_path) == (
        f"{path} also holds base_model.lora_A, which a soft prompt of task type CAUSAL_LM does "
        "not have. Its configuration may belong to another file."
    )
    put(tmp_path, PROMPT | {"prefix_task_cols": odd})
    assert refused("peft", tmp_path) == (
        f"{path} holds prefix_task_cols, which only MULTITASK_PROMPT_TUNING has, but "
        "adapter_config.json says PROMPT_TUNING. Configuration and tensors are not from the same adapter."  # noqa: E501  # the message
    )
    put(tmp_path, peft_type="MULTITASK_PROMPT_TUNING")
    assert "has no tensor 'prefix_task_cols'" in refused("peft", tmp_path)


@pytest.mark.parametrize(
    ("cols", "rows"),
    [
        ((2, 3), (2, 1, 32)),
        ((2, 3), (2, 32)),
        ((), ()),
        ((2, 3, 1), (3, 1, 32)),
        ((2, 3, 1), (2, 2, 32)),
        ((2, 3, 1), (2, 1)),
        ((2, 3, 1), (2, 1, 31)),
        ((2, 4, 1), (2, 1, 32)),
        ((2, 1, 1), (2, 1, 32)),
        ((0, 3, 1), (0, 1, 32)),
        ((2, 3, 0), (2, 0, 32)),
    ],
)
def test_tasks_that_do_not_fit(refused, tmp_path, cols, rows):
    more = {"prefix_task_cols": torch.ones(cols), "prefix_task_rows": torch.ones(rows)}
    put(tmp_path, PROMPT | more, peft_type="MULTITASK_PROMPT_TUNING")
    assert refused("peft", tmp_path) == (
        f"{tmp_path / 'adapter_model.safetensors'}: prefix_task_cols {[*cols]} and "
        f"prefix_task_rows {[*rows]} must be [T,3,r] and [T,r,32]. They are not from the same adapter."  # noqa: E501  # the message
    )


def head(classes: int = 2, width: int = 32, name: str = "score") -> dict[str, Tensor]:
    return PROMPT | {f"base_model.{name}.weight": torch.ones(classes, width)}


def test_heads_that_do_not_fit(refused, tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    put(tmp_path, task_type="SEQ_CLS")
    assert refused("peft", tmp_path) == (
        f"{path} has no base_model.score.weight [C,H], the trained head of SEQ_CLS. Fetch it "
        "again, or correct task_type in adapter_config.json."
    )
    put(tmp_path, PROMPT | {"base_model.score.weight": torch.ones(32)}, task_type="SEQ_CLS")
    assert "has no base_model.score.weight [C,H]" in refused("peft", tmp_path)
    put(tmp_path, head(name="classifier"), task_type="SEQ_CLS")
    assert refused("peft", tmp_path) == (
        f"{path} also holds base_model.classifier.weight, which is not part of llama's classifier "
        "(score). Only prompts and heads can be imported, not other trained weights."
    )
    put(tmp_path, head(width=16), task_type="SEQ_CLS")
    remedy = (
        "The prompt belongs to another backbone, or the file is incomplete. Name its own with "
        "--backbone (backbone=… in Python)."
    )
    assert refused("peft", tmp_path) == (
        "the file's head has output.weight [2, 16], but 'llama' takes output.weight [2, 32]. "
        f"{remedy}"
    )
    put(tmp_path, head() | {"base_model.score.bias": torch.ones(2)}, task_type="SEQ_CLS")
    assert refused("peft", tmp_path) == (
        "the file's head has output.bias [2], output.weight [2, 32], but 'llama' takes "
        f"output.weight [2, 32]. {remedy}"
    )
    for classes in (0, 1):
        put(tmp_path, head(classes), task_type="SEQ_CLS")
        assert refused("peft", tmp_path) == (
            f"the head gives {classes} scores, but a choice is among 2 or more. It may be that of "
            "a regression, which softprompt has no task for."
        )


@pytest.mark.parametrize("given", [["a"], ["a", "b", "c"], ["a", "a"]])
def test_labels_that_do_not_fit_the_head(refused, tmp_path, given):
    put(tmp_path, head(), task_type="SEQ_CLS")
    message = (
        f"the head scores 2 classes, but the labels are {', '.join(given)}. Name 2 different ones, "
        "in the order of its scores."
    )
    assert refused("peft", tmp_path, labels=given) == message
    assert refused("peft", tmp_path, task=Classify(labels=given)) == message


@pytest.mark.parametrize("task", [Generate(), Classify(verbalizer={"a": " a", "b": " b"})])
def test_a_head_that_would_not_be_used(refused, tmp_path, task):
    put(tmp_path, head(), task_type="SEQ_CLS")
    assert refused("peft", tmp_path, task=task) == (
        "the file has a trained head, which a task of another kind would not use. Leave the task "
        "and the verbalizer out."
    )


V2 = {"prefix_encoder.embedding.weight": torch.ones(3, 128)}
MLP = {
    "prefix_encoder.embedding.weight": torch.ones(3, 32),
    "prefix_encoder.trans.0.weight": torch.ones(12, 32),
    "prefix_encoder.trans.0.bias": torch.ones(12),
    "prefix_encoder.trans.2.weight": torch.ones(128, 12),
    "prefix_encoder.trans.2.bias": torch.ones(128),
}
HEAD = {"classifier.weight": torch.ones(2, 32), "classifier.bias": torch.ones(2)}
POOLER = {"bert.pooler.dense.weight": torch.ones(32, 32), "bert.pooler.dense.bias": torch.ones(32)}
SPOILT = {
    "no prefix": (HEAD, "has no tensor 'prefix_encoder.embedding.weight'; it has classifier.bias"),
    "no tensors": ({}, "has no tensor 'prefix_encoder.embedding.weight'; it has none. Give a "),
    "an MLP in part": (
        {k: v for k, v in MLP.items() if k != "prefix_encoder.trans.2.bias"},
        (
            "has prefix_encoder.trans.0.weight, prefix_encoder.trans.0.bias, "
            "prefix_encoder.trans.2.weight but not all four of its MLP: it is not a complete prefix "  # noqa: E501  # the message
            "encoder of P-tuning v2. Fetch it again."
        ),
    ),
    "more layers": (
        V2 | {"prefix_encoder.trans.4.weight": torch.ones(2)},
        "holds prefix_encoder.trans.4.weight: it is not a complete prefix encoder of P-tuning v2.",
    ),
    "another backbone's": (
        V2 | {"roberta.encoder.x": torch.ones(2), "lm_head.bias": torch.ones(2)},
        (
            "also holds lm_head.bias, roberta.encoder.x, which P-tuning v2 of bert does not have. It may "  # noqa: E501  # the message
            "be of another method, or of another backbone."
        ),
    ),
    "an MLP that does not fit": (
        MLP | {"prefix_encoder.trans.2.weight": torch.ones(128, 11)},
        (
            "holds prefix_encoder.embedding.weight [3, 32], prefix_encoder.trans.0.weight "
            "[12, 32], prefix_encoder.trans.0.bias [12], prefix_encoder.trans.2.weight [128, 11], "
            "prefix_encoder.trans.2.bias [128], but a prefix of P soft tokens is [P, 2·L·H], or "
            "[P, H] with an MLP that maps it to that. Give a checkpoint of P-tuning v2."
        ),
    ),
    "an MLP's bias that is a table": (
        MLP | {"prefix_encoder.trans.0.bias": torch.ones(3, 12)},
        "prefix_encoder.trans.0.bias [3, 12], prefix_encoder.trans.2.weight",
    ),
    "whole numbers in the MLP": (
        MLP | {"prefix_encoder.trans.0.bias": torch.ones(12, dtype=torch.int64)},
        ": prefix_encoder.trans.0.bias is int64; a tensor must be float32, bfloat16 or float16.",
    ),
    "NaN in the MLP": (
        MLP | {"prefix_encoder.trans.0.bias": torch.full((12,), float("nan"))},
        ": prefix_encoder.trans.0.bias: 12 of its 12 values are NaN or infinite, so nothing can",
    ),
    "half a classifier": (
        V2 | POOLER | {"classifier.weight": torch.ones(2, 32)},
        (
            "has a classifier that cannot be read for bert: it must be of BERT or RoBERTa, with classifier.weight "  # noqa: E501  # the message
            "[C, H] and classifier.bias [C]. Give a backbone of these, or the prefix alone."
        ),
    ),
    "a classifier that is a row": (
        V2 | POOLER | HEAD | {"classifier.weight": torch.ones(32)},
        "has a classifier that cannot be read for bert: it must be of BERT or RoBERTa, with classifier.weight",  # noqa: E501  # the message
    ),
    "NaN in the pooler": (
        V2 | POOLER | HEAD | {"bert.pooler.dense.bias": torch.full((32,), float("inf"))},
        ": dense.bias: 32 of its 32 values are NaN or infinite",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("held", "message"), SPOILT.values(), ids=SPOILT)
def test_checkpoints_of_p_tuning_v2(refused, tmp_path, held, message):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(held, path)
    said = refused("p-tuning-v2", tmp_path, family="bert")
    assert said.startswith(str(path))
    assert message in said


@pytest.mark.parametrize(
    ("head", "given"),
    [
        (HEAD | {"classifier.bias": torch.ones(3)}, "output.bias [3], output.weight [2, 32]"),
        (HEAD | {"classifier.weight": torch.ones(2, 8)}, "output.bias [2], output.weight [2, 8]"),
        (
            HEAD | {"bert.pooler.dense.bias": torch.ones(8)},
            "output.bias [2], output.weight [2, 32]",
        ),
    ],
)
def test_classifiers_of_another_width(refused, tmp_path, head, given):
    safetensors.torch.save_file(V2 | POOLER | head, tmp_path / "model.safetensors")
    said = refused("p-tuning-v2", tmp_path, family="bert")
    assert said.startswith("the file's head has dense.bias [")
    assert given in said
    assert "but 'bert' takes dense.bias [32], dense.weight [32, 32], output.bias [2]" in said


def test_a_classifier_on_a_backbone_that_their_code_lacks(refused, tmp_path):
    safetensors.torch.save_file(V2 | HEAD, tmp_path / "model.safetensors")
    said = refused("p-tuning-v2", tmp_path, family="electra")
    assert "has a classifier that cannot be read for electra" in said


def test_keys_and_values_where_they_cannot_enter(refused, tmp_path):
    safetensors.torch.save_file(V2, tmp_path / "model.safetensors")
    said = refused("p-tuning-v2", tmp_path, family=REFUSED)
    assert "so it accepts no key/value prefixes. Only vectors among" in said


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """What is opened, by any way that Python has."""
    seen: list[str] = []

    def watching(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **more: Any) -> Any:
            seen.append(f"{kind} {path}")
            return real(path, *args, **more)

        return call

    for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
        monkeypatch.setattr(module, name, watching(name, getattr(module, name)))
    return seen


def hostile(away: Path) -> dict[str, Any]:
    return {
        "base_model_name_or_path": str(away / "evil"),
        "prompt_tuning_init_state_dict_path": str(away / "trap"),
        "prompt_tuning_init_text": "x",
        "prompt_tuning_init": "TEXT",
        "tokenizer_name_or_path": str(away / "evil"),
        "tokenizer_kwargs": {"trust_remote_code": True},
        "auto_mapping": {"base_model_class": "os.system", "parent_library": "evil"},
        "modules_to_save": ["../../x"],
        "inference_mode": False,
    }


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "MULTITASK_PROMPT_TUNING"])
def test_what_a_configuration_names_is_never_opened(desk, opened, tmp_path, kind):
    """A pipe would be waited for; with a backbone given, not even its name is looked at."""
    away, folder = tmp_path / "away", tmp_path / "here"
    away.mkdir()
    folder.mkdir()
    os.mkfifo(away / "trap")
    (away / "evil").mkdir()
    (away / "evil" / "config.json").write_text("{}")
    more = {"prefix_task_cols": torch.ones(1, 3, 1), "prefix_task_rows": torch.ones(1, 1, 32)}
    held = PROMPT | (more if kind.startswith("MULTI") else {})
    put(folder, held, peft_type=kind, **hostile(away))
    own = desk.backbone("llama")
    opened.clear()
    (found,) = import_prompts("peft", folder, backbone=own).values()
    assert any("adapter_config.json" in one for one in opened)
    assert not any("away" in one for one in opened)
    assert torch.equal(found.artifact.prompt.vectors, PROMPT["prompt_embeddings"])
    out = export_prompt("peft", found, output=tmp_path / "out")
    assert not any("away" in one for one in opened)
    # None of it is passed on.
    written = (out / "adapter_config.json").read_text()
    table = json.loads(written)
    assert str(away) not in written
    assert table["base_model_name_or_path"] == "llama"
    assert table["auto_mapping"] is table["modules_to_save"] is None
    assert table["inference_mode"] is True
    assert "trust_remote_code" not in written


EVIL = """
import sys
sys.the_backbones_code_ran = True
from transformers import LlamaConfig as Evil
from transformers import LlamaForCausalLM as EvilLM
"""


def test_a_backbone_that_brings_code_is_refused(saved, tmp_path):
    base = saved("llama")
    config = json.loads((base / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.EvilLM"}}
    config["model_type"] = "evil"
    (base / "config.json").write_text(json.dumps(config))
    (base / "evil.py").write_text(EVIL)
    folder = tmp_path / "adapter"
    folder.mkdir()
    put(folder, base_model_name_or_path=str(base), tokenizer_kwargs={"trust_remote_code": True})
    with pytest.raises(BackboneError) as caught:
        import_prompts("peft", folder)
    assert str(caught.value).startswith(f"backbone '{base}' could not be loaded: ")
    assert not hasattr(__import__("sys"), "the_backbones_code_ran")


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/etc/passwd",
        "~/x",
        "~nobody-at-all/x",
        "a/b/c/d",
        "x\u0000y",
        "https://x",
        " ",
        "..",
        "x" * 5000,
    ],
)
def test_a_name_that_is_not_a_backbone(tmp_path, name):
    put(tmp_path, base_model_name_or_path=name)
    assert read_base_model("peft", tmp_path).name == name
    with pytest.raises(BackboneError) as caught:
        import_prompts("peft", tmp_path)
    assert repr(name)[1:-1][:20] in str(caught.value)


@pytest.mark.parametrize("name", [None, "", 7, ["x"], {"a": 1}, True])
def test_no_name(tmp_path, name):
    put(tmp_path, base_model_name_or_path=name)
    assert read_base_model("peft", tmp_path).name is None
    with pytest.raises(ArtifactError) as caught:
        import_prompts("peft", tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} does not name the backbone of its prompt. Load it, and give it too."
    )
