"""What a processor writes in the place of a picture: found by letting it process blank ones of the same sizes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem
from sftkit_plugins.vision.pictures import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

Sizes = tuple[tuple[int, int], ...]
"""Width and height of each picture of a row."""

_BETWEEN = "\ue0f6"  # a private-use character, which no processor writes


@dataclass(frozen=True)
class PictureTokens:
    """The tokens of pictures.

    Attributes:
        processor: a copy of the run's, with a tokenizer of its own.
        placeholder: what a chat template writes for a picture.
        ids: the tokens that the model replaces by what it sees.
    """

    processor: Any
    placeholder: str
    ids: tuple[int, ...]
    _known: dict[Sizes, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, processor: Any) -> PictureTokens:
        """Of a processor.

        Raises:
            ConfigError: if it has no token for pictures.
        """
        placeholder = getattr(processor, "image_token", None)
        found = getattr(processor, "image_token_ids", None) or [getattr(processor, "image_token_id", None)]
        ids = tuple(int(each) for each in found if each is not None)
        if placeholder is None or not ids:
            what = f"{type(processor).__name__} writes no tokens for a picture, which plugin vision needs"
            raise ConfigError(Problem(what, "model.name", "use another model"))
        own = copy.copy(processor)
        # Tokenizing with padding changes a tokenizer, and the run's own may be at work in another thread.
        own.tokenizer = copy.deepcopy(processor.tokenizer)
        if own.tokenizer.pad_token is None:  # its padding is used for counting alone, and any token will do
            own.tokenizer.pad_token = own.tokenizer.eos_token or own.tokenizer.convert_ids_to_tokens(0)
        return cls(own, placeholder, ids)

    @property
    def texts(self) -> list[str]:
        """The tokens as they are written."""
        return [str(token) for token in self.processor.tokenizer.convert_ids_to_tokens(list(self.ids))]

    def written(self, sizes: Sizes) -> tuple[str, ...]:
        """What stands in the text for each picture of a row, as it depends on their sizes.

        Raises:
            PictureError: if the processor refuses pictures of these sizes.
        """
        if sizes not in self._known:
            self._known[sizes] = self._found(sizes)
        return self._known[sizes]

    def _found(self, sizes: Sizes) -> tuple[str, ...]:
        from PIL import Image

        processor = copy.copy(self.processor)
        processor.tokenizer = seen = _Overheard(self.processor.tokenizer)
        blank = [Image.new("RGB", size) for size in sizes]
        try:
            processor(text=[self.in_row(len(sizes))], images=[blank])
        except Exception as error:  # each processor has its own ways to refuse
            shown = ", ".join(f"{width} x {height}" for width, height in sizes)
            what = f"{type(processor).__name__} refuses pictures of {shown}: {' '.join(str(error).split())}"
            raise PictureError(what, "take the row out, or scale its pictures") from error
        pieces = seen.texts[-1].split(_BETWEEN) if seen.texts else []
        if len(pieces) != len(sizes) + 2:
            what = f"{type(processor).__name__} does not write a picture's tokens in its place"
            raise ConfigError(Problem(what, "model.name", "use another model"))
        return tuple(pieces[1:-1])

    def in_row(self, number: int) -> str:
        """A text of so many placeholders, and nothing between them that could join with their tokens."""
        return _BETWEEN.join(["", *[self.placeholder] * number, ""])

    def process(self, rows: Sequence[Sequence[Image]]) -> dict[str, Any]:
        """What the processor makes of the pictures of some rows, each with one at least; tensors by name."""
        texts = [self.in_row(len(pictures)) for pictures in rows]
        made = self.processor(text=texts, images=[list(each) for each in rows], return_tensors="pt", padding=True)
        return dict(made)


class _Overheard:
    """A tokenizer, and the texts that it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []

    def __call__(self, text: Any = None, **options: Any) -> Any:
        self.texts += [text] if isinstance(text, str) else text
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)
