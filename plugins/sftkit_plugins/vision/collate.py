# ruff: noqa: N806 (suffixes are shapes)
"""Batches with pictures, which are opened when a batch is made, in the data workers where there are some.

Legend: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.api import Collator, ConfigError, DataError, Problem
from sftkit_plugins.vision.picture_tokens import PictureTokens
from sftkit_plugins.vision.pictures import open_picture, told

if TYPE_CHECKING:
    from torch import Tensor

#: What a processor says of each token, beside what it is: whether it stands for a picture.
TYPES = ("mm_token_type_ids", "token_type_ids")
_TEXT = ("input_ids", "attention_mask", *TYPES)


@dataclass(frozen=True)
class PictureCollator:
    """Adds what the model needs of the pictures to the batches of another collator.

    Attributes:
        inner: makes a batch of the tokens.
        tokens: of pictures.
        types: of each token id that has another type than 0, by the name of the tensor that says so.
        by_row: the tensors that have an entry for each row with pictures; others have one for each picture, or each of
            its patches.
    """

    inner: Collator
    tokens: PictureTokens
    types: Mapping[str, Mapping[int, int]]
    by_row: frozenset[str]

    @classmethod
    def of(cls, inner: Collator, processor: Any) -> PictureCollator:
        """Finds out what the processor makes, from two rows of blank pictures.

        Raises:
            ConfigError: if it says more of tokens than is known here.
        """
        from PIL import Image

        tokens = PictureTokens.of(processor)
        blank = Image.new("RGB", (64, 64))
        made = tokens.process([[blank, blank], [blank]])
        ids_BT = made["input_ids"]
        of_tokens = [name for name, value in made.items() if value.shape[:2] == ids_BT.shape]
        if unknown := [name for name in of_tokens if name not in _TEXT]:
            what = f"{type(processor).__name__} makes {', '.join(unknown)}, which plugin vision does not know"
            raise ConfigError(Problem(what, "model.name", "use another model"))
        types = {}
        for name in set(of_tokens) & {*TYPES}:
            marked = made[name] != 0
            types[name] = dict(zip(ids_BT[marked].tolist(), made[name][marked].tolist(), strict=True))
        rows = frozenset(name for name, value in made.items() if name not in _TEXT and len(value) == len(ids_BT))
        return cls(inner, tokens, types, rows)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch; one without a picture has none of their tensors.

        Raises:
            DataError: if a picture cannot be read, or has changed since its tokens were written.
        """
        batch: dict[str, Any] = self.inner(examples)
        ids_BT = batch["input_ids"]
        for name, values in self.types.items():
            batch[name] = ids_BT.new_zeros(ids_BT.shape)
            for token, value in values.items():
                batch[name][ids_BT == token] = value
        pictures = [list(example.get("attached", ())) for example in examples]
        rows = [row for row, some in enumerate(pictures) if some]
        if rows:
            batch |= self._pixels(examples, pictures, rows)
        return batch

    def _pixels(self, examples: Sequence[dict[str, Any]], pictures: list[list[Any]], rows: list[int]) -> dict[str, Any]:
        import torch

        made = self.tokens.process([[open_picture(each) for each in pictures[row]] for row in rows])
        marks = torch.tensor(self.tokens.ids)
        for number, row in enumerate(rows):
            found = int(torch.isin(made["input_ids"][number], marks).sum())
            known = int(torch.isin(torch.as_tensor(examples[row]["input_ids"]), marks).sum())
            if found != known:
                what = f"{', '.join(map(told, pictures[row]))}: {found} tokens, and {known} when the data was prepared"
                fix = "a file of another size stands there now; prepare anew (sftkit cache clear)"
                raise DataError(Problem(what, "a batch", fix))
        pixels = {name: value for name, value in made.items() if name not in _TEXT}
        counts = torch.tensor([len(some) for some in pictures])
        batch: dict[str, Any] = {"row_shares": {}}
        for name, value in pixels.items():
            batch[name] = value
            shares = counts.clamp(max=1) if name in self.by_row else _shares(value, counts, pixels)
            batch["row_shares"][name] = shares
        return batch


def _shares(value: Tensor, counts_B: Tensor, pixels: Mapping[str, Tensor]) -> Tensor | None:  # noqa: N803
    """How many entries each row has; None where that cannot be told."""
    import torch

    total = int(counts_B.sum())
    if len(value) == total:
        return counts_B
    if "image_grid_thw" in pixels:
        patches = pixels["image_grid_thw"].prod(1)
        if int(patches.sum()) == len(value):
            row = torch.repeat_interleave(torch.arange(len(counts_B)), counts_B)
            return torch.zeros_like(counts_B).index_add(0, row, patches)
    return None
