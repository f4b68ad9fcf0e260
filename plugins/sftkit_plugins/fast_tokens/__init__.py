"""Tokenizing by tokie or fastokens, after a proof that they give the same tokens as tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Literal

from sftkit.api import Field, Plugin, Problem, dataclass, hookimpl, install_command

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.api import RunConfig, TokenizingEngine

ENGINES = ("tokie", "fastokens")  # the faster one first


@dataclass(frozen=True, kw_only=True)
class FastTokens(Plugin):
    """Tokenizes with tokie or fastokens, where they are installed and proved equal to tokenizers.

    A source of fewer than 4,000 rows is left to tokenizers. Sources: https://github.com/chonkie-inc/tokie and
    https://github.com/crusoecloud/fastokens.
    """

    engine: Annotated[
        Literal["auto", "tokie", "fastokens"],
        Field(
            description="`auto`: the first installed one that gives the same tokens, else tokenizers, with the reason "
            "in the log. An engine's name: this one, and an error if it cannot be used or gives other tokens"
        ),
    ] = "auto"

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """An engine that is not installed."""
        if self.engine != "auto" and find_spec(self.engine) is None:
            fix = f"{install_command(self.engine)}, or set it to auto"
            key = ("plugins", "fast_tokens", "engine")
            yield Problem(f"{self.engine} is not installed", "plugin fast_tokens, option engine", fix, key)

    @hookimpl
    def make_tokenizing(self, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> list[TokenizingEngine]:
        """The engines to try."""
        from sftkit_plugins.fast_tokens.engines import Fastokens, Tokie

        made: dict[str, type[Tokie] | type[Fastokens]] = {"tokie": Tokie, "fastokens": Fastokens}
        names = [name for name in ENGINES if find_spec(name)] if self.engine == "auto" else [self.engine]
        return [made[name](required=self.engine != "auto") for name in names]
