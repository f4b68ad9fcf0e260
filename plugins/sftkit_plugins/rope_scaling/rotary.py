"""The rotary embeddings of a model: in its configuration, and the modules that compute them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from sftkit.api import ConfigError, Problem, position_limit

#: What each type has besides a factor.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "dynamic": (),
    "yarn": ("beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor", "attention_factor"),
}
LENGTH = "max_position_embeddings"
ORIGINAL = f"original_{LENGTH}"
GLOBAL = "full_attention"  # layers that see the whole row; those with a window see as many tokens as before


class Rotary(NamedTuple):
    """The rotary embeddings of a model's configuration.

    Attributes:
        text: the configuration of the language model.
        part: the key of the whole configuration under which it is; empty if it is the whole.
        all: its ``rope_parameters``.
        layers: the key of the scaled layers in ``all``; empty if all layers have the same embeddings.
    """

    text: Any
    part: str
    all: Mapping[str, Any]
    layers: str

    @property
    def now(self) -> dict[str, Any]:
        """The parameters of the layers to scale."""
        found = dict(self.all[self.layers] if self.layers else self.all)
        return {"rope_type": found.pop("type", "default"), **found}

    @property
    def original(self) -> int | None:
        """The number of positions before any scaling; None if it is not known."""
        now, own = self.now, getattr(self.text, ORIGINAL, None)
        if now["rope_type"] == "linear":
            return None
        found = getattr(self.text, LENGTH, None)
        return found if now["rope_type"] in ("default", "dynamic") else own or now.get(ORIGINAL)


def rotary_of(architecture: Any) -> Rotary:
    """The rotary embeddings of a model's configuration.

    Raises:
        ConfigError: if it has none, or such as cannot be scaled.
    """
    model, fix = f"models of the type {architecture.model_type}", "drop plugin rope_scaling, or use another model"
    try:
        text = architecture.get_text_config()
    except ValueError as error:  # there are several
        raise ConfigError(Problem(str(error), "model.name", fix)) from error
    parts = [key for key in architecture.sub_configs if getattr(architecture, key, None) is text]
    parameters = getattr(text, "rope_parameters", None) or {}
    nested = [key for key, value in parameters.items() if isinstance(value, Mapping)]
    found = Rotary(text, parts[0] if parts else "", parameters, GLOBAL if nested else "")
    what = ""
    if not parameters or getattr(text, "alibi", False):
        what = f"{model} have no rotary position embeddings"
    elif getattr(text, LENGTH, None) is None:
        what = f"the configuration of {model} names no {LENGTH}"
    elif text is not architecture and not parts:
        what = f"{model} have their language model too deep in their configuration"
    elif nested and GLOBAL not in nested:
        what = f"{model} have rotary embeddings for layers of the types {', '.join(nested)}, none of them {GLOBAL}"
    elif (kind := found.now["rope_type"]) not in ("default", *PARAMETERS):
        what = f"{model} have rotary embeddings of the type {kind}, which cannot be scaled"
    if what:
        raise ConfigError(Problem(what, "model.name", fix, ("model", "name")))
    return found


def described(rotary: Rotary) -> str:
    """A scaling in words, such as ``yarn by 4, to 1,024 positions``."""
    now = rotary.now
    by = f" by {now['factor']:g}" if now.get("factor") else ""
    return f"{now['rope_type']}{by}, to {position_limit(rotary.text):,} positions"


def rotary_modules(model: Any) -> list[Any]:
    """The modules of a language model that compute the cosines and sines of positions."""
    text = type(model.config.get_text_config())
    return [
        module
        for module in model.modules()
        if hasattr(module, "rope_type") and type(getattr(module, "config", None)) is text
    ]


def check_applied(model: Any) -> None:
    """Check that a model computes with the frequencies of its configuration, which must be scaled.

    Raises:
        ConfigError: if it does not.
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if next(model.parameters()).is_meta:
        return
    rotary = rotary_of(model.config)
    layers = {"layer_type": rotary.layers} if rotary.layers else {}
    wanted, _ = ROPE_INIT_FUNCTIONS[rotary.now["rope_type"]](rotary.text, torch.device("cpu"), **layers)
    name = f"{rotary.layers}_inv_freq" if rotary.layers else "inv_freq"
    found = [getattr(module, name, None) for module in rotary_modules(model)]
    if not found or not all(each is not None and _close(each, wanted) for each in found):
        what = f"models of the type {model.config.model_type} do not compute their positions from rope_parameters"
        raise ConfigError(Problem(what, "model.name", "drop plugin rope_scaling, or use another model"))
    logging.getLogger("sftkit").info("rope_scaling: %s", described(rotary))


def _close(found: Any, wanted: Any) -> bool:
    import torch

    return found.shape == wanted.shape and torch.allclose(found.detach().cpu().float(), wanted.float())


def forget(module: Any, arguments: Any) -> None:
    """Let a rotary embedding of the type dynamic forget the longest row so far. Changes the module."""
    module.max_seq_len_cached = module.original_max_seq_len
    module.inv_freq = module.original_inv_freq.to(module.inv_freq.device)
