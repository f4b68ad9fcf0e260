"""The model of a run without its weights, which is enough to know the memory that it takes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.errors import SftkitError
from sftkit.models import unloaded as models
from sftkit.models.adapt import adapted_model
from sftkit.models.adapters import base_of, is_adapter

if TYPE_CHECKING:
    from sftkit.memory.quantized import Quantized
    from sftkit.run.stages import PreparedRun


class UnknownMemoryError(SftkitError):
    """The memory of a run cannot be known before its model is loaded; says why.

    A plugin raises it from ``adapt_model`` if it cannot adapt a model without weights (on the meta device).
    """


def unloaded_model(prepared: PreparedRun) -> tuple[Any, Quantized | None]:
    """The model to train on the meta device, adapted and with a row for each token, and its weights to be quantized.

    Raises:
        UnknownMemoryError: if there is no local configuration of the model, or the size of its quantized weights is
            not known.
    """
    import torch

    with torch.device("meta"):
        if prepared.model is not None:
            model = models.without_weights(prepared.model)
            quantized = None
        else:
            model, quantized = _from_configuration(prepared)
        tokens, rows = len(prepared.tokenizer), model.get_input_embeddings().weight.shape[0]
        new = sorted({*prepared.vocabulary.new_token_ids, *range(rows, tokens)})
        if tokens > rows:
            model.resize_token_embeddings(tokens, mean_resizing=False)
        with _without_info():
            return adapted_model(model, prepared.config, prepared.plugins, new), quantized


@contextmanager
def _without_info() -> Iterator[None]:
    """Drops what plugins log about the model, since they log it again when the run loads the weights."""
    logger = logging.getLogger("sftkit")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def model_config(name: str, trust_remote_code: bool = False, options: Mapping[str, Any] | None = None) -> Any:
    """The configuration of a model; None if ``name`` is not a local directory that contains one.

    Args:
        name: the directory.
        trust_remote_code: whether code that comes with the model may run.
        options: arguments of ``from_pretrained``; those that are of the configuration change it.
    """
    path = Path(name)
    if not (path / "config.json").is_file():
        return None
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            str(path), trust_remote_code=trust_remote_code, return_unused_kwargs=True, **(options or {})
        )[0]
    except (OSError, ValueError, KeyError):
        return None


def auto_class(prepared: PreparedRun) -> Any:
    """The class of transformers that makes the run's model from its configuration."""
    return models.auto_class(prepared.vocabulary.processor is not None)


def _from_configuration(prepared: PreparedRun) -> tuple[Any, Quantized | None]:
    import torch

    section = prepared.config.model
    name, _ = base_of(section.name)
    options = prepared.plugins.model_options(prepared.config)
    config = model_config(name, section.trust_remote_code, options)
    if config is None:
        raise UnknownMemoryError(f"there is no local configuration of {name!r}")
    stored = getattr(config, "quantization_config", None)
    settings = options.get("quantization_config") or stored
    wanted = config.dtype or "float32" if section.dtype == "auto" else section.dtype
    model = auto_class(prepared).from_config(
        config,
        dtype=getattr(torch, wanted) if isinstance(wanted, str) else wanted,
        trust_remote_code=section.trust_remote_code,
        **{name: options[name] for name in ("attn_implementation",) if name in options},
    )
    quantized = None
    if settings is not None:
        model.config.quantization_config = settings  # where plugins look for it
        quantized = _quantized(model, settings, Path(name) if stored is not None else None)
        for weight in quantized.weights:
            weight.requires_grad_(False)
    if is_adapter(section.name):
        model = prepared.plugins.hook.attach_adapter(model=model, config=prepared.config)
    return model, quantized


def _quantized(model: Any, settings: Any, directory: Path | None) -> Quantized:
    """The quantized weights of the checkpoint in ``directory``; without one, those that loading quantizes."""
    from sftkit.memory.quantized import loaded_quantized, stored_quantized

    try:
        return loaded_quantized(model, settings) if directory is None else stored_quantized(model, directory)
    except Exception as error:  # the method's package may be missing, or may need another device
        first = next(iter(str(error).splitlines()), "")
        what = f"the size of its quantized weights is not known ({type(error).__name__}: {first})"
        raise UnknownMemoryError(what) from error
