"""Golden numbers: PEFT 0.21.2's own random weights, put into our prompts, on unpadded input.

PEFT puts its prompt before everything, BOS included, and shifts positions by its prefix. Both are
taken over here, so that the numbers can be the same.
"""

import copy
from dataclasses import replace
from typing import get_args

import pytest
import torch
import transformers
from torch.testing import assert_close

from softprompt.backbone import BatchInputs, wrap_model
from softprompt.decoding import CacheKind
from softprompt.injection import Decoding, forward, generate
from softprompt.methods import PrefixTuning, PTuning
from softprompt.prompt import InputPrompt, KVPrefix

peft = pytest.importorskip("peft")

# of transformers, about names that PEFT still uses
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LENGTH = 4
DECODERS = ["gpt2", "llama", "qwen3", "gpt_neox", "phi3"]
WITH_PREFIX = [*DECODERS, "opt", "mistral", "gemma3", "bloom"]
WITH_INPUTS = [*DECODERS, "bloom", "gemma3", "t5", "bart"]


def wrapped(model, config):
    """A PEFT model over a fresh copy of the backbone's weights, its own weights random."""
    torch.manual_seed(0)
    return peft.get_peft_model(model, config).eval()


def arguments(family: str, **more: object) -> dict[str, object]:
    kind = "SEQ_2_SEQ_LM" if family in {"t5", "bart"} else "CAUSAL_LM"
    return {"task_type": kind, "num_virtual_tokens": LENGTH} | more


def saved(theirs) -> torch.Tensor:
    """What PEFT writes to disk; of a seq2seq prompt only the first half is ever read."""
    return theirs.get_prompt_embedding_to_save("default")


def said(theirs, inputs: BatchInputs) -> torch.Tensor:
    given = (
        {} if inputs.decoder_input_ids is None else {"decoder_input_ids": inputs.decoder_input_ids}
    )
    with torch.no_grad():
        return theirs(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **given
        ).logits


def compare_inputs(own, make, theirs, vectors) -> None:
    """Their prompt before the words, and our soft tokens there."""
    words = [make.words(7), make.words(7).flip(0)]
    soft = make.batch(*(torch.cat([make.soft(LENGTH), row]) for row in words))
    ours = own.lm_head(forward(own, soft, prompts=[InputPrompt(vectors[:LENGTH])]))
    assert_close(ours, said(theirs, make.batch(*words)), **CLOSE)


@pytest.mark.parametrize("family", WITH_INPUTS)
def test_prompt_tuning(backbone, maker, new_model, family):
    config = peft.PromptTuningConfig(**arguments(family))
    theirs = wrapped(new_model(family), config)
    compare_inputs(backbone(family), maker(family), theirs, saved(theirs))


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bart"])
def test_p_tuning(backbone, maker, new_model, family, encoder):
    own = backbone(family)
    config = peft.PromptEncoderConfig(
        **arguments(family, encoder_reparameterization_type=encoder.upper(), encoder_hidden_size=12)
    )
    theirs = wrapped(new_model(family), config)
    encoding = theirs.prompt_encoder["default"]
    rows = encoding.embedding.num_embeddings
    settings = PTuning(encoder=encoder, encoder_hidden_size=12)
    start = InputPrompt(torch.zeros(rows, own.geometry.embedding_size))
    method = settings.build(own.geometry, start, generator=torch.Generator())
    names = {"embedding.weight": "embedding", "mlp_head.": "mlp.", "lstm_head.": "lstm."}
    state = {}
    for name, tensor in encoding.state_dict().items():
        for old, new in names.items():
            if name.startswith(old):
                state[name.replace(old, new)] = tensor
    method.load_state_dict(state)
    vectors = method().vectors.detach()
    assert_close(vectors, saved(theirs), **CLOSE)
    compare_inputs(own, maker(family), theirs, vectors)


def laid_out(flat: torch.Tensor, own, layers: tuple[int, ...]) -> KVPrefix:
    """PEFT's ``[P, 2·L·N·D]``: keys of the first layer, its values, keys of the second."""
    g = own.geometry
    pairs = flat.detach().view(LENGTH, len(layers), 2, g.num_kv_heads, g.head_dim)
    keys, values = pairs.permute(2, 1, 3, 0, 4)
    return KVPrefix(keys, values, layers, shift_positions=True)


def prefixed(new_model, own, family: str, **more: object):
    """PEFT's prefix tuning of a family, and its random prefix as ours."""
    config = peft.PrefixTuningConfig(**arguments(family, encoder_hidden_size=12, **more))
    theirs = wrapped(new_model(family), config)
    return theirs, laid_out(saved(theirs), own, (0, 1))


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("length", [3, 7, 14])
@pytest.mark.parametrize("family", WITH_PREFIX)
def test_prefix_tuning(backbone, maker, new_model, family, length, projection):
    """The prefix and three words are within the windows of 8, and the other rows are not."""
    own, make = backbone(family), maker(family)
    theirs, prefix = prefixed(new_model, own, family, prefix_projection=projection)
    inputs = make.batch(make.words(length), make.words(length).flip(0))
    ours = own.lm_head(forward(own, inputs, prompts=[prefix]))
    assert_close(ours, said(theirs, inputs), **CLOSE)


def compare_writing(own, theirs, prefix: KVPrefix, inputs: BatchInputs) -> None:
    """Their greedy text with each of our caches, and the numbers of each of its steps."""
    options = {"output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    said = theirs.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        max_new_tokens=10,
        **options,
    )
    whole = said.sequences[0]
    written = whole[
        1 if inputs.decoder_input_ids is not None else inputs.input_ids.shape[1] :
    ].tolist()
    for cache in get_args(CacheKind):
        decoding = Decoding(max_new_tokens=10, cache=cache)
        found = generate(own, inputs, prompts=[prefix], decoding=decoding)[0]
        assert found == [token for token in written if token not in own.eos_token_ids]
    fed = whole[None, :-1]
    if inputs.decoder_input_ids is None:
        again = BatchInputs(fed, torch.ones_like(fed))
    else:
        again = replace(inputs, decoder_input_ids=fed)
    states = forward(own, again, prompts=[prefix])[0, -len(written) :]
    assert_close(own.lm_head(states), torch.cat(said.logits), **CLOSE)


@pytest.mark.parametrize("length", [3, 14])
@pytest.mark.parametrize("family", WITH_PREFIX)
def test_prefix_tuning_writes_on(backbone, maker, new_model, family, length):
    own, make = backbone(family), maker(family)
    theirs, prefix = prefixed(new_model, own, family)
    compare_writing(own, theirs, prefix, make.batch(make.words(length)))


# PEFT assumes that the head size is the hidden size over the number of heads, which does not hold
# for the tests' T5. BART's forced end token is switched off, because we ignore it.
DEEPER = {
    "t5": {"d_kv": 8, "num_layers": 3, "num_decoder_layers": 3},
    "bart": {"encoder_layers": 3, "decoder_layers": 3, "forced_eos_token_id": None},
}


def decoders_prefix(new_model, tokenizer, family: str):
    """A model with three layers, PEFT over a copy of it, and PEFT's prefix as ours.

    Where there is an encoder too, PEFT cuts its ``[2·L]`` keys and values in fours and gives each
    decoder layer the first two: layer ``i`` has those of layer ``2·i``, counted round.
    """
    config = new_model(family).config
    for name, value in DEEPER[family].items():
        setattr(config, name, value)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=parameter.ndim == 1, std=0.2)
    theirs = wrapped(copy.deepcopy(model), peft.PrefixTuningConfig(**arguments(family)))
    kind = "encoder-decoder"
    own = wrap_model(family, model, tokenizer=tokenizer(kind), kind=kind)
    every = laid_out(saved(theirs), own, (0, 1, 2))
    which = [2 * i % 3 for i in range(3)]
    sites = own.geometry.self_attention_sites
    return (
        own,
        theirs,
        KVPrefix(every.keys[which], every.values[which], sites, shift_positions=True),
    )


@pytest.mark.parametrize("length", [3, 14])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_prefix_tuning_of_a_decoder(new_model, tokenizer, maker, family, length):
    own, theirs, prefix = decoders_prefix(new_model, tokenizer, family)
    make = maker(family)
    ids, decoder = make.words(2, length), make.words(2, length).flip(1)
    inputs = BatchInputs(ids, torch.ones_like(ids), decoder_input_ids=decoder)
    ours = own.lm_head(forward(own, inputs, prompts=[prefix]))
    assert_close(ours, said(theirs, inputs), **CLOSE)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_decoder_with_a_prefix_writes(new_model, tokenizer, maker, family):
    own, theirs, prefix = decoders_prefix(new_model, tokenizer, family)
    inputs = maker(family).batch(maker(family).words(7))
    compare_writing(own, theirs, prefix, inputs)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_prefix_tunings_mlp(backbone, new_model, family):
    """Their MLP's weights in our method make their keys and values."""
    own = backbone(family)
    config = peft.PrefixTuningConfig(
        **arguments(family, prefix_projection=True, encoder_hidden_size=12)
    )
    theirs = wrapped(new_model(family), config)
    wanted = laid_out(saved(theirs), own, (0, 1))
    settings = PrefixTuning(length=LENGTH, encoder_hidden_size=12)
    method = settings.build(own.geometry, wanted, generator=torch.Generator())
    state = theirs.prompt_encoder["default"].state_dict()
    method.load_state_dict(
        {
            n.replace("transform", "mlp").replace("embedding.weight", "embedding"): t
            for n, t in state.items()
        }
    )
    assert_close(method().keys, wanted.keys, **CLOSE)
    assert_close(method().values, wanted.values, **CLOSE)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_prefix_of_an_encoder(backbone, maker, new_model, family):
    own, make = backbone(family), maker(family)
    config = peft.PrefixTuningConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=LENGTH, prefix_projection=False
    )
    theirs = wrapped(new_model(family).base_model, config)
    inputs = make.batch(make.words(7), make.words(7).flip(0))
    with torch.no_grad():
        wanted = theirs(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask
        ).last_hidden_state
    ours = forward(own, inputs, prompts=[laid_out(saved(theirs), own, (0, 1))])
    assert_close(ours, wanted, **CLOSE)


def test_the_flag_on_positions_matters(backbone, maker):
    """Without it the comparisons above could not hold."""
    own, make = backbone("llama"), maker("llama")
    moved, still = (make.prefix(LENGTH, shift_positions=s) for s in (True, False))
    inputs = make.batch(make.words(7))
    states = [forward(own, inputs, prompts=[prefix]) for prefix in (moved, still)]
    assert (states[0] - states[1]).abs().max() > 1e-2
