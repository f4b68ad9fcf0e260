"""Rows to examples ready for batches: format, encode, drop what cannot be trained on, fit or pack."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.data.columns import count_trained, flat
from sftkit.data.documents import Document, Formatter, RowError, Skipped
from sftkit.data.encode import encode
from sftkit.data.length import drop_untrained, fit_length
from sftkit.data.tally import Tally
from sftkit.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from sftkit.config import RunConfig
    from sftkit.registry import PluginSet

BATCH = 1000


@dataclass(frozen=True)
class Prepared:
    """The examples of each split, and what was done to the data on the way."""

    splits: dict[str, Dataset]
    tally: Tally

    @property
    def train(self) -> Dataset:
        """The examples to train on."""
        return self.splits["train"]

    @property
    def eval(self) -> dict[str, Dataset]:
        """The evaluation sets by name."""
        return {name: dataset for name, dataset in self.splits.items() if name != "train"}

    def summary(self) -> dict[str, dict[str, Any]]:
        """Rows, tokens, trained tokens, a fingerprint and the counts of each split, for the manifest."""
        return {name: {**describe(dataset), **self.tally.counts[name]} for name, dataset in self.splits.items()}


def describe(dataset: Dataset) -> dict[str, Any]:
    """Rows, tokens, trained tokens and a fingerprint over ids, labels and their borders."""
    import xxhash

    digest = xxhash.xxh3_128()
    ids, offsets = flat(dataset, "input_ids")
    labels, _ = flat(dataset, "labels")
    for array in (ids, offsets, labels):
        digest.update(array.tobytes())
    trained = int(count_trained(labels, offsets).sum())
    return {"rows": len(dataset), "tokens": len(ids), "trained tokens": trained, "fingerprint": digest.hexdigest()}


def prepare(
    sources: dict[str, Dataset], tokenizer: PreTrainedTokenizerBase, config: RunConfig, plugins: PluginSet
) -> Prepared:
    """Prepare every split.

    Args:
        sources: rows as read, by split; ``train`` is one of them.
        tokenizer: the run's tokenizer, with its chat template.

    Raises:
        DataError: for a row of a bad shape, or a split with nothing to train on.
    """
    tally = Tally()
    splits = {}
    for split, rows in sources.items():
        tally.add(split, "rows read", len(rows))
        formatter = plugins.hook.make_formatter(columns=rows.features, tokenizer=tokenizer, config=config)
        if formatter is None:
            mend = "select a formatter plugin, or drop no:formats"
            raise ConfigError(Problem(f"no plugin formats columns {', '.join(rows.features)}", f"data.{split}", mend))
        examples = make_examples(rows, split, formatter, tokenizer, tally)
        packed = plugins.hook.pack_dataset(dataset=examples, split=split, config=config, tally=tally)
        fitted = fit_length(examples, split, config, tally) if packed is None else packed
        if not len(fitted):
            mend = "raise data.max_length, or shorten the prompts"
            what = f"no trained token is left within data.max_length={config.data.max_length}"
            raise DataError(Problem(what, f"data.{split}", mend))
        splits[split] = fitted
    return Prepared(splits, tally)


def make_examples(
    rows: Dataset, split: str, formatter: Formatter, tokenizer: PreTrainedTokenizerBase, tally: Tally
) -> Dataset:
    """One example a row: ``input_ids`` and ``labels``; rows that cannot be trained on are counted and dropped.

    Raises:
        DataError: for a row of a bad shape, or if no row can be trained on; a row is shown.
    """
    import pyarrow as pa
    from datasets import Dataset

    from sftkit.data.columns import list_array

    batches: list[pa.Table] = []
    reasons: Counter[str] = Counter()
    shown = ""
    for start in range(0, len(rows), BATCH):
        documents = _format(rows, start, split, formatter, reasons)
        shown = shown or next(("".join(s.text for s in d) for d in documents), "")
        ids, labels, offsets = encode(documents, tokenizer, formatter.adds_special_tokens)
        batches.append(pa.table({"input_ids": list_array(ids, offsets), "labels": list_array(labels, offsets)}))
    for reason, number in reasons.items():
        tally.add(split, f"rows dropped: {reason}", number)
    if not sum(len(batch) for batch in batches):
        raise _nothing_trained(rows, split, reasons, "")
    examples = drop_untrained(Dataset(pa.concat_tables(batches)), split, tally)
    if not len(examples):
        reasons["every label is masked"] += 1
        raise _nothing_trained(rows, split, reasons, shown)
    return examples


def _format(rows: Dataset, start: int, split: str, formatter: Formatter, reasons: Counter[str]) -> list[Document]:
    batch = rows[start : start + BATCH]
    try:
        formatted = formatter(batch)
    except RowError as error:
        where = f"data.{split}, row {start + error.index + 1}"
        raise DataError(Problem(error.message, where, error.mend)) from error
    documents: list[Document] = []
    for document in formatted:
        if isinstance(document, Skipped):
            reasons[document.reason] += 1
        else:
            documents.append(document)
    return documents


def _nothing_trained(rows: Dataset, split: str, reasons: Counter[str], text: str) -> DataError:
    if not len(rows):
        return DataError(Problem("the data has no rows", f"data.{split}", "give a file with rows"))
    why = "; ".join(reasons) or "every row is empty"
    row = text or str(rows[0])
    mend = f"check what is trained (data.loss, the template); the first row is {row[:400]!r}"
    return DataError(Problem(f"no row can be trained on: {why}", f"data.{split}", mend))
