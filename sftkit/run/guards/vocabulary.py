"""The tokenizer that a plugin loads is one, and plugins add tokens without touching those that the model knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sftkit.errors import Problem, RunError

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet


def require_tokenizer(tokenizer: Any, plugins: PluginSet) -> None:
    """Check what ``load_tokenizer`` returned.

    Args:
        tokenizer: that, or the tokenizer of the processor that it returned.
        plugins: the selected plugins.

    Raises:
        RunError: if it is no tokenizer.
    """
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        what = f"it returns {type(tokenizer).__name__} {tokenizer!r}, which is no tokenizer"
        fix = "return a tokenizer or a processor of transformers"
        raise RunError(Problem(what, plugins.responsible("load_tokenizer"), fix))


def add_tokens(tokenizer: Any, config: RunConfig, plugins: PluginSet) -> None:
    """Let each plugin add tokens, and compare the vocabulary before and after it. Changes the tokenizer.

    Raises:
        RunError: if a plugin removes EOS, or a token has another id than before.
    """
    calls = plugins.one_by_one("add_tokens")
    known, eos = tokenizer.get_vocab() if calls else {}, tokenizer.eos_token
    for name, call in calls:
        call(tokenizer=tokenizer, config=config)
        now, where = tokenizer.get_vocab(), f"plugin {name}, hook add_tokens"
        if moved := [token for token, number in known.items() if now.get(token) != number]:
            token = moved[0]
            what = f"{len(moved):,} tokens of the model have another id, as {token!r}: {now.get(token)}, "
            what += f"and {known[token]} before"
            raise RunError(Problem(what, where, "add tokens at the end of the vocabulary, with tokenizer.add_tokens"))
        if eos is not None and tokenizer.eos_token is None:
            what = f"it removes EOS, which was {eos!r}: the model could not learn to stop"
            raise RunError(Problem(what, where, "keep tokenizer.eos_token, or set another one"))
        known, eos = now, tokenizer.eos_token
