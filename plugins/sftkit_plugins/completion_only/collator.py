# ruff: noqa: N803, N806 (suffixes are shapes)
"""A collator that trains only on completions, for transformers.Trainer and its subclasses.

Legend: B rows of a batch, T tokens of its longest row, L tokens of one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import DataCollatorForLanguageModeling

from sftkit.api import warn_caller
from sftkit_plugins.completion_only.search import Region, Template, between, places

if TYPE_CHECKING:
    from torch import Tensor


class DataCollatorForCompletionOnlyLM(DataCollatorForLanguageModeling):
    """Makes batches whose labels are the responses in each row, found by templates among its token ids.

    Without an instruction template, the tokens after the last response template of a row are trained. With one, the
    tokens after each response template are trained, up to the next instruction template. If a template is missing in a
    row, there is a warning and no token of the row is trained. Padding is never trained. Unlike in TRL, an EOS at the
    end of a row is trained even if it is also the pad token: padding is recognised by its position, not by its id.

    Args:
        response_template: text, or token ids in context, after which a response begins.
        instruction_template: text, or token ids in context, at which a response ends.
        args: arguments of `transformers.DataCollatorForLanguageModeling`, the tokenizer first.
        mlm: whether to mask tokens for masked language modeling.
        ignore_index: label of tokens that are not trained.
        padding_free: concatenate the rows of a batch without padding; ``position_ids`` restart at each row.
        kwargs: like ``args``, by name.

    Source: the class of this name in TRL 0.11.
    """

    def __init__(
        self,
        response_template: Template,
        instruction_template: Template | None = None,
        *args: Any,
        mlm: bool = False,
        ignore_index: int = -100,
        padding_free: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, mlm=mlm, **kwargs)
        self.instruction_template, self.response_template = instruction_template, response_template
        self.instruction_token_ids = None if instruction_template is None else self._ids(instruction_template)
        self.response_token_ids = self._ids(response_template)
        self.ignore_index, self.padding_free = ignore_index, padding_free
        if not mlm and instruction_template and self.tokenizer.pad_token_id == self.tokenizer.eos_token_id:
            warn_caller(
                "The pad_token_id and eos_token_id values of this tokenizer are identical. In conversations of several "
                "turns, a trainer that recognises padding by its id never teaches the model to end a turn with EOS: "
                "set the tokenizer's pad_token to another token."
            )

    def _ids(self, template: Template) -> list[int]:
        if isinstance(template, str):
            return self.tokenizer.encode(template, add_special_tokens=False)
        return template

    def torch_call(self, examples: list[Any]) -> Any:
        """A batch of token ids, attention mask and labels (int64, ``[B, T]``).

        Args:
            examples: lists of token ids, or mappings with ``input_ids`` and optional ``attention_mask``; any labels in
                them are replaced.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels``; with ``padding_free``, one row of ``input_ids``,
            ``position_ids`` and ``labels``.
        """
        rows = [_plain(example) for example in examples]
        batch = super().torch_call(rows)
        ids = [row["input_ids"] if isinstance(row, Mapping) else row for row in rows]
        if "attention_mask" not in batch:
            batch["attention_mask"] = self._unpadded(ids, batch["input_ids"])
        labels_BT = batch["labels"] if self.mlm else batch["input_ids"].clone()
        batch["labels"] = self._only_responses(labels_BT, ids, batch)
        return self._without_padding(batch) if self.padding_free else batch

    def numpy_call(self, examples: list[Any]) -> dict[str, Any]:
        """The same batch as numpy arrays."""
        return {name: values.numpy() for name, values in self.torch_call(examples).items()}

    def _only_responses(self, labels_BT: Tensor, ids: list[list[int]], batch: Mapping[str, Tensor]) -> Tensor:
        import torch

        trained_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
        for trained_T, ids_L in zip(trained_BT, ids, strict=True):
            first = self._first(ids_L, len(trained_T))
            for start, end in self._responses(ids_L):
                trained_T[first + start : first + end] = True
        trained_BT &= batch["attention_mask"].bool()
        if self.tokenizer.pad_token_id not in (None, self.tokenizer.eos_token_id):
            trained_BT &= batch["input_ids"] != self.tokenizer.pad_token_id
        return labels_BT.masked_fill(~trained_BT, self.ignore_index)

    def _responses(self, ids_L: list[int]) -> Sequence[Region]:
        """The responses of a row; none, with a warning, if a template is missing."""
        responses = self._places("response", self.response_template, self.response_token_ids, ids_L)
        instructions = None
        if self.instruction_template is not None and self.instruction_token_ids is not None:
            instructions = self._places("instruction", self.instruction_template, self.instruction_token_ids, ids_L)
        if not responses or instructions == []:
            return []
        return between(responses, instructions, len(ids_L))

    def _places(self, name: str, template: Template, token_ids: list[int], ids_L: list[int]) -> list[Region]:
        found = places(token_ids, ids_L)
        if not found:
            warn_caller(
                f"Could not find {name} key `{template}` in the following instance: {self.tokenizer.decode(ids_L)} "
                "This instance is ignored in loss calculation: none of its tokens is trained. If that happens often, "
                "rows may be cut before the template: consider a larger `max_seq_length`."
            )
        return found

    def _first(self, ids_L: list[int], width: int) -> int:
        """Where a row of the batch begins after its padding."""
        return width - len(ids_L) if self.tokenizer.padding_side == "left" else 0

    def _unpadded(self, ids: list[list[int]], ids_BT: Tensor) -> Tensor:
        import torch

        mask_BT = torch.zeros_like(ids_BT)
        for mask_T, ids_L in zip(mask_BT, ids, strict=True):
            first = self._first(ids_L, len(mask_T))
            mask_T[first : first + len(ids_L)] = 1
        return mask_BT

    def _without_padding(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mask_BT = batch["attention_mask"].bool()
        position_ids = (mask_BT.cumsum(1) - 1)[mask_BT][None]
        rest = {name: batch[name][mask_BT][None] for name in ("input_ids", "labels")}
        return {
            **rest,
            "position_ids": position_ids,
        }  # the first label of a row is never trained: a template precedes it


def _plain(example: Any) -> Any:
    """The example as lists, without labels."""
    if isinstance(example, Mapping):
        return {name: _as_list(values) for name, values in example.items() if name != "labels"}
    return _as_list(example)


def _as_list(values: Any) -> Any:
    if isinstance(values, tuple):
        return list(values)
    return values.tolist() if hasattr(values, "tolist") else values
