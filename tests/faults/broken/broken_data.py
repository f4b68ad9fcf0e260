# ruff: noqa: N806 (suffixes are shapes)
"""Formatters, packers, tokenizers and metrics with the mistakes that their authors make."""

from __future__ import annotations

import dataclasses

import numpy as np

from sftkit.api import Formatter, Packer, Plugin, Skipped, Span, TokenDocument, dataclass, examples_table, hookimpl

_SEEN: list[Span] = []


def good(prompt, completion):
    return [Span(prompt, False), Span(completion, True)]


def accumulating(prompt, completion):
    _SEEN.extend(good(prompt, completion))
    return [*_SEEN]


#: What a formatter makes of a row, by name.
ROWS = {
    "yields no document": lambda *_: [],
    "yields empty text": lambda *_: [Span("", True)],
    "trains nothing": lambda prompt, completion: [Span(prompt + completion, False)],
    "yields two documents as one": lambda *row: [good(*row), good(*row)],
    "yields a text": lambda prompt, completion: prompt + completion,
    "yields plain strings": lambda prompt, completion: [prompt, completion],
    "yields a dict": lambda prompt, completion: {"prompt": prompt, "completion": completion},
    "yields the same document": lambda *_: good("same", " document"),
    "keeps state": accumulating,
    "returns None for some rows": lambda prompt, completion: good(prompt, completion) if "3" in prompt else None,
    "skips every row": lambda *_: Skipped("nothing to learn"),
    "has text that is no text": lambda prompt, _: [Span(prompt, False), Span(7, True)],
    "has weights that are no numbers": lambda *row: [span._replace(weight="much") for span in good(*row)],
    "yields tokens": lambda *_: TokenDocument([1, 2, 3], [-100, 2, 3]),
}


@dataclasses.dataclass(frozen=True)
class Rows(Formatter):
    how: str

    @property
    def tokenized(self):
        return self.how == "has token ids out of the vocabulary"

    def __call__(self, rows):
        pairs = [*zip(rows["prompt"], rows["completion"], strict=True)]
        if self.how == "returns fewer rows":
            return [good(*pair) for pair in pairs[1:]]
        if self.how == "returns None":
            return None
        if self.tokenized:
            return [TokenDocument([1, 9_000 + at], [-100, 9_000 + at]) for at, _ in enumerate(rows["prompt"])]
        return [ROWS[self.how](*pair) for pair in pairs]


#: What a `make_formatter` does, by name.
FORMATTERS = (*ROWS, "returns fewer rows", "returns None", "has token ids out of the vocabulary", "is no formatter")


@dataclass(frozen=True, kw_only=True)
class Format(Plugin):
    """Formats rows with a mistake."""

    how: str

    @hookimpl
    def make_formatter(self):
        return (lambda rows: rows) if self.how == "is no formatter" else Rows(self.how)


@dataclasses.dataclass(frozen=True)
class Rearranged(Packer):
    how: str
    max_length: int

    def __call__(self, examples):
        documents = [*range(len(examples))]
        if self.how == "loses documents":
            documents = documents[:-3]
        if self.how == "duplicates documents":
            documents = [*documents, 0, 1]
        if self.how == "repeats one document and loses another":
            documents[1] = 0
        room, rows = (10 * self.max_length if self.how == "exceeds max_length" else self.max_length), [[]]
        for number in documents:
            if sum(examples.lengths_N[each] for each in rows[-1]) + examples.lengths_N[number] > room:
                rows.append([])
            rows[-1].append(number)
        yield self.table(examples, rows)

    def table(self, examples, rows):
        taken = examples.take(np.array([number for row in rows for number in row]))
        lengths = [sum(examples.lengths_N[number] for number in row) for row in rows]
        offsets_R1 = np.cumsum([0, *lengths])
        positions_S = np.concatenate([np.arange(length) for length in taken.lengths_N])
        if self.how == "positions that do not restart":
            positions_S = np.concatenate([np.arange(length) for length in lengths])
        labels_S = taken.labels_S
        if self.how == "trains every token":
            labels_S = taken.ids_S
        ids_S = taken.ids_S[::-1] if self.how == "reverses the tokens" else taken.ids_S
        columns = {"input_ids": ids_S, "labels": labels_S, "position_ids": positions_S}
        if self.how == "no position_ids":
            del columns["position_ids"]
        return examples_table(offsets_R1, taken.weights_S, **columns)


#: What a packer does, by name.
PACKERS = (
    "loses documents",
    "duplicates documents",
    "repeats one document and loses another",
    "exceeds max_length",
    "positions that do not restart",
    "no position_ids",
    "trains every token",
    "reverses the tokens",
)


@dataclass(frozen=True, kw_only=True)
class Pack(Plugin):
    """Packs rows with a mistake."""

    how: str

    @hookimpl
    def make_packer(self, config):
        return Rearranged(self.how, config.data.max_length)


def remove_eos(tokenizer):
    tokenizer.eos_token = None


def renumber(tokenizer):
    import json

    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


#: What an `add_tokens` does to the tokenizer, by name.
TOKENS = {"removes EOS": remove_eos, "renumbers tokens": renumber}


@dataclass(frozen=True, kw_only=True)
class Tokens(Plugin):
    """Changes tokens that the model knows."""

    how: str

    @hookimpl
    def add_tokens(self, tokenizer):
        TOKENS[self.how](tokenizer)


#: What a `load_tokenizer` returns that is no tokenizer, by name.
TOKENIZERS = {"returns a function": lambda: str.split, "returns a name": lambda: "gpt2"}


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Plugin):
    """Loads no tokenizer."""

    how: str

    @hookimpl
    def load_tokenizer(self):
        return TOKENIZERS[self.how]()


#: What a `metrics` returns that cannot be computed, by name.
METRICS = {
    "returns strings": lambda: {"broken": "exact"},
    "returns a list": lambda: ["broken"],
    "returns functions of strings": lambda: {"broken": lambda completions: "much"},
}


@dataclass(frozen=True, kw_only=True)
class Metrics(Plugin):
    """Offers what is no metric."""

    how: str

    @hookimpl
    def metrics(self):
        return METRICS[self.how]()
