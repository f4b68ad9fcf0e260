"""Rows to compare models on: those of the run, prepared again, the held-out ones first."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import ATTACHED, LOSS_WEIGHTS, ConfigError, DataError, Problem, SftkitError, prepare_again

if TYPE_CHECKING:
    from sftkit.api import PreparedRun, TrainedModel

LONGEST = 256  # tokens of a row that are compared: their logits are held in memory
CALIBRATION, CALIBRATION_LONGEST = 1024, 2048
SAMPLES = "samples.jsonl"
FIX = "name some with --data"


@dataclass(frozen=True)
class Rows:
    """Rows to compare models on.

    Attributes:
        source: where they come from, in words.
        batches: the models' inputs, one row each.
        calibration: token ids of training documents in random order, for quantizers.
        notes: why they are not those of the run, if they are not.
    """

    source: str
    batches: list[Mapping[str, Any]]
    calibration: list[list[int]]
    notes: tuple[str, ...] = ()

    @property
    def ids(self) -> list[list[int]]:
        """The token ids of each row."""
        return [batch["input_ids"][0].tolist() for batch in self.batches]


def rows_of(trained: TrainedModel, number: int, data: str = "") -> Rows:
    """Rows of a run, or of other data.

    Args:
        trained: the model, of which the tokenizer is used.
        number: of rows.
        data: other data, as for ``--data``.

    Raises:
        ConfigError: if there are none.
    """
    try:
        prepared = prepare_again(trained, data)
    except SftkitError as error:
        if data:
            raise
        return _samples(trained, number, error.problems[0])
    held_out = list(
        islice((batch for split in prepared.data.eval.values() for batch in _batches(split, prepared)), number)
    )
    training = islice(_batches(prepared.data.splits.get("train", []), prepared), number - len(held_out))
    batches = [*held_out, *training]
    if not batches:
        raise DataError(Problem("there are no rows to compare models on", "--data", FIX))
    counted = {"held-out": len(held_out), "training": len(batches) - len(held_out)}
    source = " and ".join(f"{count} {kind}" for kind, count in counted.items() if count) + " rows of the run"
    return Rows(f"{len(batches)} rows of --data" if data else source, batches, _calibration(prepared))


def _batches(rows: Iterable[Mapping[str, Any]], prepared: PreparedRun) -> Iterator[Mapping[str, Any]]:
    for row in rows:
        if ATTACHED in row:
            batch = prepared.collator([dict(row)])
            yield {name: value for name, value in batch.items() if name not in ("labels", LOSS_WEIGHTS)}
        else:
            yield from (_batch(document) for document in _documents(row))


def _batch(ids: list[int]) -> Mapping[str, Any]:
    import torch

    return {"input_ids": torch.tensor([ids[:LONGEST]])}


def _documents(row: Mapping[str, Any]) -> Iterator[list[int]]:
    """The ids of a row, or of each document packed in it: positions restart at 0 in each."""
    ids, positions = list(map(int, row["input_ids"])), row.get("position_ids")
    starts = [0] if positions is None else [at for at, position in enumerate(positions) if position == 0]
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        if end - start > 1:
            yield ids[start:end]


def _calibration(prepared: PreparedRun) -> list[list[int]]:
    rows = prepared.data.splits.get("train", [])
    shuffled: Iterable[Mapping[str, Any]] = rows
    if hasattr(rows, "__len__"):
        shuffled = map(rows.__getitem__, random.Random(0).sample(range(len(rows)), len(rows)))
    documents = (document[:CALIBRATION_LONGEST] for row in shuffled for document in _documents(row))
    return list(islice(documents, CALIBRATION))


def _samples(trained: TrainedModel, number: int, problem: Problem) -> Rows:
    """The rows of ``samples.jsonl``: prompts with the model's last completions.

    Raises:
        ConfigError: if there is no such file.
    """
    directory = Path(trained.name)
    path = next((place / SAMPLES for place in (directory, directory.parent) if (place / SAMPLES).is_file()), None)
    why = f"the data of the run cannot be prepared again: {problem.what}"
    if path is None:
        raise ConfigError(Problem(why, problem.where or trained.name, FIX))
    texts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        completions = row.get("completions") or [{"text": row.get("reference", "")}]
        texts.append(row["prompt"] + completions[-1]["text"])
    ids = [trained.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    documents = [row for row in ids if len(row) > 1]
    if not documents:
        raise ConfigError(Problem(f"{why}; {path.name} has no rows either", problem.where or trained.name, FIX))
    batches = [_batch(row) for row in documents[:number]]
    return Rows(f"{len(batches)} rows of {path.name}", batches, documents, (why,))
