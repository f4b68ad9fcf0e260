# ruff: noqa: N803, N806, N815 (suffixes are shapes)
"""The bytes of text that each token stands for, so that tokens have borders without offsets.

In byte-level BPE each character of a token is one byte. In BPE in the style of SentencePiece a token is text, in which
``▁`` is a space, or one byte such as ``<0x0A>``. The tokens of a text cover it if their bytes add up; where
they do not, or where a tokenizer changes the text in other ways, the borders are not known.

Legend: V tokens of the vocabulary, N texts, S tokens in all of them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

UNKNOWN = 1 << 40  # bytes of a token that stands for text of any length: a text with one never adds up
SPACE = "▁"
BYTE_LEVEL_SPACE = "Ġ"
BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Borders:
    """How many bytes each token of a tokenizer stands for.

    Attributes:
        widths_V: the bytes of each token, including a space in front that may not be in the text.
        spaced_V: tokens that begin with a space.
        added_V: added tokens, which divide a text into sections.
        prefixed: whether the tokenizer puts a space in front of the text, or of each section (``every``), if there is
            none.
        every: see ``prefixed``.
        normal_form: the form of Unicode that the tokenizer brings texts into; empty for none.
        marker: a character that texts must not have, since the tokenizer uses it for the space; empty for none.
    """

    widths_V: np.ndarray
    spaced_V: np.ndarray
    added_V: np.ndarray
    prefixed: bool
    every: bool
    normal_form: str
    marker: str

    @classmethod
    def of(cls, parts: Mapping[str, Any]) -> Borders | None:
        """Of a tokenizer, by its ``tokenizer.json``; None if the bytes of its tokens are not known."""
        import numpy as np

        style = _style(parts)
        if style is None:
            return None
        vocabulary, added = parts["model"]["vocab"], parts["added_tokens"]
        size = 1 + max((*vocabulary.values(), *(token["id"] for token in added)), default=0)
        widths_V, spaced_V, added_V = np.full(size, UNKNOWN), np.zeros(size, bool), np.zeros(size, bool)
        byte_level = not style.marker
        ids_V = np.fromiter(vocabulary.values(), np.int64, len(vocabulary))
        space = BYTE_LEVEL_SPACE if byte_level else SPACE
        lengths = map(len, vocabulary) if byte_level else map(_bytes, vocabulary)
        widths_V[ids_V] = np.fromiter(lengths, np.int64, len(vocabulary))
        spaced_V[ids_V] = np.fromiter((token.startswith(space) for token in vocabulary), bool, len(vocabulary))
        unknown = parts["model"].get("unk_token")
        if unknown in vocabulary:
            widths_V[vocabulary[unknown]] = UNKNOWN
        for token in added:
            strips = token["lstrip"] or token["rstrip"] or (token["normalized"] and parts["normalizer"] is not None)
            known = not strips and token["content"] != unknown
            widths_V[token["id"]] = len(token["content"].encode()) if known else UNKNOWN
            spaced_V[token["id"]], added_V[token["id"]] = False, True
        return cls(widths_V, spaced_V, added_V, *style)

    def ends(
        self, ids_S: np.ndarray, offsets_N1: np.ndarray, texts: Sequence[str], prefix: int, suffix: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Twice the bytes of all texts up to the end of each token, and which texts are known.

        A token that is only a space in front of a text or section, and not in it, belongs to the character after it,
        as for `tokenizers`: it ends half a byte after the character begins.

        Args:
            ids_S: the ids of the tokens.
            offsets_N1: where those of each text begin, and the end of the last.
            texts: the texts.
            prefix: the number of special tokens that the tokenizer adds in front of each text.
            suffix: the number of those after it.

        Returns:
            Twice the ends (int64, `[S]`), to which texts that are not known add nothing; known texts (bool, `[N]`).
        """
        import numpy as np

        lengths_N = np.diff(offsets_N1)
        ok_N = lengths_N >= prefix + suffix
        if not self.widths_V.size or (len(ids_S) and int(ids_S.max()) >= len(self.widths_V)):
            ids_S = np.where(ids_S < len(self.widths_V), ids_S, 0)
            ok_N &= False
        widths_S = self.widths_V[ids_S]
        begins_N, ends_N = offsets_N1[:-1] + prefix, offsets_N1[1:] - suffix
        for at in range(prefix):
            widths_S[(offsets_N1[:-1] + at)[ok_N]] = 0
        for at in range(1, suffix + 1):
            widths_S[(offsets_N1[1:] - at)[ok_N]] = 0
        bytes_N = np.array([len(text) if text.isascii() else self._bytes_of(text) for text in texts], np.int64)
        excess_N = _sums(widths_S, offsets_N1) - bytes_N
        if self.prefixed:
            candidates_S = self._candidates(ids_S, begins_N, ends_N)
            count_N = _sums(candidates_S.astype(np.int64), offsets_N1)
            corrected_N = (excess_N == count_N) & (count_N > 0)
            candidates_S &= np.repeat(corrected_N, lengths_N)
            widths_S -= candidates_S
            excess_N = np.where(corrected_N, 0, excess_N)
        else:
            candidates_S = np.zeros(0, bool)
        known_N = ok_N & (excess_N == 0)
        widths_S = 2 * np.where(np.repeat(known_N, lengths_N), widths_S, 0)
        alone = np.flatnonzero(candidates_S)
        alone = alone[(widths_S[alone] == 0) & ~np.isin(alone + 1, offsets_N1)]
        widths_S[alone] += 1
        widths_S[alone + 1] -= 1
        return np.cumsum(widths_S), known_N

    def _candidates(self, ids_S: np.ndarray, begins_N: np.ndarray, ends_N: np.ndarray) -> np.ndarray:
        """The tokens whose space may have been added by the tokenizer."""
        import numpy as np

        places_S = np.zeros(len(ids_S), bool)
        places_S[begins_N[begins_N < ends_N]] = True
        if self.every:
            places_S[1:] |= self.added_V[ids_S[:-1]]
        return places_S & self.spaced_V[ids_S]

    def _bytes_of(self, text: str) -> int:
        """The bytes of a text; -1, to which no tokens add up, if the tokenizer changes it."""
        if (self.marker and self.marker in text) or (
            self.normal_form and not unicodedata.is_normalized(self.normal_form, text)  # type: ignore[arg-type]
        ):
            return -1
        return len(text.encode())


def _sums(values_S: np.ndarray, offsets_N1: np.ndarray) -> np.ndarray:
    import numpy as np

    sums_S1: np.ndarray = np.concatenate([[0], np.cumsum(values_S)])
    return sums_S1[offsets_N1[1:]] - sums_S1[offsets_N1[:-1]]


def _bytes(token: str) -> int:
    return 1 if BYTE.fullmatch(token) else len(token.replace(SPACE, " ").encode())


class _Style(NamedTuple):
    """See `Borders`."""

    prefixed: bool
    every: bool
    normal_form: str
    marker: str


def _steps(part: Mapping[str, Any] | None, inside: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be a sequence of some."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for each in part[inside] for step in _steps(each, inside)]
    return [part]


def _style(parts: Mapping[str, Any]) -> _Style | None:
    """How the tokens of a tokenizer stand for bytes; None if it is not known."""
    model = parts["model"]
    if model.get("type") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    normal_form, marker, prefixed, every, byte_level = "", "", False, False, False
    for step in _steps(parts["normalizer"], "normalizers"):
        kind = step["type"]
        if kind in ("NFC", "NFD", "NFKC", "NFKD") and not normal_form:
            normal_form = kind
        elif kind == "Prepend" and step["prepend"] == SPACE:
            prefixed, every = True, True
        elif kind == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE:
            marker = SPACE
        else:
            return None
    for step in _steps(parts["pre_tokenizer"], "pretokenizers"):
        kind = step["type"]
        if kind == "ByteLevel":
            byte_level = True
            prefixed, every = prefixed or step["add_prefix_space"], every or step["add_prefix_space"]
        elif kind == "Metaspace" and step["replacement"] == SPACE:
            marker, scheme = SPACE, step.get("prepend_scheme", "always")
            prefixed, every = prefixed or scheme != "never", every or scheme == "always"
        elif kind not in ("Split", "Digits", "Punctuation") or step.get("behavior") == "Removed":
            return None
    if byte_level == bool(marker):
        return None
    return _Style(prefixed, every, normal_form, marker)
