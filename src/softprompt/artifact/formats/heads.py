"""How transformers' sequence classifiers name the modules of their heads, by family."""

from collections.abc import Mapping
from dataclasses import dataclass

from softprompt.errors import ArtifactError


@dataclass(frozen=True)
class HeadForm:
    """The head of a family.

    Args:
        kind: what softprompt calls it.
        names: for each module of ours, theirs.
        outer: their modules that PEFT does not train unless told.
    """

    kind: str
    names: Mapping[str, str]
    outer: tuple[str, ...] = ()

    def ours(self, key: str) -> str | None:
        """Our name of a parameter of theirs."""
        for own, theirs in self.names.items():
            if key.startswith(f"{theirs}."):
                return f"{own}.{key.removeprefix(f'{theirs}.')}"
        return None

    def theirs(self, key: str) -> str:
        """Their name of a parameter of ours, such as ``output.weight``."""
        module, parameter = key.rsplit(".", 1)
        return f"{self.names[module]}.{parameter}"


_ROBERTA = {"dense": "classifier.dense", "output": "classifier.out_proj"}
_ENCODERS = {
    "bert": HeadForm("mlp", {"dense": "bert.pooler.dense", "output": "classifier"}, ("pooler",)),
    "albert": HeadForm("mlp", {"dense": "albert.pooler", "output": "classifier"}, ("pooler",)),
    "roberta": HeadForm("mlp", _ROBERTA),
    "xlm-roberta": HeadForm("mlp", _ROBERTA),
    "camembert": HeadForm("mlp", _ROBERTA),
    "mpnet": HeadForm("mlp", _ROBERTA),
    "electra": HeadForm("mlp-gelu", _ROBERTA),
    "distilbert": HeadForm(
        "mlp-relu", {"dense": "pre_classifier", "output": "classifier"}, ("pre_classifier",)
    ),
    "deberta-v2": HeadForm(
        "mlp-gelu", {"dense": "pooler.dense", "output": "classifier"}, ("pooler",)
    ),
    "modernbert": HeadForm(
        "mlp-norm", {"dense": "head.dense", "norm": "head.norm", "output": "classifier"}, ("head",)
    ),
}
_CAUSAL = HeadForm("unbiased", {"output": "score"})


def head_form(family: str, *, causal: bool) -> HeadForm:
    """The head that transformers' classifier of a family has.

    Raises:
        ArtifactError: it is not known.
    """
    if causal:
        return _CAUSAL
    if family not in _ENCODERS:
        msg = (
            f"what head {family}'s sequence classifier has is not known here. Known are "
            f"{', '.join(_ENCODERS)} and causal families. Label words need no head."
        )
        raise ArtifactError(msg)
    return _ENCODERS[family]
