"""Documents to token ids and labels: the joined text is tokenized once, and the spans carry over by character offsets.

Legend: N documents, S tokens in all of them, P spans in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from sftkit.data.columns import IGNORE
from sftkit.data.documents import Document

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase


def encode(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokenize documents and label the trained tokens.

    A token is trained if the *last* character it covers is: where tokens merge across a border, the straddling token
    belongs to what it ends in, since it cannot be produced without producing that. The first token of a document has
    no context and is never trained. BOS is never doubled, and EOS is appended once.

    Args:
        documents: spans of each document; an empty document gives an empty example.
        tokenizer: a fast tokenizer.
        add_special_tokens: put BOS in front as the tokenizer does, and EOS at the end; it is trained if the
            document's last character is.

    Returns:
        ``ids_S`` and ``labels_S`` (int32) and ``offsets_N1`` (int64).
    """
    import numpy as np

    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    texts = ["".join([span.text for span in spans]) for spans in documents]
    encodings = backend.encode_batch(texts, add_special_tokens=add_special_tokens)
    ids_N = [encoding.ids for encoding in encodings]  # noqa: N806 (suffixes are shapes)
    ends_N = [[end for _, end in encoding.offsets] for encoding in encodings]  # noqa: N806
    if add_special_tokens:
        _fix_special_tokens(ids_N, ends_N, texts, tokenizer)
    lengths = np.fromiter(map(len, ids_N), np.int64, len(ids_N))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.fromiter(chain.from_iterable(ids_N), np.int32, offsets[-1])
    ends = np.fromiter(chain.from_iterable(ends_N), np.int64, offsets[-1])
    trained = _trained(documents, ends, lengths)
    trained[offsets[:-1][lengths > 0]] = False
    return ids, np.where(trained, ids, np.int32(IGNORE)), offsets


def _fix_special_tokens(
    ids_N: list[list[int]],  # noqa: N803
    ends_N: list[list[int]],  # noqa: N803
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """BOS once at the start, EOS once at the end; the EOS counts as covering the document's last character."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for ids, ends, text in zip(ids_N, ends_N, texts, strict=True):
        while bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos and bos != eos:
            del ids[0], ends[0]
        if eos is None or not text:
            continue
        if ids[-1] != eos or (len(ids) == 1 and eos == bos):
            ids.append(eos)
            ends.append(len(text))
        ends[-1] = len(text)


def _trained(documents: Sequence[Document], ends_S: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:  # noqa: N803
    """Which tokens (bool, S) end inside a trained span."""
    import numpy as np

    spans = list(chain.from_iterable(documents))
    span_lengths = np.fromiter((len(span.text) for span in spans), np.int64, len(spans))
    span_trained = np.fromiter((span.trained for span in spans), bool, len(spans))
    keep = span_lengths > 0
    span_ends = np.cumsum(span_lengths[keep])
    if not len(span_ends):
        return np.zeros(len(ends_S), bool)
    text_lengths = np.fromiter((sum(len(s.text) for s in d) for d in documents), np.int64, len(documents))
    text_starts = np.concatenate([[0], np.cumsum(text_lengths)[:-1]])
    last_character = np.repeat(text_starts, lengths_N) + ends_S - 1
    span = np.searchsorted(span_ends, last_character, side="right")
    trained = span_trained[keep][np.minimum(span, len(span_ends) - 1)]
    return trained & (ends_S > 0)
