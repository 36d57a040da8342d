"""How transformers' sequence classifiers name the modules of their heads, by family."""

from collections.abc import Mapping
from dataclasses import dataclass

from softprompt.errors import ArtifactError


@dataclass(frozen=True)
class HeadLayout:
    """The head of a family.

    Args:
        kind: its kind in softprompt, as ``task.head`` names it.
        names: for each module in softprompt, its name in transformers.
        outer: the modules, as transformers names them, that PEFT does not train by default.
    """

    kind: str
    names: Mapping[str, str]
    outer: tuple[str, ...] = ()

    def from_foreign(self, key: str) -> str | None:
        """The name in softprompt of a parameter; None if the head has no such parameter."""
        for module, foreign in self.names.items():
            if key.startswith(f"{foreign}."):
                return f"{module}.{key.removeprefix(f'{foreign}.')}"
        return None

    def to_foreign(self, key: str) -> str:
        """The name in transformers of a parameter such as ``output.weight``."""
        module, parameter = key.rsplit(".", 1)
        return f"{self.names[module]}.{parameter}"


_ROBERTA = {"dense": "classifier.dense", "output": "classifier.out_proj"}
_ENCODERS = {
    "bert": HeadLayout(
        "mlp-tanh", {"dense": "bert.pooler.dense", "output": "classifier"}, ("pooler",)
    ),
    "albert": HeadLayout(
        "mlp-tanh", {"dense": "albert.pooler", "output": "classifier"}, ("pooler",)
    ),
    "roberta": HeadLayout("mlp-tanh", _ROBERTA),
    "xlm-roberta": HeadLayout("mlp-tanh", _ROBERTA),
    "camembert": HeadLayout("mlp-tanh", _ROBERTA),
    "mpnet": HeadLayout("mlp-tanh", _ROBERTA),
    "electra": HeadLayout("mlp-gelu", _ROBERTA),
    "distilbert": HeadLayout(
        "mlp-relu", {"dense": "pre_classifier", "output": "classifier"}, ("pre_classifier",)
    ),
    "deberta-v2": HeadLayout(
        "mlp-gelu", {"dense": "pooler.dense", "output": "classifier"}, ("pooler",)
    ),
    "modernbert": HeadLayout(
        "mlp-norm", {"dense": "head.dense", "norm": "head.norm", "output": "classifier"}, ("head",)
    ),
}
_CAUSAL = HeadLayout("linear-no-bias", {"output": "score"})


def get_head_layout(family: str, *, causal: bool) -> HeadLayout:
    """The head of transformers' sequence classifier of a family.

    Args:
        family: the model type.
        causal: whether it is a causal language model.

    Raises:
        ArtifactError: the family is not listed here.
    """
    if causal:
        return _CAUSAL
    if family not in _ENCODERS:
        msg = (
            f"the head of {family}'s sequence classifier is unknown. Known are those of "
            f"{', '.join(_ENCODERS)} and of causal families. Label words need no head."
        )
        raise ArtifactError(msg)
    return _ENCODERS[family]
