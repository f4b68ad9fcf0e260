"""The default collator: rows padded on the right to the longest of the batch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from sftkit.api import Field, Plugin, dataclass, hookimpl

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from sftkit.api import Collator


@dataclass(frozen=True, kw_only=True)
class Pad(Plugin):
    """Batches padded on the right to their longest row (default)."""

    to_multiple_of: Annotated[
        int | None,
        Field(gt=0, description="round the length of a batch up to a multiple of this, such as 8 for tensor cores"),
    ] = None

    @hookimpl
    def make_collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """A collator that pads with the tokenizer's pad token, else its EOS, else id 0; padding is never trained."""
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        pad_id = next(token for token in candidates if token is not None)
        return PadCollator(pad_id, self.to_multiple_of)


@dataclasses.dataclass(frozen=True)
class PadCollator:
    """Makes a batch of right-padded int64 tensors ``[B, T]`` from examples.

    Padding has label -100 and attention 0, so a pad token that equals EOS leaves the real EOS trained. Packed rows
    (with ``position_ids``) get no attention mask: their padding is a separate document, whose positions restart.
    """

    pad_id: int
    to_multiple_of: int | None = None

    @property
    def pads_only(self) -> bool:
        """Whether nobody asked for the padding, so that a plugin may make the batches without it."""
        return self.to_multiple_of is None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch: ``input_ids``, ``labels`` and either ``attention_mask`` or ``position_ids``.

        If an example has ``loss_weights`` (float32), so has the batch: 1 in padding and for examples without them. All
        tokens of an example without ``labels`` are trained; tokens that its ``attention_mask`` masks are removed.
        """
        import numpy as np
        import torch

        examples = [_whole(example) for example in examples]
        lengths = [len(example["input_ids"]) for example in examples]
        width = -(-max(lengths) // (self.to_multiple_of or 1)) * (self.to_multiple_of or 1)
        packed = "position_ids" in examples[0]
        fills = {"input_ids": self.pad_id, "labels": -100, "position_ids" if packed else "attention_mask": 0}
        batch = {name: np.full((len(examples), width), fill, dtype=np.int64) for name, fill in fills.items()}
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            batch["input_ids"][row, :length] = example["input_ids"]
            batch["labels"][row, :length] = example["labels"]
            if packed:
                batch["position_ids"][row, :length] = example["position_ids"]
                batch["position_ids"][row, length:] = np.arange(width - length)
            else:
                batch["attention_mask"][row, :length] = 1
        made = {name: torch.from_numpy(array) for name, array in batch.items()}
        if any("loss_weights" in example for example in examples):
            weights = np.ones((len(examples), width), np.float32)
            for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
                weights[row, :length] = example.get("loss_weights", 1)
            made["loss_weights"] = torch.from_numpy(weights)
        return made


def _whole(example: dict[str, Any]) -> dict[str, Any]:
    """The example with labels, and without masked tokens."""
    import numpy as np

    if "labels" not in example:
        labels = np.array(example["input_ids"])
        labels[:1] = -100  # nothing precedes it
        example = {**example, "labels": labels}
    if "attention_mask" not in example:
        return example
    real = np.asarray(example["attention_mask"]) != 0
    arrays = {
        name: example[name] for name in ("input_ids", "labels", "position_ids", "loss_weights") if name in example
    }
    return {name: np.asarray(values)[real] for name, values in arrays.items()}
