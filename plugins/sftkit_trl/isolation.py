"""Keeping the documents of one row apart in a trainer's model, or joining them as TRL did."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sftkit.api import ConfigError, autocast_type, document_trials, warn_caller
from sftkit_plugins.flash_attn import FlashAttn
from sftkit_plugins.flash_attn.attention import NAMES
from sftkit_plugins.packing.isolation import isolated, leak_of

if TYPE_CHECKING:
    from sftkit.api import RunConfig


@dataclass(frozen=True)
class Isolation:
    """How documents that share a row are kept apart; decided once, when the trainer is made.

    Attributes:
        packed: whether the training rows are packed.
        joined: whether the model cannot keep documents apart, so that they see each other as in TRL.
        masked_rows: rows per batch, if a mask keeps documents apart; 0 if the model does so itself.
    """

    packed: bool = False
    joined: bool = False
    masked_rows: int = 0

    @classmethod
    def of(cls, model: Any, packed: bool, rows: int, config: RunConfig) -> Isolation:
        """Try the model on rows of two documents; warn if it cannot keep them apart.

        Args:
            model: on its device; a module that is not a transformers model is not tried.
            packed: whether the training rows are packed.
            rows: the largest number of rows in a batch with several documents per row; 0 if there is none.
            config: of the run.
        """
        if not rows or not hasattr(model, "get_input_embeddings"):
            return cls()
        autocast = autocast_type(config.train)
        trials = document_trials(model.config, None, None, rows, config.data.max_length)
        with _flash_alone(model, config) if packed else contextlib.nullcontext():
            if leak_of(model, trials, autocast) is None:
                return cls(packed)
            try:
                with isolated(model, trials, autocast):
                    return cls(packed, masked_rows=rows)
            except ConfigError as leak:
                warn_caller(f"{leak}. As in TRL, the documents of a packed row see each other.")
                return cls(packed, joined=True)

    @contextlib.contextmanager
    def applied(self, model: Any, config: RunConfig) -> Iterator[None]:
        """Inside, the model keeps documents apart as decided; this can be nested."""
        with contextlib.ExitStack() as stack:
            if self.packed and not self.joined:
                stack.enter_context(_flash_alone(model, config))
            if self.masked_rows:
                trials = document_trials(model.config, None, None, self.masked_rows, config.data.max_length)
                stack.enter_context(isolated(model, trials, autocast_type(config.train)))
            yield


@contextlib.contextmanager
def cache_setting(model: Any, use_cache: bool) -> Iterator[None]:
    """Inside, the model's configuration has this ``use_cache``; with a cache, documents of a row see each other."""
    config = getattr(model, "config", None)
    if config is None:
        yield
        return
    before, config.use_cache = getattr(config, "use_cache", use_cache), use_cache
    try:
        yield
    finally:
        config.use_cache = before


def _flash_alone(model: Any, config: RunConfig) -> contextlib.AbstractContextManager[Any]:
    """If the script allows torch its flash kernel only, which accepts no mask, run it on one document at a time."""
    cuda = torch.backends.cuda
    others = cuda.math_sdp_enabled() or cuda.mem_efficient_sdp_enabled()
    runs_already = getattr(model.config, "_attn_implementation", None) == NAMES["sdpa_flash"]
    if others or not cuda.flash_sdp_enabled() or runs_already:
        return contextlib.nullcontext()
    plugin = FlashAttn(implementation="sdpa_flash", padding_free=False)
    return plugin.training_context(model=model, config=config, rows=None, collator=None)
