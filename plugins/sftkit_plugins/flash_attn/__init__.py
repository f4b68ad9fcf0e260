"""Flash attention, and batches without padding."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sftkit.errors import ConfigError, Problem
from sftkit.plugin import Field, Plugin, dataclass, hookimpl
from sftkit_plugins.flash_attn.choose import architecture, half_precision, resolve, this_machine

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.training.collate import Collator

Implementation = Literal["auto", "varlen", "flash_attention_2", "flash_attention_3", "sdpa_flash", "flex"]
#: Methods of plugin peft that put virtual tokens in front of a row, and so in front of its first document only.
PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning", "multitask_prompt_tuning", "cpt", "cartridge")


@dataclass(frozen=True, kw_only=True)
class FlashAttn(Plugin):
    """Attention within documents by flash kernels, and batches without padding.

    Sources: Dao, 2023, FlashAttention-2 (arXiv 2307.08691); Kundu et al., 2024, Enhancing Training Efficiency Using
    Packing with Flash Attention (arXiv 2407.09105), for padding-free batches.
    """

    implementation: Annotated[
        Implementation,
        Field(description="varlen and sdpa_flash need no package; auto: the best that works here, told in the log"),
    ] = "auto"
    padding_free: Annotated[
        bool, Field(description="lay the examples of a batch one behind the other; else pad them")
    ] = True

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """What the implementation lacks here: device, package, precision, and what the model asks of its attention."""
        half = half_precision(config, None)
        name, problems = resolve(self.implementation, config, this_machine(config), architecture(config), half)
        yield from problems
        if "attn_implementation" in config.model.options:
            key = ("model", "options", "attn_implementation")
            mend = "drop it, and set the plugin's implementation"
            yield Problem("plugin flash_attn sets the implementation", ".".join(key), mend, key)
        method = str(config.plugins.get("peft", {}).get("method", "lora")).lower().replace("-", "_")
        if self.padding_free and method in PROMPTS:
            what = f"{method} puts its prompt in front of a row, which holds several documents in padding-free batches"
            yield Problem(what, "plugin flash_attn", "set padding_free: false, or use lora")
        if name == "sdpa_flash":
            yield from self._padded_rows(config)

    def _padded_rows(self, config: RunConfig) -> Iterator[Problem]:
        """Rows that would be padded, where the kernel takes no mask."""
        packing = config.plugins.get("packing")
        if packing is None:
            what = "sdpa_flash is right only on rows without padding, and takes packed ones: its kernel knows no mask"
            mend = "add plugin packing, or use implementation: varlen, which needs none"
            yield Problem(what, "plugin flash_attn, option implementation", mend, ("plugins", "flash_attn"))
        elif not self.padding_free and config.data.eval is not None and not packing.get("eval"):
            what = "sdpa_flash takes no padding mask, and the rows of data.eval would be padded"
            mend = "set padding_free: true, or packing: {eval: true}"
            yield Problem(what, "plugin flash_attn, option padding_free", mend, ("plugins", "flash_attn"))

    @hookimpl
    def make_collator(self) -> Collator | None:
        """The collator of padding-free batches; with ``padding_free: false`` None, which leaves them to `pad`."""
        from sftkit_plugins.flash_attn.collate import PaddingFreeCollator

        return PaddingFreeCollator() if self.padding_free else None

    @hookimpl(tryfirst=True)  # what others try on the model, they try under its implementation
    @contextmanager
    def training_context(self, model: Any, config: RunConfig) -> Iterator[None]:
        """The model under the implementation; before the first step it proves that documents are kept apart.

        Raises:
            ConfigError: for what could not be known before the model was loaded.
        """
        from sftkit.models import autocast_type
        from sftkit_plugins.flash_attn.model import attending, prove_isolation

        half = half_precision(config, model)
        name, problems = resolve(self.implementation, config, this_machine(config), model.config, half)
        if problems:
            raise ConfigError(problems)
        chosen = f"{name}, the best that works here" if self.implementation == "auto" else name
        batches = "batches without padding" if self.padding_free else "padded batches"
        logging.getLogger("sftkit").info("flash_attn: %s; %s", chosen, batches)
        with attending(model, name):
            if self.padding_free:
                prove_isolation(model, name, autocast_type(config.train))
            yield
