"""Models that see pictures: conversations with images, for any processor and image-text model of transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import field_validator

from sftkit.errors import ConfigError, Problem
from sftkit.loading import load_model, load_tokenizer
from sftkit.models import parts_of
from sftkit.plugin import Field, Plugin, dataclass, hookimpl

if TYPE_CHECKING:
    from datasets import Features
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sftkit.config import RunConfig
    from sftkit.data.documents import Formatter
    from sftkit.training.collate import Collator

#: Plugins that cannot work on rows with pictures, and why.
UNSUITED = {
    "packing": "a packed row holds several documents, and a model finds the places of its pictures by row",
    "samples": "it completes prompts from their tokens alone, without their pictures",
    "gptq": "it quantizes a model by running it on text alone",
    "unsloth": "it loads the model and its tokenizer itself",
}


@dataclass(frozen=True, kw_only=True)
class Vision(Plugin):
    """Conversations with pictures, for image-text models (LLaVA, Qwen-VL, SmolVLM, Gemma 3, ...)."""

    requires: ClassVar[tuple[str, ...]] = ("pillow>=10",)

    image_folder: Annotated[str, Field(description="where relative paths of pictures begin", validate_default=True)] = (
        "."
    )
    verify: Annotated[bool, Field(description="read each picture whole when data is prepared, to find broken ones")] = (
        False
    )
    freeze_vision: Annotated[bool, Field(description="do not train the weights of the vision tower")] = True
    freeze_projector: Annotated[
        bool, Field(description="do not train what leads from the vision tower to the language model")
    ] = False
    processor_options: Annotated[
        dict[str, Any],
        Field(description="further arguments of `AutoProcessor.from_pretrained`, as size; for one loaded by name"),
    ] = dataclasses.field(default_factory=dict)

    @field_validator("image_folder")
    @classmethod
    def _absolute(cls, value: str) -> str:
        # Prepared data depends on the folder, and is kept by the plugins' options as they are.
        return str(Path(value).expanduser().absolute())

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Plugins that cannot work on pictures."""
        for name, why in UNSUITED.items():
            if name in config.plugins:
                yield Problem(why, f"plugin {name}", f"drop {name}, or vision", ("plugins", name))
        if config.plugins.get("flash_attn", {}).get("padding_free"):
            why = "a row of several examples, and a model finds the places of its pictures by row"
            mend = "set padding_free: false"
            yield Problem(why, "plugin flash_attn, option padding_free", mend, ("plugins", "flash_attn"))

    @hookimpl
    def load_tokenizer(self, config: RunConfig) -> Any:
        """The model's processor.

        Raises:
            ConfigError: if it cannot be loaded, or is no processor of pictures.
        """
        from transformers import AutoProcessor

        loaded = load_tokenizer(config, AutoProcessor, **self.processor_options)
        if getattr(loaded, "image_processor", None) is None:
            what = f"{config.model.name!r} has no processor of pictures, only {type(loaded).__name__}"
            mend = "give a model that sees pictures, or drop vision"
            if find_spec("torchvision") is None:  # some processors of transformers before 5.19 need it
                mend = f"install torchvision or transformers 5.19; or {mend}"
            raise ConfigError(Problem(what, "model.name", mend))
        return loaded

    @hookimpl
    def load_model(self, config: RunConfig, options: Mapping[str, Any]) -> PreTrainedModel:
        """The image-text model with its weights; an adapter directory gives its base with the adapter."""
        from transformers import AutoModelForImageTextToText

        return load_model(config, options, AutoModelForImageTextToText)

    @hookimpl(wrapper=True, tryfirst=True)
    def make_formatter(
        self, columns: Features, tokenizer: PreTrainedTokenizerBase, processor: Any, config: RunConfig
    ) -> Generator[None, Formatter | None, Formatter | None]:
        """The data's formatter, around which pictures are taken from the rows and their tokens written out.

        It is the outermost of wrappers: what it attaches to documents is lost in none of them.

        Raises:
            ConfigError: if the run's tokenizer comes without its processor, which must have the options that are asked
                for, or the chat template writes no pictures.
        """
        from sftkit_plugins.vision.formatter import PICTURES, Pictured
        from sftkit_plugins.vision.options import option_problems
        from sftkit_plugins.vision.picture_tokens import PictureTokens
        from sftkit_plugins.vision.template import taking_text

        if processor is None:
            what = "the tokenizer was given without the processor that it is a part of"
            raise ConfigError(Problem(what, "tokenizer", "give the processor in its place"))
        tokens = PictureTokens.of(processor)
        if problems := list(option_problems(self.processor_options, processor)):
            raise ConfigError(problems)
        with taking_text(tokenizer, tokens.placeholder):
            inner = yield
        if config.data.formatting is not None:  # the user's function finds its rows as they are
            columns = {name: feature for name, feature in columns.items() if name in PICTURES}
        return inner and Pictured.of(inner, columns, tokens, self.image_folder, self.verify)

    @hookimpl(wrapper=True, tryfirst=True)
    def make_collator(self, processor: Any) -> Generator[None, Collator | None, Collator | None]:
        """The collator of the tokens, to whose batches pictures are added."""
        from sftkit_plugins.vision.collate import PictureCollator

        inner = yield
        return inner and PictureCollator.of(inner, processor)

    @hookimpl(wrapper=True)
    def adapt_model(self, model: PreTrainedModel) -> Generator[None, Any, Any]:
        """Freezes what is not to be trained, before adapters come on it."""
        frozen = {"vision": self.freeze_vision, "projector": self.freeze_projector, "language": False}
        if not hasattr(model, "peft_config"):
            modules = dict(model.named_modules())
            for name, part in parts_of(model).items():
                if frozen[part]:
                    for parameter in modules[name].parameters(recurse=False):
                        parameter.requires_grad = False
        return (yield)
