# ruff: noqa: N806, N815 (suffixes are shapes)
"""Values of trained tokens on disk, found by the content of the document, so in whatever row and order it comes.

A document is known by its ids and by which of them are trained. Packed or not, shuffled, in any process or from a
stream: the same document has the same values.

Legend: L tokens of a row or document, D documents, K trained tokens of some rows, P of all documents.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit.data.columns import IGNORE_INDEX, flatten_column
from sftkit.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MANIFEST, DOCUMENTS = "token-values.json", "documents.npy"
FORMAT = 1
AT_ONCE = 1 << 12  # rows


class DocumentKey(NamedTuple):
    """A document without its tokens.

    Attributes:
        high: the first half of its digest (128 bits), of its tokens and of which are trained.
        low: the second half.
        text: a digest (64 bits) of the tokens alone.
        trained: the number of trained tokens.
    """

    high: int
    low: int
    text: int
    trained: int


class StoredDocument(NamedTuple):
    """A document as it is looked up.

    Attributes:
        ids_L: its tokens (int32).
        trained_L: which of them are trained (bool); the first one never is.
    """

    ids_L: np.ndarray
    trained_L: np.ndarray

    @property
    def key(self) -> DocumentKey:
        """What finds its values."""
        import xxhash

        state = xxhash.xxh3_128(self.ids_L.tobytes())
        state.update(self.trained_L.tobytes())
        high, low = divmod(state.intdigest(), 1 << 64)
        return DocumentKey(high, low, xxhash.xxh3_64_intdigest(self.ids_L.tobytes()), int(self.trained_L.sum()))


def documents_of_row(row: Mapping[str, Any]) -> Iterator[StoredDocument]:
    """The documents of an example with trained tokens; a packed one has ``position_ids``, and may have several."""
    import numpy as np

    ids_L, labels_L = (np.asarray(row[name], dtype=np.int32) for name in ("input_ids", "labels"))
    starts = [0]
    if row.get("position_ids") is not None:
        starts += (np.flatnonzero(np.diff(np.asarray(row["position_ids"])) != 1) + 1).tolist()
    for start, end in zip(starts, [*starts[1:], len(ids_L)], strict=True):
        trained_L = labels_L[start:end] != IGNORE_INDEX
        trained_L[:1] = False
        if trained_L.any():
            yield StoredDocument(ids_L[start:end], trained_L)


def stored_rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a data set, as arrays."""
    for start in range(0, len(dataset), AT_ONCE):
        table = dataset.with_format("arrow")[start : start + AT_ONCE]
        names = [name for name in ("input_ids", "labels", "position_ids") if name in table.column_names]
        columns = {name: flatten_column(table, name) for name in names}
        for number in range(len(table)):
            yield {name: values[at[number] : at[number + 1]] for name, (values, at) in columns.items()}


@dataclass(frozen=True)
class TokenStore:
    """Values of trained tokens by name, read from a directory; it can be pickled, and is then opened again.

    Attributes:
        directory: where they are.
        about: what the writer has noted about them.
    """

    directory: Path
    about: Mapping[str, Any]

    @classmethod
    def open(cls, directory: str | Path, where: str) -> TokenStore:
        """The values in a directory.

        Args:
            directory: the directory.
            where: the place that an error names.

        Raises:
            ConfigError: if there are none in it.
        """
        path = Path(directory)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except OSError:
            what = "there are no values of tokens in" if path.is_dir() else "there is no directory"
            raise ConfigError(Problem(f"{what} {str(path)!r}", where, "correct the path")) from None
        if manifest.get("format") != FORMAT:
            what = f"{str(path)!r} was written by another version of sftkit"
            raise ConfigError(Problem(what, where, "write it again"))
        return cls(path, manifest["about"])

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The values of the trained tokens of examples, ``[K, ...]``, in their order.

        Raises:
            DataError: if a document is not stored.
        """
        import numpy as np
        import torch

        found = [slice(0, 0)]
        for example in examples:
            for document in documents_of_row(example):
                place = self._place(document)
                if isinstance(place, str):
                    raise DataError(Problem(place, str(self.directory), "write the values of this data"))
                found.append(place)
        arrays = {name: np.concatenate([array[place] for place in found]) for name, array in self._arrays.items()}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def missing(self, dataset: Any) -> tuple[int, str]:
        """The number of rows of which a document is not stored, and what is wrong with the first one."""
        number, first = 0, ""
        for row, example in enumerate(stored_rows(dataset), start=1):
            wrong = [place for each in documents_of_row(example) if isinstance(place := self._place(each), str)]
            number += bool(wrong)
            if wrong and not first:
                first = f"row {row}: {wrong[0]}"
        return number, first

    def _place(self, document: StoredDocument) -> slice | str:
        """Where the values of a document are; if they are not there, why."""
        import numpy as np

        key, known = document.key, self._documents
        at = int(np.searchsorted(known["high"], np.uint64(key.high)))
        if at < len(known["high"]) and (int(known["high"][at]), int(known["low"][at])) == (key.high, key.low):
            start = int(known["start"][at])
            return slice(start, start + key.trained)
        others = known["trained"][known["text"] == key.text]
        if not len(others):
            return f"its document of {len(document.ids_L)} tokens, {key.trained} of them trained, is not stored"
        same = ", at other places" if int(others[0]) == key.trained else ""
        return f"its document has {key.trained} trained tokens, and values of {others[0]} are stored{same}"

    @functools.cached_property
    def _documents(self) -> dict[str, np.ndarray]:
        import numpy as np

        table = np.load(self.directory / DOCUMENTS, allow_pickle=False)
        return {name: np.ascontiguousarray(table[name]) for name in table.dtype.names}

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        import numpy as np

        names = json.loads((self.directory / MANIFEST).read_text(encoding="utf-8"))["values"]
        return {name: np.load(self.directory / f"{name}.npy", "r", allow_pickle=False) for name in names}

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process, the files are opened again."""
        return TokenStore, (self.directory, self.about)


class StoreWriter:
    """Writes the values of documents into a directory.

    Args:
        directory: an empty directory.
        keys: of each different document once.
        columns: the type and the shape of a token's value, by name.

    Attributes:
        tokens: the number of trained tokens.
    """

    def __init__(
        self, directory: Path, keys: Sequence[DocumentKey], columns: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> None:
        import numpy as np

        self._directory, self._keys, self._columns = directory, keys, columns
        self._starts = np.cumsum([0, *(key.trained for key in keys)])
        self.tokens = int(self._starts[-1])
        self._arrays = {
            name: np.lib.format.open_memmap(directory / f"{name}.npy", "w+", dtype, (self.tokens, *shape))
            for name, (dtype, shape) in columns.items()
        }

    def put(self, number: int, values: Mapping[str, np.ndarray]) -> None:
        """Write the values of the trained tokens of a document, by its number."""
        place = slice(int(self._starts[number]), int(self._starts[number + 1]))
        for name, array in self._arrays.items():
            array[place] = values[name]

    def close(self, about: Mapping[str, Any]) -> None:
        """Write what finds the values, and the notes about them."""
        import numpy as np

        for array in self._arrays.values():
            array.flush()
        fields = [(name, np.uint64) for name in (*DocumentKey._fields, "start")]
        listed = [(*key, int(start)) for key, start in zip(self._keys, self._starts, strict=False)]
        table = np.array(listed, dtype=fields)
        table.sort(order=["high", "low"])
        np.save(self._directory / DOCUMENTS, table, allow_pickle=False)
        manifest = {"format": FORMAT, "values": list(self._columns), "about": dict(about)}
        (self._directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
