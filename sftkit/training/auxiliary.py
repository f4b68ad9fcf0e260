"""The auxiliary losses that a model adds to its own loss, such as that of a router, and their coefficient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from sftkit.errors import ConfigError, Problem
from sftkit.models.inspect import evaluating
from sftkit.training.attributes import replaced

PROBED = 8  # tokens of the trial
MOVED = 1000.0  # added to an attribute, to see whether it is the coefficient
NAMES = ("loss", "aux", "coef", "balanc", "router")  # parts of the names of attributes that may be


def auxiliary_coefficient(causal: Any, model: Any) -> float | None:
    """The factor of ``aux_loss`` in a model's own loss; None if it returns no ``aux_loss``.

    It is the attribute of the model or of its configuration on whose value the model's loss depends by ``aux_loss``.

    Args:
        causal: the causal language model.
        model: the same, perhaps wrapped by adapters or for several processes.

    Raises:
        ConfigError: if no attribute is the coefficient, the model's loss has a further part, or the model fails to
            compute a loss with the router logits that it is asked for.
    """
    candidates = list(_numbers(causal))
    named = [(owner, name, value) for owner, name, value in candidates if "loss" in name and value]
    asked = getattr(causal.config.get_text_config(), "output_router_logits", False)
    if not named and not asked:
        return None
    with evaluating(model):
        own, tokens, auxiliary = _losses(causal, model)
        if own is None and asked:
            raise _unknown(causal, "computes no loss with output_router_logits in this version of transformers", "")
        if own is None:
            return None
        coefficient = 0.0
        if auxiliary is not None:
            found = next((each for each in candidates if _is_coefficient(*each, causal, model)), None)
            if found is None:
                raise _unknown(causal, "returns an aux_loss whose coefficient is not an attribute of it", "")
            coefficient = float(found[2])
    rest = own - tokens - coefficient * (auxiliary or 0.0)
    dtype = next(causal.get_input_embeddings().parameters()).dtype
    rounding = torch.finfo(dtype).eps if dtype.is_floating_point else 2**-7
    if abs(rest) > 64 * rounding * (abs(own) + 1):
        names = ", ".join(dict.fromkeys(name for _, name, _ in named)) or "unknown"
        raise _unknown(causal, "adds a loss to its own that sftkit does not compute", names)
    return None if auxiliary is None else coefficient


def _numbers(causal: Any) -> Iterator[tuple[Any, str, float]]:
    """Attributes of a model and of its configurations that may be a coefficient: owner, name and value."""
    configs = [causal.config, causal.config.get_text_config()]
    nested = [value for config in configs for value in vars(config).values() if hasattr(value, "to_dict")]
    owners = {id(owner): owner for owner in (causal, *configs, *nested)}
    for owner in owners.values():
        for name, value in vars(owner).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and any(part in name for part in NAMES):
                yield owner, name, float(value)


def _losses(causal: Any, model: Any) -> tuple[float | None, float, float | None]:
    """The model's own loss of a few tokens, the mean loss of the tokens, and the auxiliary loss."""
    weight = next(causal.get_input_embeddings().parameters())  # of an adapter's, not merged
    ids = torch.arange(PROBED, device=weight.device)[None] % max(len(weight), 1)
    try:
        outputs = model(input_ids=ids, labels=ids, use_cache=False)
        own, auxiliary = outputs["loss"], getattr(outputs, "aux_loss", None)
    except Exception:  # a model may raise anything for labels that it does not take
        return None, 0.0, None
    if own is None or outputs["logits"] is None:
        return None, 0.0, None
    tokens = functional.cross_entropy(outputs["logits"][0, :-1].float(), ids[0, 1:].to(outputs["logits"].device))
    return float(own), float(tokens), float(auxiliary) if torch.is_tensor(auxiliary) else None


def _is_coefficient(owner: Any, name: str, value: float, causal: Any, model: Any) -> bool:
    with replaced(owner, name, value + MOVED):
        own, tokens, auxiliary = _losses(causal, model)
    if own is None or not auxiliary:
        return False
    expected = tokens + (value + MOVED) * auxiliary
    return abs(own - expected) <= 0.05 * abs(expected)


def _unknown(causal: Any, what: str, names: str) -> ConfigError:
    what = f"model type {causal.config.model_type} {what}" + (f" ({names})" if names else "")
    fix = "set model.options.output_router_logits: false, or set the coefficient to 0 in model.options"
    return ConfigError(Problem(what, "model", fix))
