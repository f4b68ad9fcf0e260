"""An engine that tokenizes gives the tokens of tokenizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftkit.testing.conformance.checks import check, require, skip
from sftkit.testing.conformance.pickling import pickled

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench


@check("make_tokenizing")
def equal_tokens(bench: Workbench, hook: str) -> None:
    """An engine gives the same tokens as tokenizers, also after pickling"""
    from sftkit.data.tokenizing.engine import TokenizingEngine
    from sftkit.data.tokenizing.proven import ProvenEngine
    from sftkit.data.tokenizing.use import prepare_engine

    tokenizer = bench.tokenizer()
    engine = bench.own(hook, tokenizer=tokenizer, config=bench.config)
    if engine is None:
        skip("it has no engine for the kit's tokenizer")
    fix = "return an object of a class derived from TokenizingEngine"
    require(isinstance(engine, TokenizingEngine), f"it returns {engine!r:.80}", fix)
    definition = tokenizer.backend_tokenizer.to_str()
    made = prepare_engine(pickled(engine, "the engine"), tokenizer, definition, bench.name)
    require(isinstance(made, ProvenEngine), str(made), "give the ids that tokenizers gives, for each text")
