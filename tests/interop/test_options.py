"""Prompts for multiple choice in other formats: PEFT's prompts of language models, and refusals."""

import pytest

from softprompt.errors import ArtifactError
from softprompt.interop import export_prompt, import_prompt
from softprompt.tasks import Choose
from support.options import make_options

TEMPLATE = "{soft:3}{bos}{question} is"
HEAD = {"template": "{question}{option}", "head": "linear", "pooling": "cls"}


def test_a_prompt_without_a_head_goes_to_peft_and_back(model, backbone, tmp_path) -> None:
    settings = Choose(TEMPLATE, target_form="text")
    own = model(("llama", "head", "input"), settings=settings, choices=())
    folder = export_prompt("peft", own, output=tmp_path / "peft")
    task = Choose(TEMPLATE, target_form="index", length_normalization="characters")
    again = import_prompt("peft", folder, backbone=backbone("llama"), task=task)
    rows = make_options(5, seed=2)
    for one, other in zip(own.predict(rows), again.predict(rows), strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
        assert one.twin_choice == other.choice
    for wrong, message in [
        (Choose(TEMPLATE), r"without data, .* Set task.target_form to 'text', 'index' or 'label'"),
        (Choose(TEMPLATE, head="linear", target_form="text"), "has no head that scores options"),
    ]:
        with pytest.raises(ArtifactError, match=message):
            import_prompt("peft", folder, backbone=backbone("llama"), task=wrong)


REFUSED = {
    "vllm": ("llama", "input", {"template": TEMPLATE}, "the task 'choose' scores whole options"),
    "peft": ("bert", "kv", HEAD, "PEFT has no type of task"),
    "p-tuning-v2": ("bert", "kv", HEAD, "chooses one of a row's own options"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_has_no_form_is_refused(model, tmp_path, form) -> None:
    family, shape, task, message = REFUSED[form]
    settings = Choose(target_form="text", **task)
    own = model((family, "head", shape), settings=settings, choices=())
    with pytest.raises(ArtifactError, match=message):
        export_prompt(form, own, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
