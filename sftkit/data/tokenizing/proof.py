# ruff: noqa: N806 (suffixes are shapes)
"""The comparison of an engine with `tokenizers`: the ids of each text, and the tokens at characters inside of it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit.data.cache import key_of
from sftkit.data.code import code_of
from sftkit.data.tokenizing.corpus import SEED, corpus
from sftkit.data.tokenizing.tokens import token_after
from sftkit.storage import PROOFS, made, write_json

if TYPE_CHECKING:
    from sftkit.data.tokenizing.engine import TokenizingEngine
    from sftkit.data.tokenizing.proven import ProvenEngine
    from sftkit.data.tokenizing.tokens import Tokens

PROBES = 6  # characters inside of a text whose tokens are compared, in the corpus
SHOWN = 60  # characters of a text that are shown around the first difference


class Difference(NamedTuple):
    """A text that an engine tokenizes otherwise than `tokenizers`.

    Attributes:
        text: the part of the text that differs, as Python writes it; empty if the engine has failed.
        what: what differs.
    """

    text: str
    what: str

    def __str__(self) -> str:
        return f"{self.what} in the text {self.text}" if self.text else self.what


class DiffersError(Exception):
    """An engine gives other tokens than `tokenizers`.

    Attributes:
        difference: where.
    """

    def __init__(self, difference: Difference) -> None:
        super().__init__(str(difference))
        self.difference = difference


def compare(text: str, encoding: Any, tokens: Tokens, number: int, characters: Sequence[int]) -> Difference | None:
    """What differs between an encoding of `tokenizers` and the tokens of an engine.

    Args:
        text: the text.
        encoding: its encoding, with offsets if there are characters.
        tokens: the tokens of several texts.
        number: the number of the text among them.
        characters: characters whose tokens are compared as well.
    """
    right, ids = encoding.ids, tokens.ids_of(number)
    if right != ids:
        at = next((at for at, pair in enumerate(zip(right, ids)) if pair[0] != pair[1]), min(len(right), len(ids)))  # noqa: B905
        place = max(max((start for start, _ in encoding.offsets[: at + 1]), default=0) - SHOWN // 2, 0)
        shown = text[place : place + SHOWN] if len(text) > SHOWN else text
        return Difference(ascii(shown), f"ids {ids[at : at + 4]} instead of {right[at : at + 4]}")
    none = len(right)
    found = tokens.first_after([number] * len(characters), characters, [none] * len(characters)).tolist()
    for character, token in zip(characters, found, strict=True):
        if (expected := token_after(encoding, character, none)) != token:
            place = max(character - SHOWN // 2, 0)
            what = f"token {token} instead of {expected} at character {character}"
            return Difference(ascii(text[place : place + SHOWN]), what)
    return None


class Proof(NamedTuple):
    """The result of comparing an engine with `tokenizers` on the corpus.

    Attributes:
        texts: the number of texts that were compared.
        failed: why the engine cannot be used; empty if it can.
        no_borders: why it cannot be used for texts that are trained in part; empty if it can.
    """

    texts: int
    failed: str = ""
    no_borders: str = ""


def proof_key(engine: TokenizingEngine, definition: str) -> str:
    """What a proof is stored by: the tokenizer, the engine with its version, `tokenizers`, and the code of all.

    Args:
        engine: the engine.
        definition: the tokenizer's ``tokenizer.json``.
    """
    from importlib import metadata

    import xxhash

    parts = {
        "tokenizer": xxhash.xxh3_128_hexdigest(definition.encode()),
        "engine": engine.name,
        "tokenizers": metadata.version("tokenizers"),
        "code": [code_of(__package__ or ""), code_of(type(engine).__module__)],
    }
    return key_of(parts)


def stored_proof(key: str) -> Proof | None:
    """The proof in the cache, if there is one."""
    try:
        return Proof(**json.loads(_place(key).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def store_proof(key: str, proof: Proof) -> None:
    """Write a proof into the cache."""
    write_json(_place(key), proof._asdict())


def _place(key: str) -> Path:
    return made(PROOFS) / f"{key}.json"


def prove(engine: ProvenEngine, backend: Any) -> Proof:
    """Compare an engine with `tokenizers` on the corpus.

    Args:
        engine: the engine with its tokenizer.
        backend: the tokenizer of the library `tokenizers`, without truncation and padding.
    """
    try:
        engine.load()
    except Exception as error:  # each engine has its own
        return Proof(0, f"it does not support the tokenizer: {error}")
    parts = json.loads(engine.definition)
    vocabulary = parts["model"]["vocab"]
    chance = random.Random(SEED)
    drawn = [backend.decode([n], skip_special_tokens=False) for n in chance.choices(range(len(vocabulary)), k=3000)]
    texts = corpus([text for text in drawn if text], [token["content"] for token in parts["added_tokens"]])
    characters = [sorted(chance.sample(range(len(text)), min(PROBES, len(text)))) for text in texts]
    no_borders = "" if engine.borders else "the bytes that its tokens stand for are not known"
    for special in (True, False):
        try:
            tokens, known_N = engine.trial(texts, special, bool(engine.borders))
        except Exception as error:
            return Proof(len(texts), f"it fails: {error}")
        encodings = backend.encode_batch(texts, add_special_tokens=special)
        for number, text in enumerate(texts):
            if difference := compare(text, encodings[number], tokens, number, ()):
                return Proof(len(texts), str(difference))
            if known_N[number] and not no_borders:
                found = compare(text, encodings[number], tokens, number, characters[number])
                no_borders = str(found) if found else ""
    return Proof(len(texts), "", no_borders)
