"""Data that supervised fine-tuning cannot use as it is: what it is for, and what to do with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sftkit.api import Columns, Problem, RowError
from sftkit_plugins.formats.column_types import element, is_json, is_messages, is_text, is_texts
from sftkit_plugins.formats.pairs import PAIRS

IMAGES = ("images", "image")
MEDIA = (*IMAGES, "videos", "video", "audios", "audio")
#: Columns that are false for answers that people disliked (TRL, ms-swift, LLaMA-Factory).
LABELS = ("label", "kto_tag")

_PROMPTS = ("prompt", "prompts", "question", "instruction", "query", "input", "inputs", "problem", "turns")

#: Columns of texts by two speakers in turn.
_DIALOGUES = ("dialog", "dialogue", "dialogues", "utterances", "chat")


def checked_columns(columns: Mapping[str, Any], *, images: bool) -> tuple[str, ...]:
    """The columns whose rows `check_rows` has to check: labels, and media unless they are used.

    Args:
        columns: the columns of the data, with their types.
        images: whether the run uses images.
    """
    media = [name for name in MEDIA if name in columns and not (images and name in IMAGES)]
    labels = [name for name in LABELS if getattr(columns.get(name), "dtype", None) == "bool"]
    return (*media, *labels)


def check_rows(checked: Collection[str], rows: Columns) -> None:
    """Checks rows for what their text alone would lose.

    Args:
        checked: the columns to check.
        rows: a batch.

    Raises:
        RowError: for a row with images, video or audio, or with an answer that is labelled as bad.
    """
    for name in checked:
        for index, value in enumerate(rows[name]):
            if name in LABELS:
                if value is False:
                    what = f"column {name!r} is false: feedback (KTO) that the answer is bad, so it must not be trained"
                    raise RowError(index, what, "remove such rows, or rename the column if it means something else")
            elif value:
                fix = (
                    "select plugin vision, or remove the column" if name in IMAGES else "remove the column, or the row"
                )
                raise RowError(index, f"column {name!r} has content that text alone would lose", fix)


def refusal(columns: Mapping[str, Any]) -> Problem | None:
    """Why data must not be read in a format that would fit, judging by its columns; None if nothing is wrong."""
    names = set(columns)
    if found := _preferences(columns):
        what = f"the columns {', '.join(found)} hold preference data (DPO), with answers that must not be trained"
        return Problem(what, "data", _without_worse(columns, *found))
    if {"prompt", "completions", "labels"} <= names:
        what = "the columns prompt, completions, labels hold steps of answers with labels (stepwise supervision)"
        return Problem(what, "data", "join the right steps to one text, in a column named completion")
    if "positive" in names and names & {"negative", "anchor", "query"}:
        what = "a column positive beside others is data for embeddings or retrieval (ranking), without an answer"
        return Problem(what, "data", "use data with a prompt and its answer, or set formats:columns")
    if {"reflection", "corrected"} <= names:
        what = "the columns reflection and corrected change the answer in output, so output alone is wrong"
        fix = "write them as one answer, or set formats:columns to {prompt: instruction, completion: corrected}"
        return Problem(what, "data", fix)
    threaded = names & {"message_id", "parent_id", "message_tree_id"}
    alone = not names & {*_PROMPTS, "messages", "conversations", "conversation"}
    if "role" in names and names & {"text", "content"} and (threaded or alone):
        what = "each row is a single message with a role; a conversation needs all of its messages in one row"
        fix = "join the messages of each conversation to a list in a column named messages"
        fix = f"{fix}; for Open Assistant, use the file of trees" if threaded else fix
        return Problem(what, "data", fix)
    return None


def _preferences(columns: Mapping[str, Any]) -> list[str]:
    """The columns of better and worse answers, if the data has them, and not a conversation to train on as well."""
    for pair in (("chosen", "rejected"), ("preferred_output", "non_preferred_output")):
        if set(pair) <= set(columns):
            return [] if is_messages(columns.get("messages")) else list(pair)
    return [name for name in ("rejected_response", "rejected_messages") if name in columns][:1]


def _without_worse(columns: Mapping[str, Any], better: str, worse: str = "") -> str:
    """How to train on the better answers alone."""
    if not worse:
        return f"remove the column {better!r}, or train with a method for preferences"
    if is_text(columns[better]):
        names = {"instruction": "output", "prompt": "completion"}
        name = next((answer for prompt, answer in names.items() if is_text(columns.get(prompt))), "")
        asked = next((prompt for prompt in _PROMPTS if is_text(columns.get(prompt))), None)
        if not name and asked:
            return (
                f"to train on the better answers alone, set formats:columns to {{question: {asked}, answer: {better}}}"
            )
        name = name or "text"
    elif is_messages(columns[better]):
        name = "completion" if is_messages(columns.get("prompt")) else "messages"
    else:
        return "to train on the better answers alone, add them to their conversations, and remove both columns"
    return f"to train on the better answers alone, set formats:columns to {{{name}: {better}}}"


def nothing_to_train(columns: Mapping[str, Any]) -> str:
    """What data is that no format fits, if that can be said; else empty text."""
    names = set(columns)
    ranked = [name for name in names if isinstance(inner := element(columns[name]), Mapping) and "rank" in inner]
    if ranked:
        return f"column {ranked[0]!r} holds ranked answers (preference data); choose one answer for each row"
    if "body" in names and names & {"custom_id", "method", "url"}:
        return "these are requests of a batch, without answers"
    found = [name for name in _PROMPTS if name in names and _is_prompt(columns[name])]
    others = [name for name in names if name not in found and _is_prompt(columns[name])]
    answered = names & {answer for _, answer in PAIRS}
    if found and not answered and (not others or "turns" in found):
        return f"the column {found[0]} holds only prompts: there is no answer, so nothing to train"
    return ""


def suggestion(columns: Mapping[str, Any]) -> str:
    """The option ``columns`` for data that no format fits, if it is plain what its columns may be; else empty text."""
    lists = [name for name, feature in columns.items() if is_messages(feature) and not is_json(feature)]
    texts = [name for name, feature in columns.items() if is_text(feature)]
    turns = [name for name, feature in columns.items() if name.lower() in _DIALOGUES and is_texts(feature)]
    if len(lists) == 1:
        return f"{{messages: {lists[0]}}}"
    if len(turns) == 1 and not lists:
        return f"{{conversation: {turns[0]}}}"
    return f"{{question: {texts[0]}, answer: {texts[1]}}}" if len(texts) == 2 and not lists else ""


def _is_prompt(feature: Any) -> bool:
    return is_text(feature) or is_texts(feature) or is_messages(feature)
