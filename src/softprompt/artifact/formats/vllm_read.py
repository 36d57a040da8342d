"""Open a folder that ``softprompt export vllm`` wrote, and check all of it first."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from softprompt.artifact.agree import DTYPES
from softprompt.artifact.formats.reading import checked, contents, found
from softprompt.artifact.formats.reading import tensors as read_tensors
from softprompt.artifact.formats.vllm_plan import (
    PLAN,
    TABLE,
    TOKENIZER,
    VECTORS,
    VLLMPlan,
    parse,
)
from softprompt.artifact.source import Source
from softprompt.errors import ArtifactError


@dataclass(frozen=True, eq=False)
class Opened:
    """What an export holds.

    Args:
        plan: what requests are made by.
        vectors: of the soft tokens.
        table: of the real tokens.
        tokenizer: the backbone's.
    """

    plan: VLLMPlan
    vectors: Float[Tensor, "P H"]
    table: Float[Tensor, "V H"]
    tokenizer: PreTrainedTokenizerBase


def read(folder: Path) -> Opened:
    """Read an export; no file outside the folder is opened, and nothing in it runs.

    Raises:
        ArtifactError: a file is missing, damaged, changed or not what the plan says.
    """
    if not folder.is_dir():
        msg = f"there is no folder {folder}. Give what `softprompt export vllm` wrote."
        raise ArtifactError(msg)
    source = Source(str(folder), "Export it again: softprompt export vllm ARTIFACT --output DIR")
    path = found(folder, [PLAN], what="export for vLLM")
    plan, digests = parse(contents(path), source=source)
    _check_files(folder, digests, source=source)
    size = (plan.length, plan.hidden_size)
    vectors = _tensor(folder / VECTORS, "vectors", size=size, plan=plan, source=source)
    size = (plan.vocabulary, plan.hidden_size)
    table = _tensor(folder / TABLE, "table", size=size, plan=plan, source=source)
    return Opened(plan, vectors, table, _tokenizer(folder / TOKENIZER, source))


def _check_files(folder: Path, digests: dict[str, str], *, source: Source) -> None:
    for name, digest in digests.items():
        path = found(folder, [name], what="export for vLLM")
        actual = hashlib.sha256(contents(path)).hexdigest()
        if actual != digest:
            msg = f"{name} has the SHA-256 {actual}, but {PLAN} says {digest}: one was changed."
            raise source.fault(msg)
    # A tokenizer reads whatever stands in its folder.
    held = {f"{TOKENIZER}/{path.name}" for path in (folder / TOKENIZER).iterdir()}
    strange = sorted(held - digests.keys())
    if strange:
        msg = f"it also holds {', '.join(strange[:5])}, which {PLAN} does not name."
        raise source.fault(msg)


def _tensor(
    path: Path, name: str, *, size: tuple[int, int], plan: VLLMPlan, source: Source
) -> Tensor:
    held = read_tensors(path)
    if held.keys() != {name}:
        msg = f"{path.name} holds {', '.join(sorted(held)) or 'nothing'}, not {name!r} alone."
        raise source.fault(msg)
    tensor = held[name]
    if tensor.shape != size or tensor.dtype != DTYPES[plan.dtype]:
        dtype = str(tensor.dtype).removeprefix("torch.")
        msg = (
            f"{name} in {path.name} is {[*tensor.shape]} in {dtype}, but {PLAN} says {[*size]} "
            f"in {plan.dtype}."
        )
        raise source.fault(msg)
    checked(path, {name: tensor})
    return tensor


def _tokenizer(folder: Path, source: Source) -> PreTrainedTokenizerBase:
    try:
        made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a tokenizer's files make of transformers
        first, *_ = str(error).strip().split("\n") or [""]
        msg = f"its tokenizer cannot be loaded: {first}"
        raise source.fault(msg) from error
    return made
