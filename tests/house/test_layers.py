"""A file imports its own folder and what stands below, never up; and what is done in one place.

The guard reads source text, so imports inside functions and under TYPE_CHECKING count too.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

LAYERS = (
    ("errors", "prompt"),
    ("backbone",),
    ("injection", "initialise"),
    ("methods",),
    ("data", "artifact"),
    ("tasks",),
    ("recipe", "evaluate"),
    ("train", "compare"),
    ("serve",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}
# Neighbours that may know each other, one way: a prompt says with the common errors that it does
# not fit, and a prompt may start as the keys and values of a text, which injection reads off.
NEIGHBOURS = {("prompt", "errors"), ("initialise", "injection")}
# What a part may not reach, even through others: serving knows no methods, tasks neither.
OUT_OF_REACH = {
    "tasks": {"methods"},
    "serve": {"methods", "recipe", "train", "compare"},
}
ROOF = "softprompt itself"

MODEL_CLASS = re.compile(r"AutoModel\w*|\w+Model|\w+For[A-Z]\w+|\w+LMHeadModel")
MODEL_MODULE = re.compile(r"transformers\.models(\.|$)")
UNSAFE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# Who may call torch.save, and why. Nobody may call torch.load.
MAY_SAVE = {
    "softprompt.artifact.formats.vllm_wire": "written and never read: vLLM takes vectors so",
}
# Other people's models have to be asked what they have; our own types are known.
MAY_ASK = {"backbone", "injection"}


def part(module: str) -> str:
    """The file or folder right under softprompt that a module belongs to; the roof for itself."""
    _, _, rest = module.partition(".")
    return rest.split(".")[0] or ROOF


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.ImportFrom():
                yield node.lineno, "."
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def ours(name: str) -> bool:
    return name == "softprompt" or name.startswith("softprompt.")


def target(name: str) -> str:
    """The part an imported name belongs to; whatever is no part comes from the roof."""
    found = part(name)
    return found if found in HEIGHT else ROOF


def climbs(here: str, there: str) -> str | None:
    """Why ``here`` may not import ``there``; None if it may."""
    if here in (there, ROOF) or (here, there) in NEIGHBOURS:
        return None
    if here not in HEIGHT:
        return f"{here} stands in no layer: give it one in {__name__}.LAYERS"
    if there == ROOF:
        return f"{here} imports the roof, softprompt/__init__.py; import the part itself"
    if HEIGHT[there] >= HEIGHT[here]:
        where = "above it" if HEIGHT[there] > HEIGHT[here] else "its neighbour"
        return f"{here} (layer {HEIGHT[here]}) imports {there} (layer {HEIGHT[there]}), {where}"
    if there in OUT_OF_REACH.get(here, ()):
        return f"{here} may not know {there}"
    return None


def layer_faults(module: str, tree: ast.Module) -> Iterator[str]:
    for line, name in imported(tree):
        if name == ".":
            yield f"{module}:{line}: relative import; write the absolute name"
        elif ours(name) and (why := climbs(part(module), target(name))):
            yield f"{module}:{line}: {why}"


def model_faults(module: str, tree: ast.Module) -> Iterator[str]:
    if part(module) == "backbone":
        return
    used = [
        (node.lineno, f"transformers.{node.attr}")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "transformers"
    ]
    for line, name in [*imported(tree), *used]:
        if name.split(".")[0] != "transformers":
            continue
        if MODEL_MODULE.match(name) or MODEL_CLASS.fullmatch(name.rsplit(".", 1)[-1]):
            yield f"{module}:{line}: {name} outside backbone/"


def call_fault(module: str, call: ast.Call) -> str | None:
    """What is wrong with one call, wherever it is not allowed to stand."""
    here = part(module)
    match call:
        case ast.Call(func=ast.Name(id="print")) if here not in {"cli", "__main__"}:
            return "print outside cli/"
        case ast.Call(func=ast.Name(id="hasattr" | "getattr" as asks)) if here not in MAY_ASK:
            match call.args:
                case [_, ast.Constant(value=str(name)), *_]:
                    return f"{asks}(…, {name!r}) outside {' and '.join(sorted(MAY_ASK))}"
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
    for line, name in imported(tree):
        if name.split(".")[0] in UNSAFE or name in {"torch.load", "torch.save"}:
            yield f"{module}:{line}: {name} runs what it reads; use safetensors or JSON"


def faults(module: str, source: str) -> list[str]:
    """Everything in one module's text that the house does not allow."""
    tree = ast.parse(source)
    guards = (layer_faults, model_faults, call_faults, pickle_faults)
    return [fault for guard in guards for fault in guard(module, tree)]


def reached(sources: dict[str, str], start: str) -> dict[str, str]:
    """The modules that ``start`` reaches through any chain of imports, each with its importer.

    Importing ``a.b.c`` runs ``a.b`` too; the roof alone is left out, since it loads on demand.
    """
    seen = {start: ""}
    todo = [start]
    while todo:
        here = todo.pop()
        for _, name in imported(ast.parse(sources[here])):
            parts = name.split(".") if ours(name) else []
            for module in (".".join(parts[:end]) for end in range(2, len(parts) + 1)):
                if module in sources and module not in seen:
                    seen[module] = here
                    todo.append(module)
    return seen


def reach_faults(sources: dict[str, str]) -> list[str]:
    """Chains of imports that end where the first part may not reach."""
    found = []
    for start in sources:
        seen = reached(sources, start)
        for end in (m for m in seen if part(m) in OUT_OF_REACH.get(part(start), ())):
            chain = [end]
            while chain[-1] != start:
                chain.append(seen[chain[-1]])
            found.append(" → ".join(reversed(chain)))
    return found


def test_every_module_keeps_to_its_layer(sources: dict[str, str]) -> None:
    found = [fault for module, source in sources.items() for fault in faults(module, source)]
    assert not found, "\n".join(found)


def test_who_may_save_does(sources: dict[str, str]) -> None:
    """An entry that has lost its reason is taken out."""
    calls = [ast.walk(ast.parse(sources[module])) for module in MAY_SAVE]
    assert all(
        "torch.save" in {ast.unparse(n.func) for n in c if isinstance(n, ast.Call)} for c in calls
    )


def test_every_part_stands_in_a_layer(sources: dict[str, str]) -> None:
    assert {part(module) for module in sources} <= {*HEIGHT, ROOF}


def test_nothing_is_reached_by_a_detour(sources: dict[str, str]) -> None:
    found = reach_faults(sources)
    assert not found, "\n".join(found)


PLANTED = [
    ("softprompt.methods.base", "from softprompt.tasks.base import Task", "above it"),
    ("softprompt.errors", "import softprompt.prompt", "its neighbour"),
    ("softprompt.train.loop", "from softprompt import compare", "its neighbour"),
    ("softprompt.compare.arms", "import softprompt.train.loop", "its neighbour"),
    ("softprompt.tasks.classify", "from softprompt.methods import METHODS", "may not know methods"),
    ("softprompt.serve.app", "def f():\n    import softprompt.methods", "may not know methods"),
    ("softprompt.serve.app", "from softprompt.recipe import Recipe", "may not know recipe"),
    ("softprompt.serve.app", "from softprompt.train import fit", "may not know train"),
    ("softprompt.serve.app", "from softprompt import compare", "may not know compare"),
    ("softprompt.data.read", "from softprompt import load", "imports the roof"),
    ("softprompt.data.read", "import softprompt", "imports the roof"),
    ("softprompt.data.read", "from . import template", "relative import"),
    ("softprompt.data.read", "from ..errors import DataError", "relative import"),
    ("softprompt.data.read", "import_module('softprompt.cli')", "above it"),
    ("softprompt.data.read", "importlib.import_module('softprompt.cli')", "above it"),
    ("softprompt.attic", "from softprompt.errors import DataError", "stands in no layer"),
    ("softprompt.train.loop", "from transformers import AutoModel", "outside backbone/"),
    ("softprompt.train.loop", "from transformers import BertForMaskedLM", "outside backbone/"),
    ("softprompt.train.loop", "from transformers import PreTrainedModel", "outside backbone/"),
    ("softprompt.injection", "from transformers.models.bert import x", "outside backbone/"),
    ("softprompt.injection", "import transformers.models.t5", "outside backbone/"),
    ("softprompt.tasks", "import transformers\ntransformers.AutoModelForCausalLM", "outside back"),
    ("softprompt.data.read", "print('rows')", "print outside cli/"),
    ("softprompt.data.read", "hasattr(prompt, 'keys')", "hasattr(…, 'keys')"),
    ("softprompt.data.read", "getattr(prompt, 'keys', None)", "getattr(…, 'keys')"),
    ("softprompt.artifact.load", "import pickle", "runs what it reads"),
    ("softprompt.artifact.load", "from joblib import load", "runs what it reads"),
    ("softprompt.artifact.load", "from torch import load", "runs what it reads"),
    ("softprompt.artifact.load", "state = torch.load(path)", "torch.load pickles"),
    ("softprompt.train.checkpoint", "torch.save(state, path)", "torch.save pickles"),
    ("softprompt.artifact.formats.vllm_write", "torch.save(state, path)", "torch.save pickles"),
    ("softprompt.artifact.formats.vllm_wire", "torch.load(path)", "torch.load pickles"),
    ("softprompt.artifact.formats.vllm_wire", "from torch import save", "runs what it reads"),
    ("softprompt.artifact.formats.vllm_wire", "import pickle", "runs what it reads"),
    ("softprompt.artifact.load", "np.load(path, allow_pickle=True)", "allow_pickle"),
]


@pytest.mark.parametrize(("module", "source", "message"), PLANTED)
def test_the_guard_catches(module: str, source: str, message: str) -> None:
    found = faults(module, source)
    assert len(found) == 1
    assert message in found[0]
    assert found[0].startswith(f"{module}:")


ALLOWED = [
    ("softprompt", "from softprompt.cli import main"),
    ("softprompt.prompt", "from softprompt.errors import PromptError"),
    ("softprompt.methods.base", "from softprompt.methods.other import x\nimport transformers"),
    ("softprompt.serve.app", "from softprompt.tasks import base\nfrom softprompt import errors"),
    ("softprompt.cli.train", "print('done')"),
    ("softprompt.backbone.load", "from transformers import AutoModel\nhasattr(model, 'lm_head')"),
    ("softprompt.injection.sites", "from transformers import AttentionInterface"),
    ("softprompt.data.read", "getattr(module, name)"),
    ("softprompt.artifact.formats.vllm_wire", "torch.save(embeds, made)"),
    ("softprompt.cli.init", "from transformers import AutoTokenizer, PretrainedConfig"),
]


@pytest.mark.parametrize(("module", "source"), ALLOWED)
def test_the_guard_lets_pass(module: str, source: str) -> None:
    assert faults(module, source) == []


def test_the_guard_catches_a_detour() -> None:
    planted = {
        "softprompt.serve": "from softprompt.artifact.load import load",
        "softprompt.artifact": "from softprompt.artifact import convert",
        "softprompt.artifact.convert": "from softprompt.methods.base import Method",
        "softprompt.artifact.load": "",
        "softprompt.methods": "",
        "softprompt.methods.base": "",
    }
    assert "softprompt.serve → softprompt.artifact → softprompt.artifact.convert → " in "\n".join(
        reach_faults(planted)
    )
    planted["softprompt.artifact"] = ""
    assert reach_faults(planted) == []


def test_the_command_line_starts_without_torch() -> None:
    program = (
        "import sys, softprompt.cli; print(sorted({'torch', 'transformers'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
