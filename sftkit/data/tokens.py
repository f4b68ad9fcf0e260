# ruff: noqa: N806 (suffixes are shapes)
"""Documents that are tokenized already, as examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sftkit.data.columns import IGNORE_INDEX, Examples
from sftkit.data.documents import TokenDocument
from sftkit.data.encode import Labelled, NumberedDocuments


def examples_of_tokens(documents: Sequence[TokenDocument]) -> Examples:
    """The examples of documents that are tokenized already.

    The first token of a document has no context and is never trained. A weight of 0 trains no token.
    """
    import numpy as np

    lengths_N = np.fromiter((len(document.ids) for document in documents), np.int64, len(documents))
    offsets_N1 = np.concatenate([[0], np.cumsum(lengths_N)])
    ids_S = np.concatenate([np.zeros(0, np.int32), *(np.asarray(each.ids, np.int32) for each in documents)])
    labels_S = np.concatenate([np.zeros(0, np.int32), *(np.asarray(each.labels, np.int32) for each in documents)])
    labels_S[offsets_N1[:-1][lengths_N > 0]] = IGNORE_INDEX
    weights_N = np.array([document.weight for document in documents], np.float32)
    if (weights_N == 1).all():
        return Examples(ids_S, labels_S, offsets_N1)
    weights_S = np.repeat(weights_N, lengths_N)
    labels_S[weights_S == 0] = IGNORE_INDEX
    weights_S[labels_S == IGNORE_INDEX] = 1
    return Examples(ids_S, labels_S, offsets_N1, weights_S)


def token_stream(batches: Iterable[NumberedDocuments]) -> Iterator[tuple[NumberedDocuments, Labelled]]:
    """The documents of each batch, all of which are tokenized, with their examples."""
    for batch in batches:
        examples = examples_of_tokens([each for each in batch.documents if isinstance(each, TokenDocument)])
        yield batch, Labelled(examples, 0)
