"""The GGUF file and the Modelfile of an export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem
from sftkit_commands.export.gguf_check import check_gguf
from sftkit_commands.export.gguf_model import architecture_of, write_gguf
from sftkit_commands.export.gguf_tokens import Vocabulary, vocabulary_of
from sftkit_commands.export.llama_cpp import compare_llama_cpp, reason_not_compared
from sftkit_commands.export.model import say
from sftkit_commands.export.ollama import modelfile, translate
from sftkit_commands.export.proof import logits_of

if TYPE_CHECKING:
    from sftkit.api import TrainedModel
    from sftkit_commands.export.job import Report, Wanted
    from sftkit_commands.export.rows import Rows

GGUF_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
MODELFILE = "Modelfile"


def check_convertible(trained: TrainedModel, ollama: bool) -> Vocabulary:
    """The tokenizer as GGUF has it.

    Args:
        trained: the model with its tokenizer.
        ollama: whether its chat template is to be translated too.

    Raises:
        ConfigError: if the model, its tokenizer or its chat template cannot be written.
    """
    if trained.processor is not None:
        raise ConfigError(Problem("models with images are not written as GGUF", "--gguf", "export it without --gguf"))
    architecture_of(trained.model.config)
    rows = trained.model.get_input_embeddings().weight.shape[0]
    if ollama:
        translate(trained.tokenizer)
    return vocabulary_of(trained.tokenizer, rows, end_ids(trained.model, trained.tokenizer))


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a generation, the tokenizer's own first."""
    more = getattr(model.generation_config, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])]
    return list(dict.fromkeys(token for token in found if token is not None))


def convert(
    model: Any, vocabulary: Vocabulary, tokenizer: Any, target: Path, wanted: Wanted, report: Report, rows: Rows | None
) -> None:
    """Write the GGUF file of a directory, read it back, and compare it; write the Modelfile too if it is wanted.

    Args:
        model: the model of the directory, in float32.
        vocabulary: its tokenizer as GGUF has it.
        tokenizer: its tokenizer.
        target: the directory.
        wanted: the options of the export.
        report: where to note what was done.
        rows: rows to compare on.

    Raises:
        RunError: if the file is not what was to be written.
    """
    kind = wanted.gguf_type or GGUF_TYPES[report.dtype]
    path = target / f"{wanted.to.absolute().name}-{kind}.gguf"
    say("writing %s", path.name)
    unblocked = write_gguf(target, path, kind, vocabulary, wanted.to.absolute().name)
    number = check_gguf(path, target, architecture_of(model.config), kind, vocabulary)
    report.gguf = {
        "file": path.name,
        "type": kind,
        "tensors": number,
        "tokenizer": vocabulary.pre,
        "compared": "no",
        "ollama": "",
    }
    report.notes += vocabulary.notes
    if unblocked:
        report.notes.append(f"{unblocked} matrices are f16: their rows cannot be divided into blocks of q8_0")
    if wanted.ollama:
        text, notes = modelfile(model, tokenizer, vocabulary, path.name)
        (target / MODELFILE).write_text(text, encoding="utf-8")
        report.notes += notes
        report.gguf["ollama"] = MODELFILE
    if rows is None:
        report.notes.append("the GGUF file was not compared in llama.cpp: there are no rows; name some with --data")
    elif reason := reason_not_compared():
        report.notes.append(f"the GGUF file was not compared in llama.cpp: {reason}")
    else:
        say("comparing %s in llama.cpp", path.name)
        compare_llama_cpp(path, rows, tokenizer, logits_of(model, rows.batches), report)
