"""Tokenizing by fastokens, after a proof that it gives the same tokens as tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

from sftkit.api import Field, Plugin, Problem, dataclass, hookimpl, install_command

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.api import RunConfig, TokenizingEngine


@dataclass(frozen=True, kw_only=True)
class FastTokens(Plugin):
    """Tokenizes with fastokens, if it is installed and proved equal to tokenizers for the run's tokenizer.

    A source of fewer than 4,000 rows is left to tokenizers. Source: https://github.com/crusoecloud/fastokens
    """

    required: Annotated[
        bool,
        Field(description="stop if fastokens cannot be used, instead of leaving the work to tokenizers with a message"),
    ] = False

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """fastokens is required and not installed."""
        if self.required and find_spec("fastokens") is None:
            fix = f"{install_command('fastokens')}, or set it to false"
            key = ("plugins", "fast_tokens", "required")
            yield Problem("fastokens is not installed", "plugin fast_tokens, option required", fix, key)

    @hookimpl
    def make_tokenizing(self, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> TokenizingEngine | None:
        """fastokens, if it is installed."""
        if find_spec("fastokens") is None:
            return None
        from sftkit_plugins.fast_tokens.engine import Fastokens

        return Fastokens(self.required)
