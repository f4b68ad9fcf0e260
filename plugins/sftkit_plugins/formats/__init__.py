"""Data formats that are recognised by their columns, and the user's own formatting function."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sftkit.api import ConfigError, Field, Plugin, Problem, dataclass, hookimpl
from sftkit_plugins.formats.chat import Reasoning
from sftkit_plugins.formats.options import Loss
from sftkit_plugins.formats.presence import Part
from sftkit_plugins.formats.recognise import recognise
from sftkit_plugins.formats.rendering import DATE
from sftkit_plugins.formats.roles import Role
from sftkit_plugins.formats.user_function import UserFunction, import_function
from sftkit_plugins.formats.variables import variable_problems

if TYPE_CHECKING:
    from datasets import Features
    from transformers import PreTrainedTokenizerBase

    from sftkit.api import Formatter, RunConfig


@dataclass(frozen=True, kw_only=True)
class Formats(Plugin):
    """Recognises the data format by its columns: messages, ShareGPT, prompt/completion, Alpaca, text, and others."""

    replaces: ClassVar[Mapping[str, str]] = {"dataset_text_field": "text_column"}

    loss: Annotated[Loss | None, Field(description="what is trained; the default depends on the format")] = None
    turns: Annotated[
        Literal["all", "last"],
        Field(
            description="which turns of `roles` are trained: all, or only the last; `train` on a message overrides this"
        ),
    ] = "all"
    roles: Annotated[tuple[Role, ...], Field(min_length=1, description="whose turns are trained in conversations")] = (
        "assistant",
    )
    text_column: Annotated[str, Field(description="name of the column of plain text")] = "text"
    columns: Annotated[
        dict[str, str],
        Field(description="the data's column for a name that a format knows, as in `{prompt: q, completion: a}`"),
    ] = dataclasses.field(default_factory=dict)
    developer_as_system: Annotated[
        bool, Field(description="write messages of the role developer as system messages")
    ] = False
    allow_left_out: Annotated[
        tuple[Part, ...],
        Field(
            description="what the chat template may leave out of a row: messages of a role, tools, tool calls or "
            "documents"
        ),
    ] = ()
    reasoning: Annotated[
        Reasoning,
        Field(
            description="turns whose reasoning the chat template leaves out: train them as rendered, not at all "
            "(last_turn_only), or each as the last turn of a document"
        ),
    ] = "as_rendered"
    date: Annotated[datetime.date, Field(description="the date that chat templates write as that of today")] = (
        datetime.date.fromisoformat(DATE)
    )
    formatting: Annotated[
        str | Callable[..., Any] | None,
        Field(description="your own formatting function, as `module:function`; in Python also the function itself"),
    ] = None

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """What is wrong with ``formatting`` and ``data.chat_template_kwargs``, and options without effect."""
        yield from variable_problems(config.data.chat_template_kwargs, bool(self.formatting))
        if self.formatting is not None and self.columns:
            what, where = "columns has no effect with formatting", "plugin formats, option columns"
            yield Problem(what, where, "remove one of the options", ("plugins", "formats", "columns"))
        try:
            if isinstance(self.formatting, str):
                import_function(self.formatting)
        except ConfigError as error:
            yield from error.problems

    @hookimpl
    def make_formatter(
        self, columns: Features, tokenizer: PreTrainedTokenizerBase, processor: Any, config: RunConfig
    ) -> Formatter:
        """A formatter for the user's function, if there is one, else for the first format that fits the columns.

        Raises:
            ConfigError: if the format does not support the option ``loss``, the tokenizer has no chat template for
                conversations, or there are variables for the template but no conversations.
            DataError: if no format fits the columns, or the data is not for supervised fine-tuning.
        """
        if self.formatting is not None:
            return UserFunction(self.formatting, loss=self.loss)
        return recognise(columns, tokenizer, self, config.data, images=processor is not None)
