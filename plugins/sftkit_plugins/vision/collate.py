# ruff: noqa: N806 (suffixes are shapes)
"""Batches with images, which are opened when a batch is made, in the data workers if there are any.

Legend: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.api import Collator, ConfigError, DataError, Problem
from sftkit_plugins.vision.image_tokens import ImageTokens
from sftkit_plugins.vision.images import describe, open_image

if TYPE_CHECKING:
    from torch import Tensor

#: Tensors in which a processor marks the tokens that stand for images.
TYPES = ("mm_token_type_ids", "token_type_ids")
_TEXT = ("input_ids", "attention_mask", *TYPES)


@dataclass(frozen=True)
class ImageCollator:
    """Adds the tensors of the images to the batches of another collator.

    Attributes:
        inner: makes a batch of the tokens.
        tokens: the tokens of images.
        types: for each tensor that marks tokens by type, the types by token id; all others have type 0.
        by_row: the tensors with one entry per row with images; the others have one per image, or per patch.
    """

    inner: Collator
    tokens: ImageTokens
    types: Mapping[str, Mapping[int, int]]
    by_row: frozenset[str]

    @classmethod
    def of(cls, inner: Collator, processor: Any) -> ImageCollator:
        """A collator for a processor, whose tensors are found by letting it process two rows of blank images.

        Raises:
            ConfigError: if the processor makes unknown tensors with one entry per token.
        """
        from PIL import Image

        tokens = ImageTokens.of(processor)
        blank = Image.new("RGB", (64, 64))
        made = tokens.process([[blank, blank], [blank]])
        ids_BT = made["input_ids"]
        of_tokens = [name for name, value in made.items() if value.shape[:2] == ids_BT.shape]
        if unknown := [name for name in of_tokens if name not in _TEXT]:
            what = f"{type(processor).__name__} makes {', '.join(unknown)}, which plugin vision does not support"
            raise ConfigError(Problem(what, "model.name", "use another model"))
        types = {}
        for name in set(of_tokens) & {*TYPES}:
            marked = made[name] != 0
            types[name] = dict(zip(ids_BT[marked].tolist(), made[name][marked].tolist(), strict=True))
        rows = frozenset(name for name, value in made.items() if name not in _TEXT and len(value) == len(ids_BT))
        return cls(inner, tokens, types, rows)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch; it has no image tensors if none of its rows has an image.

        Raises:
            DataError: if an image cannot be read, or has changed since the data was prepared.
        """
        batch: dict[str, Any] = self.inner(examples)
        ids_BT = batch["input_ids"]
        for name, values in self.types.items():
            batch[name] = ids_BT.new_zeros(ids_BT.shape)
            for token, value in values.items():
                batch[name][ids_BT == token] = value
        images = [list(example.get("attached", ())) for example in examples]
        rows = [row for row, some in enumerate(images) if some]
        if rows:
            batch |= self._image_tensors(examples, images, rows)
        return batch

    def _image_tensors(
        self, examples: Sequence[dict[str, Any]], images: list[list[Any]], rows: list[int]
    ) -> dict[str, Any]:
        import torch

        made = self.tokens.process([[open_image(each) for each in images[row]] for row in rows])
        ids = torch.tensor(self.tokens.ids)
        for number, row in enumerate(rows):
            now = int(torch.isin(made["input_ids"][number], ids).sum())
            before = int(torch.isin(torch.as_tensor(examples[row]["input_ids"]), ids).sum())
            if now != before:
                shown = ", ".join(map(describe, images[row]))
                what = f"{shown}: {now} image tokens, but {before} when the data was prepared"
                fix = "the size of the file has changed; run `sftkit cache clear` and prepare the data again"
                raise DataError(Problem(what, "a batch", fix))
        tensors = {name: value for name, value in made.items() if name not in _TEXT}
        counts_B = torch.tensor([len(some) for some in images])
        batch: dict[str, Any] = {"row_shares": {}}
        for name, value in tensors.items():
            batch[name] = value
            shares_B = counts_B.clamp(max=1) if name in self.by_row else _shares(value, counts_B, tensors)
            batch["row_shares"][name] = shares_B
        return batch


def _shares(value: Tensor, counts_B: Tensor, tensors: Mapping[str, Tensor]) -> Tensor | None:  # noqa: N803
    """The number of entries of each row; None if it is unknown."""
    import torch

    total = int(counts_B.sum())
    if len(value) == total:
        return counts_B
    if "image_grid_thw" in tensors:
        patches = tensors["image_grid_thw"].prod(1)
        if int(patches.sum()) == len(value):
            row = torch.repeat_interleave(torch.arange(len(counts_B)), counts_B)
            return torch.zeros_like(counts_B).index_add(0, row, patches)
    return None
