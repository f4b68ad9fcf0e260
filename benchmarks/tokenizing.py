"""For which tokenizers the plugin `fast_tokens` is used, why not for others, and how fast it is.

    python benchmarks/tokenizing.py [--quick] [--json]

Real tokenizers are read from packages and from the shared data if they are there; the others are trained here on the
pages and the code of this repository. The engine is proved as in a run, with an empty cache. Then it and `tokenizers`
(`encode_batch_fast`) take turns on pages of the repository that are cut into texts of 400
characters, none of which repeats. `--quick` trains smaller vocabularies, on a quarter of the text.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from _report import median, parse_flags, report, versions
from _tokenizers import TRAINED, real, texts

SIZE = 400  # characters of a text
TURNS = 3


def pieces(limit: int | None) -> list[str]:
    """Texts that all differ."""
    found = [text[at : at + SIZE] for text in texts(limit) for at in range(0, len(text), SIZE)]
    return [*dict.fromkeys(found)]


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def tokenizers_of(quick: bool) -> Iterator[tuple[str, str, Any]]:
    some = [*texts(60 if quick else 240)]
    for name, kind, load in real():
        yield name, kind, load()
    for name, (kind, train) in TRAINED.items():
        yield name, kind, train(some, 3000 if quick else 16000)


def measure(tokenizer: Any, documents: list[str]) -> dict[str, Any]:
    """The outcome of the proof, and MB/s of the engine beside `tokenizers`."""
    from sftkit.data.tokenizing.backend import backend_of
    from sftkit.data.tokenizing.use import prepare_engine
    from sftkit_plugins.fast_tokens import FastTokens

    backend = backend_of(tokenizer)
    engine = FastTokens().make_tokenizing(tokenizer, None)
    start = time.perf_counter()
    made = prepare_engine(engine, tokenizer, backend.to_str(), "plugin fast_tokens")
    found: dict[str, Any] = {"proof s": median([time.perf_counter() - start])}
    used = None if isinstance(made, str) else made
    found |= {"used": engine.name if used else "tokenizers", "why not": "" if used else made}
    found["borders"] = bool(used and used.borders)
    size = sum(len(text.encode()) for text in documents) / 1e6
    plain, fast = [], []
    for _ in range(TURNS):
        plain.append(size / seconds(lambda: backend.encode_batch_fast(documents)))
        if used is not None:
            fast.append(size / seconds(lambda: used.load()(documents, True)))
    found["tokenizers MB/s"] = median(plain)
    found["engine MB/s"] = median(fast) if fast else None
    return found


def main() -> None:
    flags = parse_flags(__doc__ or "")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SFTKIT_CACHE"] = cache
        documents = pieces(40 if flags.quick else None)
        results = {
            name: {"kind": kind, **measure(tokenizer, documents)}
            for name, kind, tokenizer in tokenizers_of(flags.quick)
        }
    rows = []
    for name, found in results.items():
        plain, fast = found["tokenizers MB/s"], found["engine MB/s"]
        speed = [f"{plain:.3g}", f"{fast:.3g}" if fast else "", f"{fast / plain:.1f}" if fast else ""]
        rows.append([name, found["kind"], found["used"], *speed, found["why not"][:110]])
    title = f"Tokenizing engines ({versions('tokenizers', 'fastokens')})"
    columns = ["tokenizer", "kind", "used", "tokenizers MB/s", "its MB/s", "times", "why not"]
    report(results, title, columns, rows, flags.json)


if __name__ == "__main__":
    main()
