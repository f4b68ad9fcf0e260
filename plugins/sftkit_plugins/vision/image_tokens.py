"""The tokens that a processor writes for an image, found by letting it process blank images of the same sizes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem
from sftkit_plugins.vision.images import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

Sizes = tuple[tuple[int, int], ...]
"""Width and height of each image of a row."""

_SEPARATOR = "\ue0f6"  # a private-use character, which no processor writes


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of images.

    Attributes:
        processor: a copy of the run's, with a tokenizer of its own.
        placeholder: what a chat template writes for an image.
        ids: the tokens whose embeddings the model replaces by image features.
    """

    processor: Any
    placeholder: str
    ids: tuple[int, ...]
    _known: dict[Sizes, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, processor: Any) -> ImageTokens:
        """The image tokens of a processor.

        Raises:
            ConfigError: if it has none.
        """
        placeholder = getattr(processor, "image_token", None)
        if type(processor).__name__ == "Gemma3Processor":  # transformers 5.12 returns the token that replaces it
            placeholder = processor.boi_token
        found = getattr(processor, "image_token_ids", None) or [getattr(processor, "image_token_id", None)]
        ids = tuple(int(each) for each in found if each is not None)
        if placeholder is None or not ids:
            what = f"{type(processor).__name__} writes no tokens for an image, which plugin vision needs"
            raise ConfigError(Problem(what, "model.name", "use another model"))
        own = copy.copy(processor)
        # Tokenizing with padding changes a tokenizer, and another thread may be using the run's.
        own.tokenizer = copy.deepcopy(processor.tokenizer)
        if own.tokenizer.pad_token is None:  # the padding is only needed to align rows; any token will do
            own.tokenizer.pad_token = own.tokenizer.eos_token or own.tokenizer.convert_ids_to_tokens(0)
        return cls(own, placeholder, ids)

    @property
    def texts(self) -> list[str]:
        """The tokens as text."""
        return [str(token) for token in self.processor.tokenizer.convert_ids_to_tokens(list(self.ids))]

    def texts_for(self, sizes: Sizes) -> tuple[str, ...]:
        """The text for each image of a row, which depends on the images' sizes.

        Raises:
            ImageError: if the processor refuses images of these sizes.
        """
        if sizes not in self._known:
            self._known[sizes] = self._process_blank(sizes)
        return self._known[sizes]

    def _process_blank(self, sizes: Sizes) -> tuple[str, ...]:
        from PIL import Image

        processor = copy.copy(self.processor)
        processor.tokenizer = recorder = _Recorder(self.processor.tokenizer)
        blank = [Image.new("RGB", size) for size in sizes]
        try:
            processor(text=[self._row_text(len(sizes))], images=[blank])
        except Exception as error:  # each processor raises something else
            shown = ", ".join(f"{width} x {height}" for width, height in sizes)
            what = f"{type(processor).__name__} refuses images of {shown}: {' '.join(str(error).split())}"
            raise ImageError(what, "remove the row, or resize its images") from error
        pieces = recorder.texts[-1].split(_SEPARATOR) if recorder.texts else []
        if len(pieces) != len(sizes) + 2:
            what = f"{type(processor).__name__} does not write an image's tokens in place of its placeholder"
            raise ConfigError(Problem(what, "model.name", "use another model"))
        return tuple(pieces[1:-1])

    def _row_text(self, number: int) -> str:
        """A text with this number of placeholders, separated so that their tokens cannot merge."""
        return _SEPARATOR.join(["", *[self.placeholder] * number, ""])

    def process(self, rows: Sequence[Sequence[Image]]) -> dict[str, Any]:
        """The processor's tensors by name, for rows of at least one image each."""
        texts = [self._row_text(len(images)) for images in rows]
        made = self.processor(text=texts, images=[list(images) for images in rows], return_tensors="pt", padding=True)
        return dict(made)


class _Recorder:
    """A tokenizer that records the texts that it tokenizes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []

    def __call__(self, text: Any = None, **options: Any) -> Any:
        self.texts += [text] if isinstance(text, str) else text
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)
