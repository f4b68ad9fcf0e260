"""Flash attention, and batches without padding."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sftkit.api import ConfigError, Field, Plugin, Problem, dataclass, hookimpl
from sftkit_plugins.flash_attn.choose import architecture, half_precision, has_prompts, resolve, this_machine

if TYPE_CHECKING:
    from sftkit.api import BatchChoice, Collator, RunConfig

Implementation = Literal["auto", "varlen", "flash_attention_2", "flash_attention_3", "sdpa_flash", "flex"]


@dataclass(frozen=True, kw_only=True)
class FlashAttn(Plugin):
    """Flash attention within each document, and batches without padding (default, where both are proved to work).

    Sources: Dao, 2023, FlashAttention-2 (arXiv 2307.08691); Kundu et al., 2024, Enhancing Training Efficiency Using
    Packing with Flash Attention (arXiv 2407.09105), for padding-free batches.
    """

    implementation: Annotated[
        Implementation,
        Field(
            description="the kernel; auto: the best that works with the device, precision and model, which is "
            "logged; varlen and sdpa_flash need no package"
        ),
    ] = "auto"
    padding_free: Annotated[bool, Field(description="join the examples of a batch into one row; false: pad them")] = (
        True
    )

    fallback: Annotated[
        bool,
        Field(
            description="where it does not work, or is not proved to, train on padded batches with the model's own "
            "attention, and log why; true if the plugin is selected by default"
        ),
    ] = False

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Reports what is missing: a device, a package, a precision, or support for a feature of the model."""
        if self.fallback:
            if not self.padding_free:
                what, fix = "without padding_free there is nothing to fall back from", "remove fallback"
                yield Problem(what, "plugin flash_attn, option fallback", fix, ("plugins", "flash_attn", "fallback"))
            return
        multiple = config.plugins.get("pad", {}).get("to_multiple_of")
        if self.padding_free and multiple is not None:
            what = f"rows are not padded to a multiple of {multiple}, since flash_attn makes batches without padding"
            fix = "remove to_multiple_of, or set flash_attn: {padding_free: false}"
            yield Problem(what, "plugin pad, option to_multiple_of", fix, ("plugins", "pad", "to_multiple_of"))
        half = half_precision(config, None)
        name, problems = resolve(self.implementation, config, this_machine(config), architecture(config), half)
        yield from problems
        if "attn_implementation" in config.model.options:
            key = ("model", "options", "attn_implementation")
            fix = "remove this key, and set the plugin's option implementation"
            yield Problem("the plugin flash_attn sets the attention implementation", ".".join(key), fix, key)
        if self.padding_free and has_prompts(config):
            method = config.plugins["peft"]["method"]
            what = f"{method} puts its prompt before each row, but a padding-free row holds several documents"
            yield Problem(what, "plugin flash_attn", "set padding_free: false, or use the peft method lora")
        if name == "sdpa_flash":
            yield from self._padded_rows(config)

    def _padded_rows(self, config: RunConfig) -> Iterator[Problem]:
        """Reports rows that would be padded, because the kernel of sdpa_flash takes no mask."""
        packing = config.plugins.get("packing")
        if packing is None:
            what = "sdpa_flash needs packed rows, because its kernel takes no padding mask"
            fix = "add the plugin packing, or set implementation: varlen"
            yield Problem(what, "plugin flash_attn, option implementation", fix, ("plugins", "flash_attn"))
        elif not self.padding_free and config.data.eval is not None and not packing.get("eval"):
            what = "sdpa_flash takes no padding mask, but the rows of data.eval would be padded"
            fix = "set padding_free: true, or packing: {eval: true}"
            yield Problem(what, "plugin flash_attn, option padding_free", fix, ("plugins", "flash_attn"))

    @hookimpl
    def make_collator(self) -> Collator | None:
        """The collator of padding-free batches, or None: `pad` then makes the batches.

        Raises:
            ConfigError: if the plugin falls back to the batches of another one, and there is none.
        """
        if self.fallback:  # nobody is asked after it
            what, fix = "no selected plugin makes padded batches", "drop no:pad, or select flash_attn"
            raise ConfigError(Problem(what, "plugins", fix))
        from sftkit_plugins.flash_attn.collate import PaddingFreeCollator

        return PaddingFreeCollator() if self.padding_free else None

    @hookimpl(tryfirst=True)  # other plugins try the model with this implementation
    @contextmanager
    def training_context(
        self, model: Any, config: RunConfig, rows: Any, collator: Collator | None
    ) -> Iterator[BatchChoice | None]:
        """Switches the model to the implementation, and proves before the first step that it keeps documents apart.

        Raises:
            ConfigError: if the loaded model or its precision does not work with the implementation, without fallback.
        """
        if self.fallback:
            from sftkit_plugins.flash_attn.fallback import where_it_works

            with where_it_works(self.implementation, model, config, rows, collator) as choice:
                yield choice
            return
        from sftkit.api import autocast_type, document_trials, train_value
        from sftkit_plugins.flash_attn.collate import PaddingFreeCollator
        from sftkit_plugins.flash_attn.model import attending, prove_isolation

        half = half_precision(config, model)
        name, problems = resolve(self.implementation, config, this_machine(config), model.config, half)
        if problems:
            raise ConfigError(problems)
        chosen = f"{name}, the best that works here" if self.implementation == "auto" else name
        batches = "batches without padding" if self.padding_free else "padded batches"
        logging.getLogger("sftkit").info("flash_attn: %s; %s", chosen, batches)
        with attending(model, name):
            if self.padding_free and "packing" not in config.plugins:  # packing tries the model itself
                size = int(train_value(config, "per_device_train_batch_size"))
                made = collator or PaddingFreeCollator()
                trials = document_trials(model.config, rows, made, size, config.data.max_length)
                prove_isolation(model, name, trials, autocast_type(config.train))
            yield None
