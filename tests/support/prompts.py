"""Inputs and prompts for tiny backbones, drawn from a seed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.backbone import Backbone, BatchInputs
from softprompt.prompt import InputPrompt, KVPrefix, Prompt
from support.tiny_models import PAD, SPECIALS


@dataclass(frozen=True)
class Maker:
    """Inputs and prompts for one backbone, drawn from a seed."""

    backbone: Backbone
    seed: int = 0

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    @property
    def decodes(self) -> bool:
        return self.backbone.geometry.architecture == "encoder-decoder"

    def words(self, *size: int) -> Tensor:
        """Ids of ordinary tokens."""
        return torch.randint(
            len(SPECIALS), len(self.backbone.tokenizer), size, generator=self.generator
        )

    def soft(self, count: int, *, first: int = 0) -> Tensor:
        """The ids of soft tokens."""
        return torch.arange(first, first + count) + self.backbone.geometry.vocab_size

    def batch(self, *rows: Tensor, side: str = "right", extra: int = 0) -> BatchInputs:
        """Rows padded to the longest and ``extra`` more; a decoder's input is always the same."""
        width = max(len(row) for row in rows) + extra
        ids = torch.full((len(rows), width), PAD)
        mask = torch.zeros_like(ids)
        for b, row in enumerate(rows):
            at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            ids[b, at], mask[b, at] = row, 1
        decoder = torch.tensor([[PAD, 40, 50, 60]] * len(rows)) if self.decodes else None
        return BatchInputs(ids, mask, decoder_input_ids=decoder)

    def input_prompt(self, length: int = 3) -> InputPrompt:
        """Vectors at the scale of the table; each length has other vectors."""
        geometry = self.backbone.geometry
        generator = torch.Generator().manual_seed(100 * self.seed + length)
        noise = torch.randn(length, geometry.embedding_size, generator=generator)
        return InputPrompt(noise * geometry.embedding_rms)

    def late_prompt(self, length: int = 3, *, layer: int = 1) -> InputPrompt:
        """Vectors that enter at a later layer, at the scale of its states."""
        generator = torch.Generator().manual_seed(100 * self.seed + length)
        noise = torch.randn(length, self.backbone.geometry.layer_width, generator=generator)
        return InputPrompt(noise * 2, layer)

    def prompt(self, shape: str, length: int = 3) -> Prompt:
        match shape:
            case "input":
                return self.input_prompt(length)
            case "late":
                return self.late_prompt(length)
            case _:
                return self.prefix(length)

    def rows(self, shape: str, *lengths: int, length: int = 3) -> list[Tensor]:
        """Rows of words; those for an input prompt have its soft tokens after their first word."""
        rows = [Maker(self.backbone, self.seed + 1 + b).words(n) for b, n in enumerate(lengths)]
        if shape != "kv":
            for row in rows:
                row[1 : 1 + length] = self.soft(length)
        return rows

    def prefix(
        self,
        length: int = 3,
        *,
        layers: tuple[int, ...] | None = None,
        shift_positions: bool = False,
    ) -> KVPrefix:
        geometry = self.backbone.geometry
        layers = tuple(range(geometry.num_attention_sites)) if layers is None else layers
        size = (len(layers), geometry.num_kv_heads, length, geometry.head_dim)
        generator = torch.Generator().manual_seed(100 * self.seed + length)
        keys, values = (torch.randn(size, generator=generator) for _ in range(2))
        return KVPrefix(keys, values, layers, shift_positions=shift_positions)
