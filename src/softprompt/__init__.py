r"""Train, keep and use soft prompts: a few trained vectors that make a frozen model do a task.

Load a backbone, describe a task, train, predict with probabilities, save, load:

```python
import softprompt as sp

backbone = sp.load_backbone("builtin:smollm2-135m-instruct")
words = {"negative": " negative", "positive": " positive"}
task = sp.Classify(template="Review: {text}\nSentiment:{soft:10}", verbalizer=words)
rows = [{"text": "A delight.", "label": "positive"}, ...]
model = sp.fit(backbone, task, rows=rows, epochs=4)
for answer in model.predict(["Moving and funny.", "Dull."]):
    print(answer.label, answer.probabilities)
model.save("sentiment")
model = sp.load_model("sentiment", backbone)
```

`Ensemble([one, another])` asks several models of one backbone together, in one batch. `VLLMPrompt`
makes requests that have a vLLM server answer by a prompt.

`Prompt` is either of the two prompt values, `InputPrompt` or `KVPrefix`. `train_recipe` runs a
recipe into a run folder, as ``softprompt train`` does. `push` and `pull` share artifacts on the
Hub. Everything is imported on first use, so that ``import softprompt`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softprompt.artifact.hub import Pulled, Pushed, pull, push
    from softprompt.backbone import Backbone, Loading
    from softprompt.errors import (
        ArtifactError,
        BackboneError,
        DataError,
        HubError,
        MissingPackageError,
        PromptError,
        RecipeError,
        SoftpromptError,
        TemplateError,
        TrainingError,
        UnreachableError,
    )
    from softprompt.evaluate import (
        Ensemble,
        Model,
        Report,
        VLLMPrompt,
        export_prompt,
        import_prompts,
        load_model,
    )
    from softprompt.initialise import (
        FromLabels,
        FromPrompt,
        FromRandom,
        FromText,
        FromVocabulary,
    )
    from softprompt.injection import Decoding, bake, generate, load_backbone
    from softprompt.methods import PrefixTuning, PromptTuning, PTuning, PTuningV2
    from softprompt.prompt import InputPrompt, KVPrefix, Prompt
    from softprompt.recipe import Recipe, make_recipe, read_recipe
    from softprompt.tasks import Answer, Classify, Generate
    from softprompt.train import RunFolder, Training
    from softprompt.train import train as train_recipe
    from softprompt.train.fit import fit

_HOMES = {
    "softprompt.artifact.hub": ("Pulled", "Pushed", "pull", "push"),
    "softprompt.backbone": ("Backbone", "Loading"),
    "softprompt.errors": (
        "ArtifactError",
        "BackboneError",
        "DataError",
        "HubError",
        "MissingPackageError",
        "PromptError",
        "RecipeError",
        "SoftpromptError",
        "TemplateError",
        "TrainingError",
        "UnreachableError",
    ),
    "softprompt.evaluate": (
        "Ensemble",
        "Model",
        "Report",
        "VLLMPrompt",
        "export_prompt",
        "import_prompts",
        "load_model",
    ),
    "softprompt.initialise": (
        "FromLabels",
        "FromPrompt",
        "FromRandom",
        "FromText",
        "FromVocabulary",
    ),
    "softprompt.injection": ("Decoding", "bake", "generate", "load_backbone"),
    "softprompt.methods": ("PTuning", "PTuningV2", "PrefixTuning", "PromptTuning"),
    "softprompt.prompt": ("InputPrompt", "KVPrefix", "Prompt"),
    "softprompt.recipe": ("Recipe", "make_recipe", "read_recipe"),
    "softprompt.tasks": ("Answer", "Classify", "Generate"),
    "softprompt.train": ("RunFolder", "Training"),
    "softprompt.train.fit": ("fit",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
# Under another name here, because `softprompt.train` is the folder.
_RENAMED = {"train_recipe": ("softprompt.train", "train")}

__all__ = [
    "Answer",
    "ArtifactError",
    "Backbone",
    "BackboneError",
    "Classify",
    "DataError",
    "Decoding",
    "Ensemble",
    "FromLabels",
    "FromPrompt",
    "FromRandom",
    "FromText",
    "FromVocabulary",
    "Generate",
    "HubError",
    "InputPrompt",
    "KVPrefix",
    "Loading",
    "MissingPackageError",
    "Model",
    "PTuning",
    "PTuningV2",
    "PrefixTuning",
    "Prompt",
    "PromptError",
    "PromptTuning",
    "Pulled",
    "Pushed",
    "Recipe",
    "RecipeError",
    "Report",
    "RunFolder",
    "SoftpromptError",
    "TemplateError",
    "Training",
    "TrainingError",
    "UnreachableError",
    "VLLMPrompt",
    "bake",
    "export_prompt",
    "fit",
    "generate",
    "import_prompts",
    "load_backbone",
    "load_model",
    "make_recipe",
    "pull",
    "push",
    "read_recipe",
    "train_recipe",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    home, own = _RENAMED.get(name) or (_HOME.get(name), name)
    if home is None:
        msg = f"module 'softprompt' has no attribute {name!r}"
        raise AttributeError(msg)
    value: object = vars(import_module(home))[own]
    globals()[name] = value  # asked for once only
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
