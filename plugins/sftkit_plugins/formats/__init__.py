"""The data formats that are recognised by their columns, and the user's own formatting function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sftkit.api import ConfigError, Plugin, Problem, RunConfig, dataclass, hookimpl
from sftkit_plugins.formats.recognise import recognise
from sftkit_plugins.formats.user_function import UserFunction, resolve

if TYPE_CHECKING:
    from datasets import Features
    from transformers import PreTrainedTokenizerBase

    from sftkit.api import Formatter


@dataclass(frozen=True, kw_only=True)
class Formats(Plugin):
    """Recognises the data's format by its columns: messages, ShareGPT, prompt/completion, Alpaca, text."""

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """What is wrong with ``data.formatting``, known before the data is read."""
        try:
            if config.data.formatting is not None:
                resolve(config.data.formatting)
        except ConfigError as error:
            yield from error.problems

    @hookimpl
    def make_formatter(self, columns: Features, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> Formatter:
        """The formatter for the user's function, if one is given, else for the first format that fits the columns.

        Raises:
            ConfigError: for a ``data.loss`` that the format has no place for, or conversations without a template.
            DataError: if no format fits; it lists the columns and the formats.
        """
        if config.data.formatting is not None:
            resolve(config.data.formatting)
            return UserFunction(config.data.formatting, loss=config.data.loss)
        return recognise(columns, tokenizer, config.data)
