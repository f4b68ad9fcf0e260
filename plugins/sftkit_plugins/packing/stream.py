"""The plain constant-length stream as a torch data set."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset

from sftkit.api import warn_caller

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ConstantLengthDataset(IterableDataset):
    """Pieces of exactly ``seq_length`` tokens, cut from the concatenated texts of a data set.

    Unlike in the plugin's rows, documents that share a piece are not isolated: each token attends to everything before
    it in its piece. A shorter rest at the end of a buffer is dropped.

    Args:
        tokenizer: its EOS is appended to each text.
        dataset: rows, as mappings.
        dataset_text_field: column that holds the text; ignored if there is a ``formatting_func``.
        formatting_func: makes the text of a row.
        infinite: start over at the end of the data.
        seq_length: tokens of a piece.
        num_of_sequences: approximate number of pieces per buffer of texts.
        chars_per_token: approximate number of characters per token.
        eos_token_id: appended to each text if the tokenizer has no EOS.
        shuffle: shuffle the texts of a buffer, and its pieces, by Python's `random`.
        append_concat_token: whether EOS is appended to each text.
        add_special_tokens: whether the tokenizer adds its special tokens to each text.

    Attributes:
        concat_token_id: the token that is appended to each text.
        max_buffer_size: characters of a buffer.
        current_size: number of pieces so far.

    Raises:
        ValueError: if there is neither a column nor a function; while iterating, if ``infinite`` data holds no text.

    Source: the class of this name in TRL 0.11.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Any,
        dataset_text_field: str | None = None,
        formatting_func: Callable[[Any], str] | None = None,
        infinite: bool = False,
        seq_length: int = 1024,
        num_of_sequences: int = 1024,
        chars_per_token: float = 3.6,
        eos_token_id: int = 0,
        shuffle: bool = True,
        append_concat_token: bool = True,
        add_special_tokens: bool = True,
    ) -> None:
        self.tokenizer, self.dataset = tokenizer, dataset
        self.concat_token_id = eos_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        if tokenizer.eos_token_id is None:
            warn_caller(
                f"The passed tokenizer does not have an EOS token. Texts are ended with eos_token_id={eos_token_id}; "
                "pass another one if the model ends its texts with another token."
            )
        self.seq_length, self.infinite, self.shuffle = seq_length, infinite, shuffle
        self.append_concat_token, self.add_special_tokens = append_concat_token, add_special_tokens
        self.max_buffer_size = seq_length * chars_per_token * num_of_sequences
        self.current_size = 0
        self.formatting_func = _formatting(dataset_text_field, formatting_func)

    def __len__(self) -> int:
        """Number of rows of the data set, not of pieces."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Pieces as ``input_ids`` and equal ``labels`` (int64, ``[seq_length]``)."""
        for texts in self._buffers():
            if self.shuffle:
                random.shuffle(texts)
            pieces = self._pieces(texts)
            if self.shuffle:
                random.shuffle(pieces)
            for piece in pieces:
                self.current_size += 1
                yield {"input_ids": torch.tensor(piece), "labels": torch.tensor(piece)}

    def _buffers(self) -> Iterator[list[str]]:
        """Buffers of texts of about ``max_buffer_size`` characters; the last may be smaller."""
        texts: list[str] = []
        size = 0
        for text in self._texts():
            texts.append(text)
            size += len(text)
            if size >= self.max_buffer_size:
                yield texts
                texts, size = [], 0
        if texts:
            yield texts

    def _texts(self) -> Iterator[str]:
        while True:
            characters = 0
            for row in self.dataset:
                text = self.formatting_func(row)
                characters += len(text)
                yield text
            if not self.infinite:
                return
            if not characters:
                raise ValueError("the data holds no text, so an infinite stream would never end")
            warn_caller("The dataset reached end and the iterator is reset to the start.")

    def _pieces(self, texts: list[str]) -> list[list[int]]:
        encoded = self.tokenizer(texts, add_special_tokens=self.add_special_tokens, truncation=False, verbose=False)
        end = [self.concat_token_id] if self.append_concat_token else []
        stream = [token for ids in encoded["input_ids"] for token in [*ids, *end]]
        last = len(stream) - self.seq_length
        return [stream[start : start + self.seq_length] for start in range(0, last + 1, self.seq_length)]


def _formatting(text_field: str | None, function: Callable[[Any], str] | None) -> Callable[[Any], str]:
    if function is None:
        if text_field is None:
            raise ValueError("pass dataset_text_field, the column that holds the text, or formatting_func")
        return itemgetter(text_field)
    if text_field is not None:
        warn_caller("dataset_text_field is ignored: formatting_func makes the texts.")
    if _positional(function) > 1:
        warn_caller(
            "The passed formatting_func has more than one argument. It is called with one only, a row of the data."
        )
    return function


def _positional(function: Callable[..., Any]) -> int:
    """Number of a function's positional parameters; 0 for a builtin without a signature."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return 0
    return sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)
