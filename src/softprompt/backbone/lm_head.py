"""The language-model head of a model: its own forward, with a body that returns its input.

So the head can run at scored positions only, with each family's own transforms, biases, scales and
caps, without any of them being reimplemented here.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import ModelOutput

from softprompt.backbone.layers import find_body
from softprompt.errors import summarize_error


@dataclass
class _Outputs(ModelOutput):
    """The outputs of a body: its states. Everything else that some family's head reads is None."""

    last_hidden_state: Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class _IdentityBody(nn.Module):
    """A body that returns its input embeddings as the last hidden states.

    Args:
        body: the real body, whose other attributes some heads read.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.__dict__["body"] = body  # not as a child, because its parameters are not the head's

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # of any family
        return getattr(self.__dict__["body"], name)

    def forward(
        self,
        *_args: Any,  # noqa: ANN401  # the arguments of each family
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        **_kwargs: Any,  # noqa: ANN401
    ) -> _Outputs:
        """Return the decoder's embeddings if there are any, else the only ones."""
        states = inputs_embeds if decoder_inputs_embeds is None else decoder_inputs_embeds
        return _Outputs(last_hidden_state=states)

    @property
    def decoder(self) -> "_IdentityBody":
        """OPT's head calls the decoder inside its body."""
        return self


def explain_head_failure(error: Exception) -> str:
    """Why a head cannot be run alone, as a verb phrase, from the error of its own code."""
    return f"has a language-model head that cannot be run alone ({summarize_error(error)})"


def pack_head_input(model: PreTrainedModel) -> None:
    """Let the output layer of a model read states that are dense in memory, which it does faster.

    transformers scores the last position of each row by ``states[:, -1:]``. On CPUs torch
    multiplies such a part of a larger tensor in bf16 without its fast kernels: one row of 49,152
    scores takes 0.3 s in place of 0.02 s.

    Args:
        model: gets a hook at its output layer, if it has one.
    """
    layer = model.get_output_embeddings()
    if layer is not None:
        layer.register_forward_pre_hook(_pack)


def _pack(_layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not arguments or not isinstance(arguments[0], Tensor):
        return None
    states, *others = arguments
    # A tensor of one row counts as contiguous whatever its strides are.
    if (
        states.device.type != "cpu"
        or states.stride()
        == torch.empty_like(states, device="meta", memory_format=torch.contiguous_format).stride()
    ):
        return None
    return states.clone(memory_format=torch.contiguous_format), *others


class LMHead(nn.Module):
    """The language-model head of a model, without the model.

    Args:
        model: shares its parameters with the head; is not changed.
        hidden_size: H, the width of the last hidden states.
    """

    def __init__(self, model: PreTrainedModel, *, hidden_size: int) -> None:
        super().__init__()
        # A shallow copy with its own table of children: same parameters, another body. A `forward`
        # on the instance, which dispatches devices, belongs to the whole model and is left out.
        shell = copy.copy(model)
        shell.__dict__ = {k: v for k, v in model.__dict__.items() if k != "forward"}
        shell.__dict__["_modules"] = dict(model._modules)  # noqa: SLF001
        shell.__dict__["_forward_pre_hooks"] = type(model._forward_pre_hooks)()  # noqa: SLF001
        children, body = dict(model.named_children()), find_body(model)
        names = [name for name, child in children.items() if child is body]
        for name in names or ("encoder", "decoder"):
            shell._modules[name] = _IdentityBody(children[name])  # noqa: SLF001
        self.shell = shell
        self.seq2seq: bool = model.config.is_encoder_decoder
        self.linear: nn.Linear | None = self._find_linear(model, hidden_size)

    def forward(self, states: Float[Tensor, "*S H"]) -> Float[Tensor, "*S V"]:
        """Score the vocabulary at the given last hidden states."""
        rows = states.reshape(1, -1, states.shape[-1])
        embeds = {"decoder_inputs_embeds": rows} if self.seq2seq else {"inputs_embeds": rows}
        extra = {"encoder_outputs": _Outputs(rows)} if self.seq2seq else {}
        logits: Tensor = self.shell(**embeds, **extra).logits
        return logits.reshape(*states.shape[:-1], -1)

    def score_tokens(
        self, states: Float[Tensor, "*S H"], tokens: Int[Tensor, " n"]
    ) -> Float[Tensor, "*S n"]:
        """Score some tokens of the vocabulary only; in fp32 if the head is one linear layer."""
        if self.linear is None:
            logits: Tensor = self(states)
            return logits[..., tokens]
        weight, *bias = (parameter[tokens].float() for parameter in self.linear.parameters())
        return F.linear(states.float(), weight, *bias)

    @torch.no_grad()
    def _find_linear(self, model: PreTrainedModel, hidden_size: int) -> nn.Linear | None:
        """The output layer, if a trial shows that the head consists of that layer alone."""
        layer = model.get_output_embeddings()
        if type(layer) is not nn.Linear or layer.in_features != hidden_size:
            return None
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(2, layer.in_features, generator=generator)
        states = states.to(layer.weight)
        return layer if torch.equal(self(states), layer(states)) else None
