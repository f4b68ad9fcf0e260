# ruff: noqa: N806 (suffixes are shapes)
"""The pass of a teacher over the documents of a run.

Legend: B documents of a batch, T positions, K trained tokens of a batch, k of a chunk, V tokens, P the top ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit.api import (
    IGNORE_INDEX,
    ConfigError,
    DocumentKey,
    FrozenModel,
    Problem,
    RunError,
    StoredDocument,
    StoreWriter,
    Targets,
    chunks,
    documents_of_row,
    free_bytes,
    load_trained,
    new_directory,
    stage,
    stored_rows,
    tokens_by_id,
    vocabulary_difference,
    vocabulary_digest,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sftkit.api import Pipeline, PreparedRun


class Wanted(NamedTuple):
    """What to store; the options of the command."""

    teacher: str
    to: Path
    top: int
    temperature: float
    values: str
    batch_tokens: int
    loaders: tuple[str, ...]
    dtype: str
    device: str
    trust_remote_code: bool


class Written(NamedTuple):
    """What was stored.

    Attributes:
        directory: where.
        teacher: of whom.
        top: number of tokens that are stored of each distribution.
        temperature: of the distributions.
        documents: number of different documents.
        tokens: their trained tokens.
        kept: mean probability of the stored tokens.
        bytes: size of all files.
    """

    directory: str
    teacher: str
    top: int
    temperature: float
    documents: int
    tokens: int
    kept: float
    bytes: int


class _Found(NamedTuple):
    """A document, and where it is: its split, its row, and its number among the documents of the row."""

    key: DocumentKey
    split: str
    row: int
    number: int
    length: int


def write(pipeline: Pipeline, wanted: Wanted) -> Written:
    """Prepare the data of a run, and store the teacher's values of each of its documents.

    Raises:
        ConfigError: if the data is a stream, or the teacher cannot be loaded or has another tokenizer.
        RunError: if the disk or the device has too little memory.
    """
    prepared = pipeline.prepare()
    if prepared.config.data.streaming:
        what, fix = "the teacher runs on rows that are prepared", "set data.streaming: false here; the run may stream"
        raise ConfigError(Problem(what, "data.streaming", fix, ("data", "streaming")))
    with new_directory(wanted.to, "--to") as directory:
        stage("reading the documents")
        found = _documents(prepared)
        if not found:
            raise ConfigError(Problem("no token of the data is trained", "data", "see `sftkit preview`"))
        stage("loading the teacher")
        teacher, tokens = _teacher(prepared, wanted)
        top = min(wanted.top, tokens)
        _check_disk(found, top, wanted)
        columns = {"ids": ("int32", (top,)), "logp": (wanted.values, (top,)), "rest": ("float32", ())}
        writer = StoreWriter(directory, [each.key for each in found], columns)
        kept = _fill(writer, found, prepared, teacher, wanted._replace(top=top))
        writer.close(
            {
                **{"teacher": wanted.teacher, "k": top, "temperature": wanted.temperature},
                **{"tokens": tokens, "vocabulary": vocabulary_digest(prepared.tokenizer)},
            }
        )
        size = sum(path.stat().st_size for path in directory.iterdir())
    return Written(
        str(wanted.to), wanted.teacher, top, wanted.temperature, len(found), writer.tokens, kept / writer.tokens, size
    )


def _documents(prepared: PreparedRun) -> list[_Found]:
    """Each different document of all splits once."""
    found: dict[DocumentKey, _Found] = {}
    for split, rows in prepared.data.splits.items():
        for row, example in enumerate(stored_rows(rows)):
            for number, document in enumerate(documents_of_row(example)):
                key = document.key
                if key not in found:
                    found[key] = _Found(key, split, row, number, len(document.ids_L))
    return list(found.values())


def _teacher(prepared: PreparedRun, wanted: Wanted) -> tuple[FrozenModel, int]:
    """The teacher, and the number of its tokens."""
    loaded = load_trained(
        wanted.teacher,
        dtype=wanted.dtype or None,
        plugins=wanted.loaders,
        device=wanted.device or None,
        trust_remote_code=wanted.trust_remote_code,
    )
    if difference := vocabulary_difference(prepared.tokenizer, loaded.tokenizer):
        what = f"the teacher has another tokenizer than the run: {difference}"
        raise ConfigError(Problem(what, "--teacher", "use a teacher with the tokenizer of the student"))
    tokens = len(tokens_by_id(loaded.tokenizer))
    try:
        return FrozenModel(loaded.model, tokens), tokens
    except ValueError as error:
        raise ConfigError(Problem(str(error), "--teacher", "use one with logits for every token")) from error


def _check_disk(found: Sequence[_Found], top: int, wanted: Wanted) -> None:
    from sftkit.api import size_text

    width = 2 if wanted.values == "float16" else 4
    needed = sum(each.key.trained for each in found) * (top * (4 + width) + 4)
    if needed > (free := free_bytes(wanted.to)):
        what = f"{size_text(needed)} are needed, and {size_text(free)} are free"
        raise RunError(Problem(what, "--to", "name a directory on another disk, or lower --top"))


def _fill(
    writer: StoreWriter, found: Sequence[_Found], prepared: PreparedRun, teacher: FrozenModel, wanted: Wanted
) -> float:
    """Run the teacher on all documents; returns the sum of the probabilities that are stored."""
    import torch

    kept, done = 0.0, 0
    for numbers in batches([each.length for each in found], wanted.batch_tokens):
        documents = [_read(prepared, found[number]) for number in numbers]
        try:
            values = top_values(teacher, documents, wanted.top, wanted.temperature)
        except torch.OutOfMemoryError as error:
            what = f"out of memory with {len(documents)} documents of up to {found[numbers[0]].length} tokens"
            raise RunError(Problem(what, "--batch-tokens", f"lower it, it is {wanted.batch_tokens}")) from error
        kept += float((1 - values["rest"].exp()).sum())
        start = 0
        for number, document in zip(numbers, documents, strict=True):
            end = start + document.key.trained
            writer.put(number, {name: value[start:end].numpy() for name, value in values.items()})
            start = end
        done += len(documents)
        stage(f"{done:,} of {len(found):,} documents")
    return kept


def _read(prepared: PreparedRun, found: _Found) -> StoredDocument:
    rows = prepared.data.splits[found.split]
    return list(documents_of_row(rows[found.row]))[found.number]


def batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """The numbers of documents in batches of similar lengths, the longest first.

    Args:
        lengths: of the documents.
        tokens: of a batch, with padding; a longer document is alone.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def top_values(
    teacher: FrozenModel, documents: Sequence[StoredDocument], top: int, temperature: float
) -> Mapping[str, Tensor]:
    """The values of the trained tokens of some documents, one after the other, on the CPU.

    Returns:
        ``ids`` and ``logp`` (``[K, P]``) of the top tokens, the most likely one first, and ``rest`` (``[K]``), the
        log-probability of all others.
    """
    import torch

    inputs, targets = _batch(documents)
    states = teacher(inputs, targets)
    device = states.hidden_KD.device
    made: dict[str, list[Any]] = {"ids": [], "logp": [], "rest": []}
    for at in chunks(len(targets.tokens_K), teacher.vocabulary, device):
        logp_kV = torch.log_softmax(states.logits(at) / temperature, 1)
        logp_kP, ids_kP = logp_kV.topk(top, 1)
        rest_k = torch.logsumexp(logp_kV.scatter_(1, ids_kP, -torch.inf), 1)
        for name, value in (("ids", ids_kP.int()), ("logp", logp_kP), ("rest", rest_k)):
            made[name].append(value.cpu())
    return {name: torch.cat(parts) for name, parts in made.items()}


def _batch(documents: Sequence[StoredDocument]) -> tuple[dict[str, Any], Targets]:
    """Documents padded on the right, and their trained tokens."""
    import torch

    longest = max(len(document.ids_L) for document in documents)
    ids_BT = torch.zeros(len(documents), longest, dtype=torch.long)
    labels_BT, mask_BT = torch.full_like(ids_BT, IGNORE_INDEX), torch.zeros_like(ids_BT)
    for row, document in enumerate(documents):
        ids_L = torch.from_numpy(document.ids_L.astype("int64"))
        trained_L = torch.from_numpy(document.trained_L)
        here = slice(len(ids_L))
        ids_BT[row, here], mask_BT[row, here] = ids_L, 1
        labels_BT[row, here] = torch.where(trained_L, ids_L, IGNORE_INDEX)
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "use_cache": False}, Targets.of(labels_BT)
