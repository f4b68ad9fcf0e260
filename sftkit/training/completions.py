"""Completions of held-out rows: what a model writes after the prompt of a row, beside the row's own completion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit.data.columns import ATTACHED, IGNORE_INDEX
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Completion:
    """What a model wrote for a held-out row; all texts are without special tokens.

    Attributes:
        prompt: everything before the last trained part of the row.
        reference: the last trained part of the row, without blanks around it.
        text: what the model wrote after the prompt, without blanks around it.
        row: the number of the row in its evaluation set, from 0; of packed data, the number of the document.
    """

    prompt: str
    reference: str
    text: str
    row: int

    @property
    def exact(self) -> bool:
        """Whether the text is the reference."""
        return self.text == self.reference


class Prompt(NamedTuple):
    """The tokens of a held-out row before its last trained part, and those of that part."""

    ids: list[int]
    reference: list[int]
    row: int


@dataclass(frozen=True)
class HeldOut:
    """The rows of an evaluation set that are completed.

    Attributes:
        prompts: a prompt for each row that has a completion.
        without: the number of rows that were left out, since nothing is trained in them or nothing comes before it.
    """

    prompts: list[Prompt]
    without: int

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], limit: int | None = None, name: str = "data.eval") -> HeldOut:
        """The prompts of the first ``limit`` rows; of packed rows, of the first ``limit`` documents.

        Args:
            rows: of an evaluation set, as they are prepared.
            limit: how many to look at; None for all.
            name: of the set, for errors.

        Raises:
            DataError: if something is attached to a row, such as an image, or no row has a completion.
        """
        prompts, without = [], 0
        for number, (ids, labels) in enumerate(_documents(rows, name)):
            if limit is not None and number >= limit:
                break
            if (found := _last_trained(ids, labels, number)) is None:
                without += 1
            else:
                prompts.append(found)
        if not prompts:
            what = f"none of the first {without} held-out rows has a prompt before a trained part, so none is completed"
            raise DataError(Problem(what, name, "hold out rows with a prompt and a completion, or choose no metrics"))
        return cls(prompts, without)


def _documents(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids and labels of each document."""
    import numpy as np

    for row in rows:
        if ATTACHED in row:
            what = "rows with images are not completed: completions are made from tokens alone"
            raise DataError(Problem(what, name, "set evaluate.metrics=[], or hold out rows of text"))
        ids, labels = np.asarray(row["input_ids"]), np.asarray(row["labels"])
        borders = np.flatnonzero(np.asarray(row.get("position_ids", ())) == 0)[1:]
        yield from zip(np.split(ids, borders), np.split(labels, borders), strict=True)


def _last_trained(ids: np.ndarray, labels: np.ndarray, row: int) -> Prompt | None:
    """The last run of trained labels as the reference, and all tokens before it as the prompt."""
    import numpy as np

    trained = labels != IGNORE_INDEX
    if not trained.any():
        return None
    end = len(labels) - int(np.argmax(trained[::-1]))
    untrained = np.flatnonzero(~trained[:end])
    start = int(untrained[-1]) + 1 if len(untrained) else 0
    # The first token of a document is never trained: alone, it is no prompt.
    return Prompt(ids[:start].tolist(), ids[start:end].tolist(), row) if start > 1 else None


def complete_prompts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    max_new_tokens: int,
    batch_size: int = 32,
    before_batch: Callable[[], None] | None = None,
) -> list[Completion]:
    """Greedy completions, in the order of the prompts.

    Args:
        model: the model; its modes, gradients and the random state stay as they were.
        tokenizer: its tokenizer.
        prompts: from `HeldOut`.
        max_new_tokens: where a completion ends at the latest.
        batch_size: prompts that are completed together.
        before_batch: called before each batch; what it raises ends the completing.
    """
    from sftkit.models.generation import complete

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    made = complete(model, tokenizer, [prompt.ids for prompt in prompts], max_new_tokens, batch_size, before_batch)
    return [
        Completion(text(prompt.ids), text(prompt.reference).strip(), completion, prompt.row)
        for prompt, completion in zip(prompts, made, strict=True)
    ]
