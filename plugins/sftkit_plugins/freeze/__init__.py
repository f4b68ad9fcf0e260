"""Which weights are trained: by pattern, or by Spectrum."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sftkit.api import Field, Plugin, Problem, dataclass, hookimpl, is_adapter

if TYPE_CHECKING:
    from sftkit.api import Choices, RunConfig

WHERE = "plugin freeze"
CHOICES = ("patterns", "train", "spectrum")


@dataclass(frozen=True, kw_only=True)
class Freeze(Plugin):
    """Freezes weights by name, or all but the layers with the highest signal-to-noise ratio (Spectrum).

    Source: Hartford et al., 2024, Spectrum: Targeted Training on Signal to Noise Ratio (arXiv 2406.06623).
    """

    conflicts: ClassVar[tuple[str, ...]] = ("bitsandbytes",)  # quantized weights cannot be trained

    patterns: Annotated[
        tuple[str, ...] | None,
        Field(min_length=1, description="regular expressions: weights in whose names one is found are frozen"),
    ] = None
    train: Annotated[
        tuple[str, ...] | None,
        Field(min_length=1, description="regular expressions: all other weights are frozen"),
    ] = None
    spectrum: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="share of the layers, for each kind of linear module, in which it is trained; "
            "everything else is frozen",
        ),
    ] = None
    also: Annotated[
        tuple[str, ...] | None,
        Field(
            description="regular expressions: what is trained beside Spectrum's choice; by default the embeddings and "
            "the output head"
        ),
    ] = None

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Options that exclude each other, patterns that are none, and an adapter, which has a choice of its own."""
        chosen = [name for name in CHOICES if getattr(self, name) is not None]
        if len(chosen) != 1:
            what = f"{' and '.join(chosen)} exclude each other" if chosen else "it would freeze nothing"
            fix = f"set {'only ' * bool(chosen)}one of the options patterns, train and spectrum"
            yield Problem(what, WHERE, fix, ("plugins", "freeze"))
        if self.also is not None and self.spectrum is None:
            what, fix = "only Spectrum's choice has weights beside it", "remove it, or name the weights in train"
            yield Problem(what, f"{WHERE}, option also", fix, ("plugins", "freeze", "also"))
        for option in ("patterns", "train", "also"):
            for pattern in getattr(self, option) or ():
                try:
                    re.compile(pattern)
                except re.error as error:
                    what, key = f"{pattern!r} is not a regular expression: {error}", ("plugins", "freeze", option)
                    yield Problem(what, f"{WHERE}, option {option}", "correct it", key)
        if is_adapter(config.model.name):
            what = f"{config.model.name!r} is an adapter, and only its own weights are trained"
            yield Problem(what, "model.name", "drop plugin freeze, or train the merged model", ("model", "name"))

    @hookimpl
    def adapt_model(self, model: Any, config: RunConfig, new_token_ids: list[int], choices: Choices) -> Any:
        """The same model, with weights frozen. Changes the model.

        Raises:
            ConfigError: if a pattern matches no trained weight, nothing or everything is frozen, the embeddings of new
                tokens are, or Spectrum cannot read the weights.
        """
        from sftkit.api import table_weights
        from sftkit_plugins.freeze import names, spectrum

        trained = names.trained_weights(model)
        if self.patterns is not None:
            kept = trained.keys() - names.matched(trained, self.patterns, "patterns")
        elif self.train is not None:
            kept = names.matched(trained, self.train, "train")
        else:
            assert self.spectrum is not None
            kept = spectrum.chosen(model, trained, self.spectrum, config, choices)
            tables = {id(weight) for weight in table_weights(model)}  # the reference trains them too
            kept |= tables if self.also is None else names.matched(trained, self.also, "also")
        names.freeze(model, trained, kept, new_token_ids)
        weights, size = list(model.parameters()), names.size
        own, total = sum(size(each) for each in weights if each.requires_grad), sum(map(size, weights))
        share = f"{own:,} trainable of {total:,} parameters ({100 * own / total:.1f} %)"
        logging.getLogger("sftkit").info("freeze: %s", share)
        return model
