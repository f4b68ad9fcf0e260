"""Image-text models: conversations with images, for any image-text model of transformers and its processor."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import field_validator

from sftkit.api import (
    ConfigError,
    Field,
    Plugin,
    Problem,
    dataclass,
    has_adapter,
    hookimpl,
    load_model,
    load_tokenizer,
    parts_of,
)

if TYPE_CHECKING:
    from datasets import Features
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sftkit.api import Collator, Formatter, RunConfig

#: Plugins that do not work with images, and why.
UNSUITED = {
    "packing": "a packed row holds several documents, but models locate images by row",
    "samples": "samples completes prompts from their tokens alone, without images",
    "gptq": "gptq quantizes a model by running it on text alone",
    "unsloth": "unsloth loads the model and its tokenizer itself",
}


@dataclass(frozen=True, kw_only=True)
class Vision(Plugin):
    """Conversations with images, for image-text models (LLaVA, Qwen-VL, SmolVLM, Gemma 3, ...)."""

    requires: ClassVar[tuple[str, ...]] = ("pillow>=10",)
    paths: ClassVar[tuple[str, ...]] = ("image_folder",)

    image_folder: Annotated[
        str, Field(description="the folder to which relative image paths refer", validate_default=True)
    ] = "."
    verify: Annotated[bool, Field(description="decode every image when data is prepared, to find broken ones")] = False
    freeze_vision: Annotated[bool, Field(description="do not train the vision tower")] = True
    freeze_projector: Annotated[
        bool, Field(description="do not train the projector between vision tower and language model")
    ] = False
    projector_modules: Annotated[
        list[str],
        Field(description="names of modules inside the vision tower that belong to the projector, as in Qwen-VL"),
    ] = dataclasses.field(default_factory=lambda: ["merger", "deepstack_merger_list"])
    processor_options: Annotated[
        dict[str, Any],
        Field(
            description="further arguments of `AutoProcessor.from_pretrained`, such as `{size: {longest_edge: "
            "768}}`; for a processor loaded by name"
        ),
    ] = dataclasses.field(default_factory=dict)

    @field_validator("image_folder")
    @classmethod
    def _absolute(cls, value: str) -> str:
        # Prepared data depends on the folder, and the cache identifies it by the plugins' options.
        return str(Path(value).expanduser().absolute())

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Plugins that do not work with images."""
        for name, why in UNSUITED.items():
            if name in config.plugins:
                yield Problem(why, f"plugin {name}", f"drop plugin {name} or vision", ("plugins", name))
        if config.evaluate.metrics:
            why, key = "rows are completed from their tokens alone, without images", ("evaluate", "metrics")
            yield Problem(why, "evaluate.metrics", "remove it, or drop plugin vision", key)
        attention = config.plugins.get("flash_attn", {})
        if attention.get("padding_free") and not attention.get("fallback"):  # which leaves batches with images padded
            why = "padding-free rows hold several examples, but models locate images by row"
            fix = "set padding_free: false"
            yield Problem(why, "plugin flash_attn, option padding_free", fix, ("plugins", "flash_attn"))

    @hookimpl
    def load_tokenizer(self, config: RunConfig) -> Any:
        """The model's processor.

        Raises:
            ConfigError: if it cannot be loaded, or does not process images.
        """
        from transformers import AutoProcessor

        try:
            loaded = load_tokenizer(config, AutoProcessor, **self.processor_options)
        except ConfigError as error:
            if find_spec("torchvision") or "image processor" not in str(error):
                raise
            what = error.problems[0].what
            raise ConfigError(Problem(what, "model.name", "install torchvision or transformers 5.19")) from error
        if getattr(loaded, "image_processor", None) is None:
            what = f"{config.model.name!r} has no image processor, only {type(loaded).__name__}"
            fix = "use an image-text model, or drop plugin vision"
            if find_spec("torchvision") is None:  # some processors of transformers before 5.19 need it
                fix = f"install torchvision or transformers 5.19; or {fix}"
            raise ConfigError(Problem(what, "model.name", fix))
        return loaded

    @hookimpl
    def load_model(self, config: RunConfig, options: Mapping[str, Any]) -> PreTrainedModel:
        """The image-text model with its weights."""
        from transformers import AutoModelForImageTextToText

        return load_model(config, options, AutoModelForImageTextToText)

    @hookimpl(wrapper=True, tryfirst=True)
    def make_formatter(
        self, columns: Features, tokenizer: PreTrainedTokenizerBase, processor: Any
    ) -> Generator[None, Formatter | None, Formatter | None]:
        """Wraps the formatter of the data: takes the images out of the rows, and writes their tokens.

        It is the outermost wrapper, so that no other one loses what it attaches to documents.

        Raises:
            ConfigError: if the tokenizer was passed without its processor, the processor lacks the configured options,
                or the chat template writes no images.
        """
        from sftkit_plugins.vision.formatter import IMAGES, ImageFormatter
        from sftkit_plugins.vision.image_tokens import ImageTokens
        from sftkit_plugins.vision.options import option_problems
        from sftkit_plugins.vision.template import accepting_text

        if processor is None:
            what = "the tokenizer was passed without the processor that it belongs to"
            raise ConfigError(Problem(what, "tokenizer", "pass the processor instead"))
        tokens = ImageTokens.of(processor)
        if problems := list(option_problems(self.processor_options, processor)):
            raise ConfigError(problems)
        with accepting_text(tokenizer, tokens.placeholder):
            inner = yield
        if inner is not None and inner.needs_original_rows:
            columns = {name: feature for name, feature in columns.items() if name in IMAGES}
        return inner and ImageFormatter.of(inner, columns, tokens, self.image_folder, self.verify)

    @hookimpl(wrapper=True, tryfirst=True)
    def make_collator(self, processor: Any) -> Generator[None, Collator | None, Collator | None]:
        """Wraps the collator of the tokens: adds the images to its batches."""
        from sftkit_plugins.vision.collate import ImageCollator

        inner = yield
        return inner and ImageCollator.of(inner, processor)

    @hookimpl(wrapper=True)
    def adapt_model(self, model: PreTrainedModel) -> Generator[None, Any, Any]:
        """Freezes the parts that are not trained, before any adapter is added. Changes the model."""
        frozen = {"vision": self.freeze_vision, "projector": self.freeze_projector, "language": False}
        if not has_adapter(model):
            modules = dict(model.named_modules())
            for name, part in parts_of(model, self.projector_modules).items():
                if frozen[part]:
                    for parameter in modules[name].parameters(recurse=False):
                        parameter.requires_grad = False
        return (yield)
