"""A fast tokenizer as a GGUF file has it: tokens with their types, merges or scores, special ids, chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.api import ConfigError, Problem

WHERE = "--gguf"
FIX = "export it without --gguf; convert_hf_to_gguf.py of llama.cpp knows more tokenizers"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
#: Expressions that split text before byte-level BPE, by llama.cpp's name of them.
EXPRESSIONS = {_WORDS % r"\p{N}{1,3}": "llama-bpe", _WORDS % r"\p{N}": "qwen2"}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF has it.

    Attributes:
        model: ``gpt2`` for byte-level BPE; ``llama`` for BPE over text with bytes as a fallback, as of SentencePiece.
        pre: how text is split before BPE, by llama.cpp's name.
        tokens: text of each id.
        types: type of each id, as llama.cpp numbers them.
        merges: of byte-level BPE, the first applied first; empty for ``llama``.
        scores: of ``llama``, the highest merged first; empty for ``gpt2``.
        ids: special tokens by their role in GGUF, such as ``bos``.
        adds: whether a token of a role is added around text.
        space_prefix: of ``llama``, whether a blank is put before text.
        template: the chat template, without the marks of trained parts.
        notes: what llama.cpp does otherwise than the tokenizer.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    ids: Mapping[str, int]
    adds: Mapping[str, bool]
    space_prefix: bool
    template: str | None
    notes: tuple[str, ...] = ()


def vocabulary_of(tokenizer: Any, rows: int, ends: list[int]) -> Vocabulary:
    """The tokenizer as GGUF has it.

    Args:
        tokenizer: a fast tokenizer.
        rows: rows of the model's embeddings; those beyond the tokens become unused tokens.
        ends: ids that end a generation.

    Raises:
        ConfigError: if llama.cpp would tokenize text in another way.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    if model["type"] != "BPE":
        raise ConfigError(Problem(f"the tokenizer is a {model['type']}, and only BPE is written", WHERE, FIX))
    tokens, types = _tokens(backend, rows)
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    sentencepiece = bool(model.get("byte_fallback"))
    notes: tuple[str, ...] = ()
    pre, prefix = "default", False
    scores: list[float] = []
    if sentencepiece:
        prefix, notes = _space_prefix(backend)
        scores = _scores(tokens, types, merges)
    else:
        pre = _split(backend)
    adds, more = _added(tokenizer)
    return Vocabulary(
        "llama" if sentencepiece else "gpt2",
        pre,
        tuple(tokens),
        tuple(types),
        () if sentencepiece else tuple(" ".join(merge) for merge in merges),
        tuple(scores),
        _special_ids(tokenizer, ends),
        adds,
        prefix,
        plain_template(tokenizer.chat_template),
        (*notes, *more),
    )


def add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Write a tokenizer into a GGUF file."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    for role, token in vocabulary.ids.items():
        getattr(writer, f"add_{role}_token_id")(token)
    for role, added in vocabulary.adds.items():
        getattr(writer, f"add_add_{role}_token")(added)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)


def plain_template(template: Any) -> str | None:
    """A chat template without the tags ``generation``, which mark trained parts and only transformers knows.

    Raises:
        ConfigError: if the tokenizer has several templates.
    """
    if isinstance(template, Mapping):
        raise ConfigError(Problem("the tokenizer has several chat templates", WHERE, "keep one of them"))
    if template is None:
        return None
    opened = re.sub(r"\{%([-+]?)\s*generation\s*([-+]?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}", r"{%\1 endif \2%}", opened)


def _tokens(backend: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    added = {item["id"]: item for item in backend["added_tokens"]}
    known = {number: text for text, number in backend["model"]["vocab"].items()}
    known |= {number: item["content"] for number, item in added.items()}
    if max(known) >= rows:
        what = f"the tokenizer has {max(known) + 1} tokens, but the model has only {rows} rows for them"
        raise ConfigError(Problem(what, WHERE, "use the tokenizer of the model"))
    unknown, bytes_too = backend["model"].get("unk_token"), backend["model"].get("byte_fallback")
    tokens, types = [], []
    for number in range(rows):
        text = known.get(number)
        tokens.append(f"[PAD{number}]" if text is None else text)
        if text is None:
            types.append(UNUSED)
        elif bytes_too and text == unknown:
            types.append(UNKNOWN)
        elif number in added:
            types.append(CONTROL if added[number]["special"] else USER_DEFINED)
        else:
            types.append(BYTE if bytes_too and _BYTE.fullmatch(text) else NORMAL)
    return tokens, types


def _split(backend: dict[str, Any]) -> str:
    """The name that llama.cpp gives to how the tokenizer splits text before byte-level BPE.

    Raises:
        ConfigError: if it has no name for it here.
    """
    steps = backend["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps]) if steps else []
    kinds = [step["type"] for step in steps]
    name = None
    if kinds == ["ByteLevel"] and steps[0]["use_regex"] and not steps[0]["add_prefix_space"]:
        name = "gpt-2"
    elif kinds == ["Split", "ByteLevel"] and not (steps[1]["use_regex"] or steps[1]["add_prefix_space"]):
        regular = steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]
        name = EXPRESSIONS.get(steps[0]["pattern"].get("Regex", "")) if regular else None
    whole = bool(backend["model"].get("ignore_merges"))
    normalizer = (backend["normalizer"] or {}).get("type", "NFC")
    if name is None or normalizer != "NFC" or whole != (name == "llama-bpe"):
        what = "the tokenizer splits or normalizes text in a way that is not known to be one of llama.cpp's"
        raise ConfigError(Problem(what, WHERE, FIX))
    return name


def _space_prefix(backend: dict[str, Any]) -> tuple[bool, tuple[str, ...]]:
    """Whether a blank is put before text, and how llama.cpp differs."""
    found = json.dumps([backend["normalizer"], backend["pre_tokenizer"]])
    scheme = re.search(r'"prepend_scheme": "(\w+)"', found)
    if '"type": "Prepend"' in found or (scheme and scheme[1] == "always"):
        return True, ()
    if scheme and scheme[1] == "first":
        return True, ("llama.cpp puts a blank before text that follows a special token; the training did not",)
    return False, ()


def _scores(tokens: list[str], types: list[int], merges: list[tuple[str, ...]]) -> list[float]:
    """A score for each token, so that merging into the highest first merges in the order of the tokenizer.

    SentencePiece gives runs of one character, such as blanks, the same score; these merges lie among each other.

    Raises:
        ConfigError: if there is no such order: merges into other tokens lie among each other too.
    """
    ends: dict[str, tuple[int, int]] = {}
    for rank, merge in enumerate(merges):
        made = "".join(merge)
        ends[made] = (ends.get(made, (rank,))[0], rank)
    scores: dict[str, float] = {}
    reached, score, last = -1, 0.0, ""
    for made, (first, final) in sorted(ends.items(), key=lambda item: item[1]):
        if first > reached:
            score -= 1
        elif len({*made, *last}) > 1:
            what = f"merges into {last!r} and {made!r} are interleaved, which scores cannot express"
            raise ConfigError(Problem(what, WHERE, FIX))
        scores[made] = score
        reached, last = max(reached, final), made
    kinds = zip(tokens, types, strict=True)
    return [scores.get(text, score - 1) if kind == NORMAL else 0.0 for text, kind in kinds]


def _special_ids(tokenizer: Any, ends: list[int]) -> dict[str, int]:
    roles = {"bos": "bos", "eos": "eos", "unk": "unk", "pad": "pad"}
    found = {role: getattr(tokenizer, f"{name}_token_id") for role, name in roles.items()}
    others = [token for token in ends if token != found["eos"]]
    found["eot"] = others[0] if others else None
    return {role: int(token) for role, token in found.items() if token is not None}


def _added(tokenizer: Any) -> tuple[dict[str, bool], tuple[str, ...]]:
    """Whether BOS and EOS are put around text, and how llama.cpp differs.

    llama.cpp puts BOS before a rendered conversation too. So the conversations decide where there is a chat template.
    """
    from jinja2.exceptions import TemplateError

    ids = tokenizer("a")["input_ids"]
    found = {"bos": ids[:1] == [tokenizer.bos_token_id], "eos": ids[-1:] == [tokenizer.eos_token_id]}
    if tokenizer.chat_template is None or not tokenizer.bos_token:
        return found, ()
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except TemplateError:
        return found, ()
    begins = text.startswith(tokenizer.bos_token)
    if begins == found["bos"]:
        return found, ()
    how = "a BOS token, as its chat template writes" if begins else "no BOS token, since its chat template writes none"
    return found | {"bos": begins}, (f"llama.cpp begins every text with {how}; for plain text the tokenizer differs",)
