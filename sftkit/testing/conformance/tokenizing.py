"""An engine that tokenizes gives the tokens of tokenizers."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sftkit.testing.conformance.checks import check, require, skip

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench


@check("make_tokenizing")
def equal_tokens(bench: Workbench, hook: str) -> None:
    """An engine gives the same tokens as tokenizers, also after pickling"""
    from sftkit.data.tokenizing.engine import TokenizingEngine
    from sftkit.data.tokenizing.engines import prepare_engine
    from sftkit.data.tokenizing.proven import ProvenEngine

    tokenizer = bench.tokenizer()
    found = bench.own(hook, tokenizer=tokenizer, config=bench.config)
    engines = found if isinstance(found, Sequence) else [found]
    if found is None or not engines:
        skip("it has no engine for the kit's tokenizer")
    fix = "return objects of classes derived from TokenizingEngine"
    require(all(isinstance(engine, TokenizingEngine) for engine in engines), f"it returns {found!r:.80}", fix)
    definition = tokenizer.backend_tokenizer.to_str()
    reasons = []
    for engine in engines:
        made = prepare_engine(pickle.loads(pickle.dumps(engine)), tokenizer, definition, bench.name)
        if isinstance(made, ProvenEngine):
            return
        reasons.append(f"{engine.name}: {made}")
    require(False, "; ".join(reasons), "give the ids that tokenizers gives, for each text")
