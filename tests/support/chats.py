"""Tiny backbones with chat templates of several kinds, and conversations for them."""

from typing import Any

import transformers as tf

from softprompt.backbone import Backbone, wrap_model
from softprompt.backbone.model import list_dropout_rates
from support.tiny_models import CAUSAL_CONFIGS, draw_model, make_tokenizer

# As SmolLM2 and Qwen 2.5 write turns: a system turn is added where there is none. The assistant's
# text and its end are marked, so that transformers says which tokens are to be learned.
DEFAULT = "a good film"
WITH_DEFAULT = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}<s>system\na good film</s>\n{% endif %}"
    "<s>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}</s>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}</s>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
# As Zephyr's, without an addition.
WITHOUT_DEFAULT = WITH_DEFAULT.replace("<s>system\na good film</s>\n", "")
# As Llama 2's: the beginning of a text once for each pair, no turn for the assistant's beginning,
# the system turn in the first user turn, and texts without the space around them.
PAIRS = (
    "{% if messages[0]['role'] == 'system' %}{% set own = messages[1:] %}"
    "{% set said = 'the ' + messages[0]['content'] + ' it\n' %}"
    "{% else %}{% set own = messages %}{% set said = '' %}{% endif %}"
    "{% for m in own %}{% if m['role'] == 'user' %}"
    "<s>[{{ (said if loop.index0 == 0 else '') + m['content'].strip() }}]"
    "{% else %} {% generation %}{{ m['content'].strip() }} </s>{% endgeneration %}"
    "{% endif %}{% endfor %}"
)
# As Gemma's: no system turn, another name of the assistant, one beginning of the text.
WITHOUT_SYSTEM = (
    "<s>{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for m in messages %}"
    "<mask>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] | trim }}</s>"
    "{% endgeneration %}{% else %}{{ m['content'] | trim }}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<mask>model\n{% endif %}"
)
TEMPLATES = {
    "with default": WITH_DEFAULT,
    "without default": WITHOUT_DEFAULT,
    "pairs": PAIRS,
    "without system": WITHOUT_SYSTEM,
}
# Before the assistant's last text stands what a row to be answered does not end with.
OTHER_BEGINNING = WITHOUT_DEFAULT.replace("<s>assistant\n{% endif", "<s>it\n{% endif")


def make_chat_backbone(template: str | None = WITH_DEFAULT, family: str = "llama") -> Backbone:
    """A new backbone with room for conversations."""
    config = CAUSAL_CONFIGS[family](max_position_embeddings=256)
    for key in list_dropout_rates(config):
        setattr(config, key, 0.0)
    model = draw_model(tf.AutoModelForCausalLM, config).eval()
    tokenizer = make_tokenizer("causal")
    tokenizer.chat_template = template
    return wrap_model(family, model, tokenizer=tokenizer, kind="causal")


def say(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    """A conversation: the user's and the assistant's texts by turns, the user's first."""
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system is not None else []) + turns


SHORT = say("was it good?", "yes it was")
LONG = say("a bad movie", "no", "was it fresh?", "it was great and good", "and the film?", "a film")
GIVEN = say("was it bad?", "yes", "and boring?", "no no", system="the movie was funny")
CONVERSATIONS = [SHORT, LONG, GIVEN]
