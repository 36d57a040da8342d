"""The frozen model with its tokenizer, and what the rest of the house may ask of it."""

import inspect
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softprompt.backbone.head import Head
from softprompt.backbone.place import Bias
from softprompt.errors import BackboneError

Kind = Literal["causal", "encoder", "encoder-decoder"]


@dataclass(frozen=True)
class Geometry:
    """The shapes that a prompt must fit, read off a dry forward.

    Args:
        kind: which tokens see which.
        family: the model type as its configuration names it.
        hidden_size: H, the width of the last hidden states.
        embedding_size: E, the width of the input table (ALBERT, OPT-350M: not H).
        vocabulary: V, the rows of the input table; soft token k has the id V + k.
        positions: how many positions the backbone has; None where they are only relative.
        sites: L, how many attention sites take keys and values; 0 where the backbone has an
            attention of its own.
        blocks: how many layers a row's hidden states go through, an encoder-decoder's encoder's;
            0 where the backbone has an attention of its own.
        block_size: the width of the states that the layers are given (OPT-350M: not H).
        heads: N, key/value heads a site.
        head_size: D.
        window: the narrowest sliding window of its attention, None without one.
        window_told: whether attention calls say which window is theirs.
        position_offset: what to add to 0, 1, 2 … for explicit position ids (RoBERTa counts from
            2); None where the backbone takes no position ids.
        own_sites: the attention sites at which a row's own tokens attend to one another: all of
            them; of an encoder-decoder those of its decoder's self-attention, in the order of its
            layers. These are what a prefix made by PEFT speaks at.
        movable: whether a prefix can move rows up: by position ids, or as
            :mod:`~softprompt.backbone.place` does it for a decoder that takes none.
        embedding_rms: root mean square of the table's entries, the scale of a real token.
    """

    kind: Kind
    family: str
    hidden_size: int
    embedding_size: int
    vocabulary: int
    positions: int | None
    sites: int
    blocks: int
    block_size: int
    heads: int
    head_size: int
    window: int | None
    window_told: bool
    position_offset: int | None
    own_sites: tuple[int, ...]
    movable: bool
    embedding_rms: float


@dataclass(frozen=True, eq=False)
class Inputs:
    """A padded batch as a backbone takes it.

    Args:
        ids: token ids, soft ones (>= V) included.
        mask: 1 on real tokens, 0 on padding, on whichever side that is.
        types: token types of sentence pairs; None where there are none. Encoders alone take them:
            GPT-2 would add the embedding of token 0 to every token.
        decoder_ids: what an encoder-decoder's decoder is fed; None elsewhere. There may be several
            of these rows, side by side, for each row of ``ids``.
    """

    ids: Int[Tensor, "B T"]
    mask: Int[Tensor, "B T"]
    types: Int[Tensor, "B T"] | None = None
    decoder_ids: Int[Tensor, "Bd Td"] | None = None


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen pretrained model with its tokenizer.

    Args:
        name: how it was asked for: a Hub id, a folder, a GGUF file or a ``builtin:`` name.
        revision: the Hub commit, when there is one.
        model: frozen, in eval mode, with the seam open.
        tokenizer: its own.
        geometry: the shapes that a prompt must fit.
        fingerprint: what tells this model from others, whatever precision it is loaded in.
        head: the language-model head alone; None if the checkpoint has none.
        site_of: for each attention module, the sites it serves in the order of its calls.
        block_of: for each layer, likewise which of the blocks it is.
        bias_of: for attention modules with a bias by distance, what computes it.
        sharded: whether each of several processes holds a share of the layers' weights. All must
            then run it alike.
    """

    name: str
    revision: str | None
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    geometry: Geometry
    fingerprint: str
    head: Head | None
    site_of: dict[nn.Module, tuple[int, ...]] = field(repr=False)
    block_of: dict[nn.Module, tuple[int, ...]] = field(repr=False)
    bias_of: dict[nn.Module, Bias] = field(repr=False)
    sharded: bool = False

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.table.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the backbone computes in."""
        return self.model.dtype

    @property
    def dropout(self) -> bool:
        """Whether the model draws dropout in training mode."""
        return any(rate > 0 for rate in dropout_rates(self.model.config).values())

    @property
    def table(self) -> nn.Embedding:
        """The input embedding table."""
        return cast("nn.Embedding", self.model.get_input_embeddings())

    @property
    def pad(self) -> int:
        """An id to pad with; it is masked, so any will do where the tokenizer names none."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0

    @property
    def decoder_start(self) -> int:
        """The id that an encoder-decoder's decoder starts from."""
        for source in self._sources:
            start = getattr(source, "decoder_start_token_id", None)
            if start is not None:
                return int(start)
        return self.pad

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a generated text."""
        for source in (*self._sources, self.tokenizer):
            end = getattr(source, "eos_token_id", None)
            if end is not None:
                return tuple(end) if isinstance(end, (list, tuple)) else (int(end),)
        return ()

    @property
    def _sources(self) -> tuple[object, object]:
        """Where a checkpoint writes its special ids down; an encoder has the second only."""
        return getattr(self.model, "generation_config", None), self.model.config

    def embed(self, ids: Int[Tensor, "*S"]) -> Float[Tensor, "*S E"]:
        """The input embeddings of real tokens, as the model itself scales them, in fp32."""
        with torch.no_grad():
            embedded: Tensor = self.table(ids.to(self.device))
        # With gradient checkpointing on, a hook of transformers' makes it ask for a gradient.
        return embedded.detach().float()

    def one_row(self, ids: Int[Tensor, " T"]) -> Inputs:
        """A row of these ids alone; an encoder-decoder's decoder is fed the same."""
        row = ids.to(self.device)[None]
        decoder = row if self.geometry.kind == "encoder-decoder" else None
        return Inputs(ids=row, mask=torch.ones_like(row), decoder_ids=decoder)

    def hidden(
        self, inputs: Inputs, *, positions: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "Bs Ts H"]:
        """The last hidden states: of the row, or of the decoder where there is one."""
        if self.geometry.kind == "encoder-decoder":
            states = self.encode(inputs)
            return self.decode(inputs, states=states)
        output = self.model.base_model(**self._arguments(inputs, positions))
        return cast("Tensor", output.last_hidden_state)

    def encode(self, inputs: Inputs) -> Float[Tensor, "B T H"]:
        """The encoder's output of an encoder-decoder."""
        encoder = self.model.get_encoder()
        output = encoder(input_ids=inputs.ids, attention_mask=inputs.mask)
        return cast("Tensor", output.last_hidden_state)

    def decode(self, inputs: Inputs, *, states: Float[Tensor, "B T H"]) -> Float[Tensor, "Bd Td H"]:
        """The decoder's output over the encoder's, of which each row may have several."""
        if inputs.decoder_ids is None:
            msg = f"{self.geometry.family} decodes, but was given nothing to decode."
            raise BackboneError(msg)
        each = len(inputs.decoder_ids) // len(states)
        output = self.model.get_decoder()(
            input_ids=inputs.decoder_ids,
            encoder_hidden_states=states.repeat_interleave(each, dim=0),
            encoder_attention_mask=inputs.mask.repeat_interleave(each, dim=0),
            use_cache=False,
        )
        return cast("Tensor", output.last_hidden_state)

    def _arguments(self, inputs: Inputs, positions: Tensor | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {"input_ids": inputs.ids, "attention_mask": inputs.mask}
        if positions is not None:
            arguments["position_ids"] = positions
        if self.geometry.kind == "causal":
            arguments["use_cache"] = False
        elif inputs.types is not None and accepts(self.model.base_model, "token_type_ids"):
            arguments["token_type_ids"] = inputs.types
        return arguments


def dropout_rates(config: PreTrainedConfig) -> dict[str, float]:
    """The dropout rates of a configuration by name."""
    named = {k: v for k, v in vars(config).items() if "drop" in k}
    return {k: v for k, v in named.items() if isinstance(v, float)}


def accepts(module: nn.Module, argument: str) -> bool:
    """Whether a model's forward names this argument."""
    return argument in inspect.signature(module.forward).parameters
