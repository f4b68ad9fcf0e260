"""Checks what ends the answers of the prepared data, what begins its rows, and its chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import DatasetStats, Status, Verdict, base_of, model_shape

if TYPE_CHECKING:
    from sftkit.api import PreparedRun

END_LEAST = 0.9  # of rows with a trained EOS: rows whose last answer is not trained need none
LOOKED_AT = 64  # rows, evenly spaced, in which the text of the chat template is looked for


def token_verdicts(split: str, stats: DatasetStats, done: Counter[str], run: PreparedRun) -> Iterator[Verdict]:
    """Verdicts on EOS, BOS, padding and the chat template of a split."""
    tokenizer = run.tokenizer
    yield _eos(split, stats, done, run)
    if stats.ended_twice:
        what = f"{split}: in {stats.ended_twice:,} rows, the token that ends the answer is trained twice in succession"
        yield Verdict("EOS twice", "warn", what, "remove it from the contents, or from the chat template")
    if stats.bos_doubled:
        what = f"{split}: {stats.bos_doubled:,} rows begin with two BOS tokens"
        yield Verdict("BOS", "wrong", what, "remove the BOS token from the data or from the chat template")
    elif stats.without_bos and _adds_bos(tokenizer):
        what = f"{split}: {stats.without_bos:,} rows do not begin with BOS, which the tokenizer adds to plain text"
        yield Verdict("BOS", "warn", what, "begin the chat template with bos_token")
    if split == "train":
        if tokenizer.pad_token_id is None:
            what = "the tokenizer has no pad token; batches are padded with EOS, and padding is never trained"
            yield Verdict("padding", "ok", what)
        yield from _chat_template(stats, run)


def _eos(split: str, stats: DatasetStats, done: Counter[str], run: PreparedRun) -> Verdict:
    tokenizer = run.tokenizer
    if tokenizer.eos_token_id is None:
        what = "the tokenizer has no EOS token, so the model cannot learn to stop"
        return Verdict("EOS", "wrong", what, "set an EOS token, for instance with -p chatml")
    stops = stop_ids(run)
    by_token = sorted(((int(token), rows) for token, rows in stats.ends.items()), key=lambda item: -item[1])
    used = [(token, rows) for token, rows in by_token if token in stops]
    trained = sum(rows for _, rows in used)
    cut = min(done["completions cut"], trained)
    names = ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token, _ in used or [(stops[0], 0)])
    what = f"{split}: EOS {names} is trained in {(trained - cut) / max(stats.rows, 1):.1%} of the rows"
    if cut:
        what += f"; {cut:,} of the others were cut"
    fix = "end answers with the EOS token in the chat template, or make its end token the EOS, as -p chatml does"
    others = [(token, rows) for token, rows in by_token if token not in stops]
    if others and trained < stats.rows:
        token, rows = others[0]
        what += f"; {rows:,} rows end with {tokenizer.convert_ids_to_tokens(token)!r}, which is not an EOS"
    status: Status = "wrong" if not trained else "warn" if trained < END_LEAST * stats.rows else "ok"
    return Verdict("EOS", status, what, "" if status == "ok" else fix)


def stop_ids(run: PreparedRun) -> list[int]:
    """The tokens at which generation stops: the tokenizer's EOS, and those of the model's generation configuration."""
    if run.model is not None:
        listed = getattr(run.model.generation_config, "eos_token_id", None)
    else:
        listed = _configured_ends(run)
    more = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    return list(dict.fromkeys([run.tokenizer.eos_token_id, *more]))


def _configured_ends(run: PreparedRun) -> int | list[int] | None:
    """As of the generation configuration beside the model, else of the model's own; None if neither is there."""
    from transformers import GenerationConfig

    section = run.config.model
    name, revision = base_of(section.name, section.revision)
    if Path(name).is_dir() and not Path(name, "generation_config.json").is_file():
        shape = model_shape(run)
        return None if shape is None else shape.eos_token_id
    try:
        return getattr(GenerationConfig.from_pretrained(name, revision=revision), "eos_token_id", None)
    except (OSError, ValueError):
        return None


def _chat_template(stats: DatasetStats, run: PreparedRun) -> Iterator[Verdict]:
    """Whether rows were written in the chat template that a plugin has set, by the template or by the user."""
    if not run.vocabulary.template_set or stats.rendered:
        return
    opening = _opening(run.tokenizer)
    if opening and any(opening in text for text in _some_texts(run)):
        return
    plugins = [name for name in run.plugins.fillers("add_tokens") if name not in run.plugins.fillers("load_tokenizer")]
    what = f"{' and '.join(plugins)} set the chat template, but no row of train was written in it, so that the saved "
    what += "template would never have been trained"
    fix = f"drop -p {plugins[0]}, or use conversations: the columns messages, or prompt and completion with messages"
    yield Verdict("chat template", "wrong", what, fix, "plugins")


def _opening(tokenizer: Any) -> str:
    """What the chat template writes before an answer; empty if that is not known."""
    messages = [{"role": "user", "content": "a question"}]
    try:
        plain, prompt = (
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=wanted)
            for wanted in (False, True)
        )
    except Exception:  # a template runs the user's Jinja, which may raise anything
        return ""
    return str(prompt[len(plain) :]).strip() if prompt.startswith(plain) else ""


def _some_texts(run: PreparedRun) -> Iterator[str]:
    rows = run.data.train
    examples: Iterator[Any] = islice(iter(rows), LOOKED_AT)
    if hasattr(rows, "__len__"):
        examples = (rows[index] for index in range(0, len(rows), max(len(rows) // LOOKED_AT, 1)))
    return (run.tokenizer.decode(example["input_ids"]) for example in examples)


def _adds_bos(tokenizer: Any) -> bool:
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
