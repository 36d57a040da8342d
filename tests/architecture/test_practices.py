"""Practices that are allowed in one package only, or nowhere: model classes, printing, pickles."""

import ast
import re
from collections.abc import Iterator

import pytest

from support.source import iterate_imports

MODEL_CLASS = re.compile(r"AutoModel\w*|\w+Model|\w+For[A-Z]\w+|\w+LMHeadModel")
MODEL_MODULE = re.compile(r"transformers\.models(\.|$)")
UNSAFE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# The modules that may call torch.save, and why; torch.load is not allowed anywhere.
MAY_SAVE = {
    "softprompt.interop.vllm_client": "written and never read: vLLM accepts vectors in this form",
}
# Models of other libraries must be inspected; our own types are known.
MAY_INSPECT = {"backbone", "injection"}


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def model_faults(module: str, tree: ast.Module) -> Iterator[str]:
    if package_of(module) == "backbone":
        return
    used = [
        (node.lineno, f"transformers.{node.attr}")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "transformers"
    ]
    for line, name in [*iterate_imports(tree), *used]:
        if name.split(".")[0] != "transformers":
            continue
        if MODEL_MODULE.match(name) or MODEL_CLASS.fullmatch(name.rsplit(".", 1)[-1]):
            yield f"{module}:{line}: {name} outside backbone/"


def call_fault(module: str, call: ast.Call) -> str | None:
    """What is wrong with one call; None if it is allowed."""
    here = package_of(module)
    match call:
        case ast.Call(func=ast.Name(id="print")) if here not in {"cli", "__main__"}:
            return "print outside cli/"
        case ast.Call(func=ast.Name(id="hasattr" | "getattr" as function)) if (
            here not in MAY_INSPECT
        ):
            match call.args:
                case [_, ast.Constant(value=str(name)), *_]:
                    return f"{function}(…, {name!r}) outside {' and '.join(sorted(MAY_INSPECT))}"
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="save")) if (
            module in MAY_SAVE
        ):
            return None
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save" as verb)):
            return f"torch.{verb} pickles; use safetensors"
    if any(word.arg == "allow_pickle" for word in call.keywords):
        return "allow_pickle"
    return None


def call_faults(module: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (fault := call_fault(module, node)):
            yield f"{module}:{node.lineno}: {fault}"


def pickle_faults(module: str, tree: ast.Module) -> Iterator[str]:
    for line, name in iterate_imports(tree):
        if name.split(".")[0] in UNSAFE or name in {"torch.load", "torch.save"}:
            yield f"{module}:{line}: {name} runs what it reads; use safetensors or JSON"


def practice_faults(module: str, source: str) -> list[str]:
    """Everything in one module's source that is not allowed there."""
    tree = ast.parse(source)
    guards = (model_faults, call_faults, pickle_faults)
    return [fault for guard in guards for fault in guard(module, tree)]


def test_every_module_follows_the_practices(sources: dict[str, str]) -> None:
    faults = [f for module, source in sources.items() for f in practice_faults(module, source)]
    assert not faults, "\n".join(faults)


def test_every_exception_is_used(sources: dict[str, str]) -> None:
    """Remove an entry that is not needed."""
    assert {*MAY_SAVE} <= {*sources}
    for module in MAY_SAVE:
        calls = [n for n in ast.walk(ast.parse(sources[module])) if isinstance(n, ast.Call)]
        assert "torch.save" in {ast.unparse(call.func) for call in calls}, module


PLANTED = [
    ("softprompt.train.trainer", "from transformers import AutoModel", "outside backbone/"),
    ("softprompt.train.trainer", "from transformers import BertForMaskedLM", "outside backbone/"),
    ("softprompt.train.trainer", "from transformers import PreTrainedModel", "outside backbone/"),
    ("softprompt.injection", "from transformers.models.bert import x", "outside backbone/"),
    ("softprompt.injection", "import transformers.models.t5", "outside backbone/"),
    ("softprompt.tasks", "import transformers\ntransformers.AutoModelForCausalLM", "outside back"),
    ("softprompt.data.sources", "print('rows')", "print outside cli/"),
    ("softprompt.compare.runner", "print('rows')", "print outside cli/"),
    ("softprompt.data.sources", "hasattr(prompt, 'keys')", "hasattr(…, 'keys')"),
    ("softprompt.data.sources", "getattr(prompt, 'keys', None)", "getattr(…, 'keys')"),
    ("softprompt.artifact.store", "import pickle", "runs what it reads"),
    ("softprompt.artifact.store", "from joblib import load", "runs what it reads"),
    ("softprompt.artifact.store", "from torch import load", "runs what it reads"),
    ("softprompt.artifact.store", "state = torch.load(path)", "torch.load pickles"),
    ("softprompt.train.checkpoint", "torch.save(state, path)", "torch.save pickles"),
    ("softprompt.interop.vllm_export", "torch.save(state, path)", "torch.save pickles"),
    ("softprompt.interop.vllm_client", "torch.load(path)", "torch.load pickles"),
    ("softprompt.interop.vllm_client", "from torch import save", "runs what it reads"),
    ("softprompt.interop.vllm_client", "import pickle", "runs what it reads"),
    ("softprompt.artifact.store", "np.load(path, allow_pickle=True)", "allow_pickle"),
]


@pytest.mark.parametrize(("module", "source", "message"), PLANTED)
def test_the_guard_catches(module: str, source: str, message: str) -> None:
    faults = practice_faults(module, source)
    assert len(faults) == 1
    assert message in faults[0]
    assert faults[0].startswith(f"{module}:")


ALLOWED = [
    ("softprompt.methods.base", "import transformers"),
    ("softprompt.cli.console", "print('done')"),
    ("softprompt.__main__", "print('done')"),
    ("softprompt.backbone.loading", "from transformers import AutoModel\nhasattr(m, 'lm_head')"),
    ("softprompt.injection.forward", "from transformers import AttentionInterface"),
    ("softprompt.data.sources", "getattr(module, name)"),
    ("softprompt.interop.vllm_client", "torch.save(embeds, buffer)"),
    ("softprompt.recipe.drafting", "from transformers import AutoTokenizer, PretrainedConfig"),
]


@pytest.mark.parametrize(("module", "source"), ALLOWED)
def test_the_guard_lets_pass(module: str, source: str) -> None:
    assert practice_faults(module, source) == []
