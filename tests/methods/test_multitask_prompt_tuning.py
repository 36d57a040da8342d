"""Multitask prompt tuning: PEFT's formula on its own weights, the exact start, and folding."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from softprompt.errors import RecipeError
from softprompt.injection import forward
from softprompt.methods import MultitaskPromptTuning, PromptTuning, build_method
from softprompt.methods.initializers import FromLabels, FromRandom, FromText, FromVocabulary
from softprompt.methods.multitask_prompt_tuning import MultitaskPromptTuningMethod
from softprompt.prompt import InputPrompt
from softprompt.train.initialization import choose_run_defaults
from support.parametrize import for_each

SOFT, WIDTH = 4, 32
KINDS = {
    "rank 1": MultitaskPromptTuning(),
    "rank 3": MultitaskPromptTuning(num_ranks=3),
    "matrix alone": MultitaskPromptTuning(train_shared=False, num_ranks=2),
}
STARTS = {
    "text": FromText("the movie was great"),
    "labels": FromLabels((" wonderful", " bad")),
    "vocabulary": FromVocabulary(),
    "random": FromRandom(),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def built(own, settings, init=STARTS["text"], *, seed: int = 0) -> MultitaskPromptTuningMethod:
    return build_method(own, settings, soft_length=SOFT, init=init, seed=seed)


@each_kind
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("layers", ["all", "1:"])
def test_it_starts_exactly_at_the_initialization(backbone, kind, start, layers):
    """PEFT draws both factors from N(0, 0.02), and multiplies the initialization by about 4e-4."""
    own, settings = backbone("llama"), KINDS[kind]
    settings = MultitaskPromptTuning(layers, settings.num_ranks, settings.train_shared)
    plain = build_method(
        own, PromptTuning(layers=layers), soft_length=SOFT, init=STARTS[start], seed=0
    )
    method = built(own, settings, STARTS[start])
    assert torch.equal(method.compute_task_matrix(), torch.ones_like(method.shared))
    assert torch.equal(method().vectors, plain().vectors)
    assert method().start_layer == plain().start_layer


@pytest.mark.parametrize("rank", [1, 3])
def test_the_formula_is_pefts(backbone, rank):
    """PEFT's own random weights, for each of its tasks."""
    peft = pytest.importorskip("peft")
    module = pytest.importorskip("peft.tuners.multitask_prompt_tuning.model")
    config = peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=SOFT,
        num_transformer_submodules=1,
        token_dim=WIDTH,
        num_tasks=3,
        num_ranks=rank,
    )
    torch.manual_seed(0)
    theirs = module.MultitaskPromptEmbedding(config, nn.Embedding(7, WIDTH))
    for task in range(3):
        columns, rows = theirs.prefix_task_cols[task], theirs.prefix_task_rows[task]
        start = InputPrompt(theirs.embedding.weight)
        method = MultitaskPromptTuning(num_ranks=rank).build(
            backbone("llama").geometry, start, generator=torch.Generator().manual_seed(0)
        )
        method.load_state_dict(
            {"shared": theirs.embedding.weight, "columns": columns, "rows": rows}
        )
        wanted = theirs(torch.arange(SOFT)[None], torch.tensor([task]))[0]
        assert wanted.any()
        assert_close(method().vectors, wanted, rtol=1e-5, atol=1e-11)


@each_kind
@for_each("family")
def test_all_its_parameters_learn_and_nothing_else(backbone, maker, kind, family):
    """The rows beyond the first start at 0, so their columns learn from the second step on."""
    own, make = backbone(family), maker(family)
    method, inputs = built(own, KINDS[kind]), make.batch(*make.rows("input", 8, 6, length=SOFT))
    begin = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    optimiser = torch.optim.AdamW(method.parameters(), lr=0.01, weight_decay=0)
    losses = []
    for _ in range(3):
        states = forward(own, inputs, prompts=[method()])
        loss = nn.functional.mse_loss(states, torch.ones_like(states))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = {name for name, _ in method.named_parameters()}
    assert trained == {"columns", "rows"} | ({"shared"} if KINDS[kind].train_shared else set())
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, begin[name]) == (name not in trained), name
    assert not torch.equal(method.columns, begin["columns"])
    for column in range(KINDS[kind].num_ranks):
        assert not torch.equal(method.columns[:, column], begin["columns"][:, column])
        assert not torch.equal(method.rows[column], begin["rows"][column])


def test_a_task_has_p_plus_e_numbers(backbone):
    own = backbone("llama")
    width = own.geometry.embedding_size
    for rank in (1, 4):
        method = built(own, MultitaskPromptTuning(num_ranks=rank, train_shared=False))
        assert sum(p.numel() for p in method.parameters()) == rank * (SOFT + width)
    whole = built(own, MultitaskPromptTuning())
    assert sum(p.numel() for p in whole.parameters()) == SOFT * width + SOFT + width


@pytest.mark.parametrize("rank", [0, -1, 1025])
def test_a_rank_that_is_not_possible(backbone, rank):
    with pytest.raises(RecipeError) as error:
        built(backbone("gpt2"), MultitaskPromptTuning(num_ranks=rank))
    assert error.value.faults == (f"num_ranks = {rank}: from 1 to 1,024.",)


@pytest.mark.parametrize(
    ("family", "train_shared", "rate"),
    [("t5", True, 0.3), ("llama", True, 1e-2), ("bert", True, 1e-2), ("bert", False, 0.1)],
)
def test_its_default_rate(backbone, family, train_shared, rate):
    """The entries of a task's matrix start at 1, far from those of most embeddings."""
    settings = MultitaskPromptTuning(train_shared=train_shared)
    geometry = backbone(family).geometry
    defaults = choose_run_defaults(settings, geometry, from_demonstrations=False)
    assert (defaults.optimizer, defaults.learning_rate) == ("adamw", rate)
    assert ("Wang et al. 2023" in defaults.source) == (family == "t5")
