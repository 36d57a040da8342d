r"""Train, store and apply soft prompts: trained vectors that make a frozen model do a task.

Describe a task, train, predict with probabilities, save:

```python
import softprompt as sp

words = {"negative": " negative", "positive": " positive"}
task = sp.Classify("Review: {text}\nSentiment:{soft:10}", verbalizer=words)
rows = [{"text": "A delight.", "label": "positive"}, ...]
model = sp.fit("builtin:smollm2-135m-instruct", task, rows)
for prediction in model.predict(["Moving and funny.", "Dull."]):
    print(prediction.label, prediction.probabilities)
model.save("sentiment")
```

`PromptModel.from_pretrained` loads it again. `Prompt` is either of the two prompt values,
`InputPrompt` and `KVPrefix`. A `Callback` is called with each `Event` of a run. Inspecting a prompt
is in `softprompt.analysis`, a classifier and a regressor for scikit-learn in `softprompt.sklearn`.

Warnings are of the class `SoftpromptWarning`; log messages have the name ``softprompt``. Names are
imported on first use, so that ``import softprompt`` is fast.
"""

import logging
from typing import TYPE_CHECKING

from softprompt._lazy import gather_lazily

if TYPE_CHECKING:
    from softprompt.analysis.attribution import explain_prediction, explain_row
    from softprompt.analysis.explanation import Explanation
    from softprompt.analysis.pruning import PruningResult, prune
    from softprompt.backbone.model import Backbone, BatchInputs
    from softprompt.compare.api import compare_methods, find_learning_rate
    from softprompt.compare.comparison import Comparison, LearningRateSearch
    from softprompt.compare.engines.ray import RayCluster
    from softprompt.errors import (
        ArtifactError,
        BackboneError,
        DataError,
        HubError,
        MissingPackageError,
        PromptError,
        RecipeError,
        SoftpromptError,
        SoftpromptWarning,
        TemplateError,
        TrainingError,
        UnreachableError,
    )
    from softprompt.hub.repository import PullResult, PushResult, pull, push
    from softprompt.inference import Ensemble, EvaluationReport, PromptModel, load_model
    from softprompt.injection import Decoding, forward, generate, load_backbone, to_kv_prefix
    from softprompt.interop import VLLMPrompt, export_prompt, import_prompt, import_prompts
    from softprompt.methods import (
        MultitaskPromptTuning,
        PrefixTuning,
        PromptTuning,
        PTuning,
        PTuningV2,
    )
    from softprompt.methods.initializers import (
        FromDemonstrations,
        FromLabels,
        FromPrompt,
        FromRandom,
        FromText,
        FromVocabulary,
    )
    from softprompt.prompt import InputPrompt, KVPrefix, Prompt
    from softprompt.recipe import Recipe, load_recipe, make_recipe, read_recipe
    from softprompt.recipe.drafting import RecipeDraft, draft_recipe
    from softprompt.recipe.multitask import (
        MultitaskRecipe,
        make_multitask_recipe,
        read_multitask_recipe,
    )
    from softprompt.serve.client import AsyncClient, Client
    from softprompt.tasks import (
        AnswerPrediction,
        ChoicePrediction,
        Choose,
        Classify,
        Extract,
        Generate,
        LabelSetPrediction,
        NumberPrediction,
        Prediction,
        Regress,
        Tag,
        TaggedSpan,
        TagPrediction,
    )
    from softprompt.train.api import fit, train_recipe
    from softprompt.train.automatic import fit_data
    from softprompt.train.config import TrainingConfig
    from softprompt.train.events import (
        Callback,
        Evaluation,
        Event,
        Finished,
        FoldProgress,
        PhaseStarted,
        PrecomputePlanned,
        PrecomputeProgress,
        SearchProgress,
        Started,
        Step,
        TrainingWarning,
    )
    from softprompt.train.multitask import check_multitask, train_multitask
    from softprompt.train.run_dir import RunDir
    from softprompt.train.setup import evaluate_hard_prompt
    from softprompt.train.validation import CheckResult, check_recipe

    __version__: str

# The module of each public name.
_HOMES = {
    "softprompt.backbone.model": ("Backbone", "BatchInputs"),
    "softprompt.compare.api": ("compare_methods", "find_learning_rate"),
    "softprompt.compare.comparison": ("Comparison", "LearningRateSearch"),
    "softprompt.compare.engines.ray": ("RayCluster",),
    "softprompt.errors": (
        "ArtifactError",
        "BackboneError",
        "DataError",
        "HubError",
        "MissingPackageError",
        "PromptError",
        "RecipeError",
        "SoftpromptError",
        "SoftpromptWarning",
        "TemplateError",
        "TrainingError",
        "UnreachableError",
    ),
    "softprompt.analysis.attribution": ("explain_prediction", "explain_row"),
    "softprompt.analysis.explanation": ("Explanation",),
    "softprompt.analysis.pruning": ("PruningResult", "prune"),
    "softprompt.hub.repository": ("PullResult", "PushResult", "pull", "push"),
    "softprompt.inference": ("Ensemble", "EvaluationReport", "PromptModel", "load_model"),
    "softprompt.injection": ("Decoding", "forward", "generate", "load_backbone", "to_kv_prefix"),
    "softprompt.interop": ("VLLMPrompt", "export_prompt", "import_prompt", "import_prompts"),
    "softprompt.methods": (
        "MultitaskPromptTuning",
        "PrefixTuning",
        "PromptTuning",
        "PTuning",
        "PTuningV2",
    ),
    "softprompt.methods.initializers": (
        "FromDemonstrations",
        "FromLabels",
        "FromPrompt",
        "FromRandom",
        "FromText",
        "FromVocabulary",
    ),
    "softprompt.prompt": ("InputPrompt", "KVPrefix", "Prompt"),
    "softprompt.recipe": ("Recipe", "load_recipe", "make_recipe", "read_recipe"),
    "softprompt.recipe.drafting": ("RecipeDraft", "draft_recipe"),
    "softprompt.recipe.multitask": (
        "MultitaskRecipe",
        "make_multitask_recipe",
        "read_multitask_recipe",
    ),
    "softprompt.serve.client": ("AsyncClient", "Client"),
    "softprompt.tasks": (
        "AnswerPrediction",
        "ChoicePrediction",
        "Choose",
        "Classify",
        "Extract",
        "Generate",
        "LabelSetPrediction",
        "NumberPrediction",
        "Prediction",
        "Regress",
        "Tag",
        "TaggedSpan",
        "TagPrediction",
    ),
    "softprompt.train.api": ("fit", "train_recipe"),
    "softprompt.train.automatic": ("fit_data",),
    "softprompt.train.config": ("TrainingConfig",),
    "softprompt.train.events": (
        "Callback",
        "Evaluation",
        "Event",
        "Finished",
        "FoldProgress",
        "PhaseStarted",
        "PrecomputePlanned",
        "PrecomputeProgress",
        "SearchProgress",
        "Started",
        "Step",
        "TrainingWarning",
    ),
    "softprompt.train.multitask": ("check_multitask", "train_multitask"),
    "softprompt.train.run_dir": ("RunDir",),
    "softprompt.train.setup": ("evaluate_hard_prompt",),
    "softprompt.train.validation": ("CheckResult", "check_recipe"),
}
_get_name, __dir__ = gather_lazily(__name__, _HOMES)
# As a library should: without a handler of the application, log messages are not printed.
logging.getLogger(__name__).addHandler(logging.NullHandler())
# PEFT imports bitsandbytes, which then warns of a missing package also where nothing is quantized.
logging.getLogger("bitsandbytes").addHandler(logging.NullHandler())

__all__ = [
    "AnswerPrediction",
    "ArtifactError",
    "AsyncClient",
    "Backbone",
    "BackboneError",
    "BatchInputs",
    "Callback",
    "CheckResult",
    "ChoicePrediction",
    "Choose",
    "Classify",
    "Client",
    "Comparison",
    "DataError",
    "Decoding",
    "Ensemble",
    "Evaluation",
    "EvaluationReport",
    "Event",
    "Explanation",
    "Extract",
    "Finished",
    "FoldProgress",
    "FromDemonstrations",
    "FromLabels",
    "FromPrompt",
    "FromRandom",
    "FromText",
    "FromVocabulary",
    "Generate",
    "HubError",
    "InputPrompt",
    "KVPrefix",
    "LabelSetPrediction",
    "LearningRateSearch",
    "MissingPackageError",
    "MultitaskPromptTuning",
    "MultitaskRecipe",
    "NumberPrediction",
    "PTuning",
    "PTuningV2",
    "PhaseStarted",
    "PrecomputePlanned",
    "PrecomputeProgress",
    "Prediction",
    "PrefixTuning",
    "Prompt",
    "PromptError",
    "PromptModel",
    "PromptTuning",
    "PruningResult",
    "PullResult",
    "PushResult",
    "RayCluster",
    "Recipe",
    "RecipeDraft",
    "RecipeError",
    "Regress",
    "RunDir",
    "SearchProgress",
    "SoftpromptError",
    "SoftpromptWarning",
    "Started",
    "Step",
    "Tag",
    "TagPrediction",
    "TaggedSpan",
    "TemplateError",
    "TrainingConfig",
    "TrainingError",
    "TrainingWarning",
    "UnreachableError",
    "VLLMPrompt",
    "check_multitask",
    "check_recipe",
    "compare_methods",
    "draft_recipe",
    "evaluate_hard_prompt",
    "explain_prediction",
    "explain_row",
    "export_prompt",
    "find_learning_rate",
    "fit",
    "fit_data",
    "forward",
    "generate",
    "import_prompt",
    "import_prompts",
    "load_backbone",
    "load_model",
    "load_recipe",
    "make_multitask_recipe",
    "make_recipe",
    "prune",
    "pull",
    "push",
    "read_multitask_recipe",
    "read_recipe",
    "to_kv_prefix",
    "train_multitask",
    "train_recipe",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name != "__version__":
        return _get_name(name)
    from importlib.metadata import version

    globals()[name] = version("softprompt")  # so that this function is called once for each name
    return globals()[name]
