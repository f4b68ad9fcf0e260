"""How a run made its examples of rows, for prompts of the same form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.config.models import DataSection, ModelSection, RunConfig
from sftkit.errors import ConfigError
from sftkit.plugin.select import Choice, select
from sftkit.trained.loading import plugins_again

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.data.documents import Formatter
    from sftkit.data.encode import SpecialTokens
    from sftkit.trained.loading import TrainedModel


@dataclass(frozen=True)
class SourceFormat:
    """The format of one source of a run's training data.

    Attributes:
        columns: the columns of its rows, with their types, as `datasets.Features`.
        formatter: what made documents of the rows.
        special_tokens: what encoding added around a text; see `prompt_ids`.
    """

    columns: Any
    formatter: Formatter
    special_tokens: SpecialTokens


def source_formats(trained: TrainedModel) -> Iterator[SourceFormat]:
    """The formats of the sources of the run that trained a model; none for any other model.

    Raises:
        ConfigError: if a plugin that formatted the rows does not work here.
    """
    from datasets import Features

    manifest = trained.manifest or {}
    if not (recorded := manifest.get("columns")):
        return
    config, plugins = _formatting(manifest)
    for columns in recorded:
        features = Features.from_dict(columns)
        formatter = plugins.hook.make_formatter(
            columns=features, tokenizer=trained.tokenizer, processor=trained.processor, config=config
        )
        rendered = formatter.rendered_special_tokens
        yield SourceFormat(
            features, formatter, config.data.special_tokens if formatter.adds_special_tokens else rendered
        )


def _formatting(manifest: dict[str, Any]) -> tuple[RunConfig, Any]:
    """The configuration of a run, and those of its plugins that formatted its rows.

    Raises:
        ConfigError: if one of them does not work here.
    """
    again = plugins_again(manifest, ("make_formatter",))
    plugins, problems = select(Choice(name, options) for name, options in again.items())
    if plugins is None:
        raise ConfigError(problems)
    saved = manifest["config"]
    data, model = DataSection.model_validate(saved["data"]), ModelSection.model_validate(saved["model"])
    return RunConfig(model=model, data=data, plugins=plugins.options()), plugins


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str, special_tokens: SpecialTokens) -> list[int]:
    """The ids of the start of a document, as they are in training: with BOS, without EOS.

    Args:
        tokenizer: a fast tokenizer.
        text: the start of the document.
        special_tokens: what is added around each text, as in `data.special_tokens`; ``none`` for a rendered chat
            template, which writes them itself.
    """
    from sftkit.data.documents import Span
    from sftkit.data.encode import encode

    def ids(special: SpecialTokens) -> list[int]:
        found: list[int] = encode([[Span(text, False)]], tokenizer, special).ids_S.tolist()
        return found

    plain = ids("none")
    whole = plain if special_tokens == "none" else ids(special_tokens)
    start = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
    return whole[: start + len(plain)]
