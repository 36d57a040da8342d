"""The frozen model with its tokenizer, its geometry and its forward pass."""

import inspect
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from softprompt.backbone.layers import find_body
from softprompt.backbone.lm_head import LMHead
from softprompt.backbone.position_bias import PositionBias
from softprompt.backbone.references import Architecture, shorten_name
from softprompt.errors import BackboneError


@dataclass(frozen=True)
class Limits:
    """What a backbone cannot do, found in trials when it is loaded.

    Each limit is None, or its reason as a verb phrase that follows the name of the family.

    Args:
        prefix: why it accepts no key/value prefixes, and its attention cannot be read.
        split: why the first tokens of a row cannot be run separately from the others, and an input
            prompt cannot be baked.
        late: why soft tokens cannot enter at a later layer.
        padding: why rows of different lengths are not run in one batch.
        words: why soft tokens that are made of words differ from these words.
        head: why its language-model head cannot be used.

    Examples:
        >>> backbone.geometry.limits
        Limits(prefix=None, split=None, late=None, padding=None, words=None, head=None)
    """

    prefix: str | None = None
    split: str | None = None
    late: str | None = None
    padding: str | None = None
    words: str | None = None
    head: str | None = None


@dataclass(frozen=True)
class Geometry:
    """The shapes that a prompt must fit, measured in a trial forward pass.

    Args:
        architecture: ``"causal"``, ``"encoder"`` or ``"encoder-decoder"``.
        model_type: the model type as its configuration names it.
        hidden_size: H, the width of the last hidden states.
        embedding_size: E, the width of the input embeddings (ALBERT, OPT-350M: not H).
        vocab_size: V, the rows of the input embedding table; soft token k has the id V + k.
        max_positions: the number of positions; None if there are only relative positions.
        num_attention_sites: L, the number of attention sites that accept keys and values; 0 if
            none does (``limits.prefix``).
        num_layers: the number of layers that soft tokens can enter before, of an encoder-decoder's
            encoder; 0 if these are not known.
        layer_width: the width of the layers' hidden states (OPT-350M: not H).
        num_kv_heads: N, key/value heads per site, or the most of any site.
        head_dim: D, the size of a head, or the largest of any site.
        sliding_window: the size of its sliding window; None if it has none.
        reports_window: whether attention calls report their sliding window.
        position_offset: the first position id (RoBERTa: 2); None if the backbone takes no position
            ids.
        self_attention_sites: the attention sites at which a row's own tokens attend to one
            another, in the order of the layers: all sites; of an encoder-decoder those of the
            decoder's self-attention. PEFT's prefixes act on these.
        supports_position_shift: whether a prefix can shift a row's positions: by position ids, or
            with :mod:`~softprompt.backbone.position_bias` if the decoder takes none.
        embedding_rms: the root mean square of the input embeddings, the scale of a real token.
        limits: what the backbone cannot do.
        site_shapes: the number of heads and the sizes of a key and a value at each site, if they
            are not N, D and D at all of them.
        has_token_types: whether token types tell sentence pairs apart. XLM adds the embedding of
            token 0 to every token instead.
    """

    architecture: Architecture
    model_type: str
    hidden_size: int
    embedding_size: int
    vocab_size: int
    max_positions: int | None
    num_attention_sites: int
    num_layers: int
    layer_width: int
    num_kv_heads: int
    head_dim: int
    sliding_window: int | None
    reports_window: bool
    position_offset: int | None
    self_attention_sites: tuple[int, ...]
    supports_position_shift: bool
    embedding_rms: float
    limits: Limits = Limits()
    site_shapes: tuple[tuple[int, int, int], ...] = ()
    has_token_types: bool = True


@dataclass(frozen=True, eq=False)
class BatchInputs:
    """A padded batch, the input of a backbone.

    Args:
        input_ids: token ids; those of soft tokens are V or more.
        attention_mask: 1 on real tokens, 0 on padding, on either side.
        token_type_ids: token types of sentence pairs, or None. Only encoders use them (not XLM):
            GPT-2 would add the embedding of token 0 to every token.
        decoder_input_ids: the input of an encoder-decoder's decoder; None for other models. Each
            row of ``input_ids`` may have several consecutive rows here.

    Examples:
        >>> import torch
        >>> ids = torch.tensor([[5, 6, 7], [5, 6, 0]])
        >>> inputs = BatchInputs(ids, torch.tensor([[1, 1, 1], [1, 1, 0]]))
        >>> backbone.compute_hidden_states(inputs).shape
        torch.Size([2, 3, 32])
    """

    input_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    token_type_ids: Int[Tensor, "B T"] | None = None
    decoder_input_ids: Int[Tensor, "Bd Td"] | None = None


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen pretrained model with its tokenizer.

    Args:
        name: the name it was loaded by: a Hub id, a folder, a GGUF file or a ``builtin:`` name.
        revision: the Hub commit, if there is one.
        model: the model, frozen, in eval mode, with hooks for prompts.
        tokenizer: its tokenizer.
        geometry: the shapes that a prompt must fit.
        fingerprint: identifies the model, whatever precision it is loaded in.
        lm_head: the language-model head alone; None if the checkpoint has none.
        site_of: the numbers of each attention module's sites, in the order of its calls.
        layer_of: the numbers of each layer module, in the order of its calls.
        bias_of: the function that computes the bias, for attention modules with one by distance.
        sharded: whether the layers' weights are divided among several processes, which must then
            all run the backbone in the same way.

    Examples:
        A tiny backbone stands for one that :func:`~softprompt.load_backbone` returns.

        >>> backbone.geometry.architecture
        'causal'
        >>> ids = torch.tensor(backbone.tokenizer("a fine film")["input_ids"])
        >>> states = backbone.compute_hidden_states(backbone.make_single_row(ids))
        >>> tuple(states.shape) == (1, len(ids), backbone.geometry.hidden_size)
        True
    """

    name: str
    revision: str | None
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    geometry: Geometry
    fingerprint: str
    lm_head: LMHead | None
    site_of: dict[nn.Module, tuple[int, ...]] = field(repr=False)
    layer_of: dict[nn.Module, tuple[int, ...]] = field(repr=False)
    bias_of: dict[nn.Module, PositionBias] = field(repr=False)
    sharded: bool = False

    @property
    def device(self) -> torch.device:
        """The device of the input embeddings, where inputs must be."""
        return self.input_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the backbone computes in."""
        return self.model.dtype

    def __sklearn_clone__(self) -> "Backbone":
        """Itself: it is frozen, so the copies that scikit-learn makes of an estimator share it."""
        return self

    @property
    def dropout(self) -> bool:
        """Whether the model uses dropout in training mode."""
        return any(rate > 0 for rate in list_dropout_rates(self.model.config).values())

    @property
    def input_embeddings(self) -> nn.Embedding:
        """The input embedding table."""
        return cast("nn.Embedding", self.model.get_input_embeddings())

    @property
    def body(self) -> PreTrainedModel:
        """The model without its language-model head; an encoder-decoder is returned whole."""
        is_whole = self.geometry.architecture == "encoder-decoder"
        return self.model if is_whole else find_body(self.model)

    @property
    def pad_token_id(self) -> int:
        """The id to pad with; 0 if the tokenizer has none, since padding is masked."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0

    @property
    def decoder_start_token_id(self) -> int:
        """The id that an encoder-decoder's decoder starts from."""
        for config in self._configs:
            start = getattr(config, "decoder_start_token_id", None)
            if start is not None:
                return int(start)
        # As transformers' generate does (T5Gemma).
        begin = self.tokenizer.bos_token_id
        return begin if isinstance(begin, int) else self.pad_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a generated text."""
        for source in (*self._configs, self.tokenizer):
            end = getattr(source, "eos_token_id", None)
            if end is not None:
                return tuple(end) if isinstance(end, (list, tuple)) else (int(end),)
        return ()

    @property
    def _configs(self) -> tuple[object, object]:
        """The configurations that may define special ids; an encoder has only the second."""
        return getattr(self.model, "generation_config", None), self.model.config

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.model.parameters())
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}({shorten_name(self.name)!r}, "
            f"family={self.geometry.model_type!r}, "
            f"kind={self.geometry.architecture!r}, parameters={count:,}, dtype={dtype}, "
            f"device={str(self.device)!r})"
        )

    def embed(self, ids: Int[Tensor, "*S"]) -> Float[Tensor, "*S E"]:
        """The input embeddings of real tokens, as the model itself scales them.

        Args:
            ids: token ids of any shape, all below V.

        Returns:
            The embeddings in fp32, without a gradient.
        """
        with torch.no_grad():
            embedded: Tensor = self.input_embeddings(ids.to(self.device))
        # With gradient checkpointing, a hook of transformers makes it require a gradient.
        return embedded.detach().float()

    def make_single_row(self, ids: Int[Tensor, " T"]) -> BatchInputs:
        """Make a batch of one row; an encoder-decoder's decoder gets the same ids.

        Args:
            ids: the token ids ``[T]``.

        Returns:
            The batch, on the backbone's device.
        """
        row = ids.to(self.device)[None]
        decoder = row if self.geometry.architecture == "encoder-decoder" else None
        return BatchInputs(
            input_ids=row, attention_mask=torch.ones_like(row), decoder_input_ids=decoder
        )

    def compute_hidden_states(
        self, inputs: BatchInputs, *, positions: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "Bs Ts H"]:
        """The last hidden states; of an encoder-decoder those of its decoder.

        Args:
            inputs: the batch.
            positions: explicit position ids ``[B, T]``; None for the model's own. Not used for an
                encoder-decoder.

        Returns:
            The hidden states, of the shape of the ids they belong to, plus an axis of size H.
        """
        if self.geometry.architecture == "encoder-decoder":
            states = self.encode(inputs)
            return self.decode(inputs, states=states)
        output = self.body(**self._forward_arguments(inputs, positions))
        return cast("Tensor", output.last_hidden_state)

    def encode(self, inputs: BatchInputs) -> Float[Tensor, "B T H"]:
        """Run the encoder of an encoder-decoder.

        Args:
            inputs: the batch.

        Returns:
            The encoder's last hidden states.
        """
        encoder = self.model.get_encoder()
        output = encoder(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
        return cast("Tensor", output.last_hidden_state)

    def decode(
        self, inputs: BatchInputs, *, states: Float[Tensor, "B T H"]
    ) -> Float[Tensor, "Bd Td H"]:
        """Run the decoder of an encoder-decoder on the output of its encoder.

        Args:
            inputs: the batch, with ``decoder_input_ids``: one or several rows per encoded row.
            states: the encoder's last hidden states.

        Returns:
            The decoder's last hidden states.

        Raises:
            BackboneError: the batch has no ``decoder_input_ids``.
        """
        if inputs.decoder_input_ids is None:
            msg = (
                f"{self.geometry.model_type} is an encoder-decoder, but the batch has no "
                "decoder_input_ids. Add them."
            )
            raise BackboneError(msg)
        repeats = len(inputs.decoder_input_ids) // len(states)
        output = self.model.get_decoder()(
            input_ids=inputs.decoder_input_ids,
            encoder_hidden_states=states.repeat_interleave(repeats, dim=0),
            encoder_attention_mask=inputs.attention_mask.repeat_interleave(repeats, dim=0),
            use_cache=False,
        )
        return cast("Tensor", output.last_hidden_state)

    @property
    def _takes_token_types(self) -> bool:
        return self.geometry.has_token_types and can_accept(self.body, "token_type_ids")

    def _forward_arguments(self, inputs: BatchInputs, positions: Tensor | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "input_ids": inputs.input_ids,
            "attention_mask": inputs.attention_mask,
        }
        if positions is not None:
            arguments["position_ids"] = positions
        if self.geometry.architecture == "causal":
            arguments["use_cache"] = False
        elif self._takes_token_types and inputs.token_type_ids is not None:
            arguments["token_type_ids"] = inputs.token_type_ids
        return arguments


def list_dropout_rates(config: PreTrainedConfig) -> dict[str, float]:
    """The dropout rates of a configuration by name."""
    rates = {k: v for k, v in vars(config).items() if "drop" in k}
    return {k: v for k, v in rates.items() if isinstance(v, float)}


def can_accept(module: nn.Module, argument: str) -> bool:
    """Whether a model's forward has this argument."""
    return argument in inspect.signature(module.forward).parameters
