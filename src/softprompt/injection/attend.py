"""What stands before a row's own keys and values at an attention site, and the mask to match."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F  # torch's own convention

from softprompt.backbone.attention import Attention
from softprompt.backbone.place import Bias


@dataclass(frozen=True, eq=False)
class SitePrefix:
    """What the prompts of a batch add at one attention site.

    Args:
        keys: one prefix a prompt, padded to the longest.
        values: likewise.
        visible: False on padding and on prompts that say nothing at this site; None if all True.
    """

    keys: Float[Tensor, "R N P D"]
    values: Float[Tensor, "R N P D"]
    visible: Bool[Tensor, "R P"] | None


@dataclass(frozen=True, eq=False)
class Masks:
    """Attention masks and biases of one pass: most sites share one, so each is made once.

    Args:
        positions: of the row's own tokens.
        shift: how many positions each prompt takes up before its row: there it stands as text
            does, so sliding windows forget it and biases by distance hold for it. What takes up
            none has no position, is always seen and has no bias. None if all are such.
        made: by what they were made of, which is kept so that nothing else can take its identity.
    """

    positions: Int[Tensor, "B T"]
    shift: Int[Tensor, " R"] | None
    made: dict[tuple[int, ...], tuple[Tensor | None, tuple[object, ...]]] = field(
        default_factory=dict
    )

    def hiding(
        self,
        attention: Attention,
        columns: Bool[Tensor, "B Tc"],
        *,
        asking: Bool[Tensor, "B T"],
        which: int,
    ) -> Attention:
        """The same without these columns, but for those of the same kind that ask.

        Args:
            columns: soft tokens that have not entered yet at this site.
            asking: which positions of this pass are such.
            which: a number that no other ``columns`` of this pass have.
        """
        key = (id(attention.mask), which, attention.key.shape[2])
        if key not in self.made:
            self.made[key] = _hidden(attention, columns, asking), (attention.mask,)
        return replace(attention, mask=self.made[key][0])

    def extended(
        self,
        attention: Attention,
        prefix: SitePrefix,
        *,
        rows: Int[Tensor, " B"],
        bias: Bias | None,
    ) -> Attention:
        """The row's keys and values with its prefix before them; the mask and bias to match.

        Args:
            rows: for each row of the batch the index of its prompt.
            bias: what computes the attention's bias, if it is one by distance.
        """
        which = repeated(rows, attention.query.shape[0])
        before = (prefix.keys, prefix.values)
        if len(prefix.keys) > 1:
            before = (prefix.keys[which], prefix.values[which])
        return replace(
            attention,
            before=before,
            mask=self._mask(attention, prefix, which),
            bias=self._bias(attention, prefix, which=which, bias=bias),
        )

    def _mask(
        self, attention: Attention, prefix: SitePrefix, which: Int[Tensor, " b"]
    ) -> Tensor | None:
        length, shift = prefix.keys.shape[2], self.shift
        window = None if shift is None else attention.window
        shape = (attention.query.shape[2], attention.key.shape[2], length)
        key = (id(attention.mask), id(prefix.visible), attention.causal, window or 0, *shape)
        if key not in self.made:
            seen = None if prefix.visible is None else prefix.visible[which][:, None, None, :]
            if shift is not None and window is not None:
                near = _near(self.positions, length, window)
                near = near | (shift[which] == 0)[:, None, None, None]
                seen = near if seen is None else seen & near
            made = _joined(attention, seen, length)
            self.made[key] = made, (attention.mask, prefix.visible)
        return self.made[key][0]

    def _bias(
        self,
        attention: Attention,
        prefix: SitePrefix,
        *,
        which: Int[Tensor, " b"],
        bias: Bias | None,
    ) -> Tensor | None:
        own, length = attention.bias, prefix.keys.shape[2]
        if own is None:
            return None
        if bias is None or self.shift is None:
            return F.pad(own, (length, 0))
        key = (id(bias), *own.shape, length)
        if key not in self.made:
            shift = self.shift if len(self.shift) == 1 else self.shift[which]
            before = bias(attention, length, shift=shift, held=self.positions[0, 0])
            before = before.masked_fill((shift == 0)[:, None, None, None], 0)
            batch = max(len(before), len(own))
            parts = [t.expand(batch, -1, own.shape[2], -1) for t in (before, own)]
            made = torch.cat(parts, dim=-1)
            if made.requires_grad:
                # Layers that are run again for their gradient must do the same a second time.
                return made
            self.made[key] = made, (bias,)
        return self.made[key][0]


def repeated(rows: Tensor, batch: int) -> Tensor:
    """Beams and samples of a row stand side by side, so what is the row's is repeated for them."""
    return rows if len(rows) == batch else rows.repeat_interleave(batch // len(rows), dim=0)


def _near(positions: Int[Tensor, "B T"], length: int, window: int) -> Bool[Tensor, "B 1 T P"]:
    columns = torch.arange(length, device=positions.device)
    return (positions[:, None, :, None] - columns) < window


def _joined(
    attention: Attention, seen: Bool[Tensor, "B 1 _ P"] | None, length: int
) -> Tensor | None:
    """The attention mask with columns for the prefix."""
    if seen is None and not attention.hides:
        return None
    own = attention.written()
    if seen is None:
        seen = torch.ones(1, 1, 1, length, dtype=torch.bool, device=own.device)
    batch = max(len(own), len(seen))
    own = own.expand(batch, -1, -1, -1)
    columns = seen.expand(batch, own.shape[1], own.shape[2], length)
    if own.dtype != torch.bool:
        lowest = torch.finfo(own.dtype).min
        columns = torch.zeros_like(columns, dtype=own.dtype).masked_fill(~columns, lowest)
    return torch.cat([columns, own], dim=-1)


def _hidden(
    attention: Attention, columns: Bool[Tensor, "B Tc"], asking: Bool[Tensor, "B T"]
) -> Tensor:
    own = attention.written().expand(len(attention.query), -1, -1, -1)
    # Soft tokens go on seeing one another: a row of nothing but masks would be no number.
    hidden = F.pad(columns, (0, own.shape[-1] - columns.shape[1]))[:, None, None, :]
    hidden = hidden & ~asking[:, None, :, None]
    if own.dtype == torch.bool:
        return own & ~hidden
    return own.masked_fill(hidden, torch.finfo(own.dtype).min)
