"""The names in a method's config, held against a model: those that match nothing, and tied layers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem, is_linear, linear_names, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIELDS = ("target_modules", "modules_to_save", "target_parameters")
WHERE = "plugin peft, option"


def check_names(model: PreTrainedModel, peft_config: Any, new_token_ids: list[int]) -> None:
    """Check the layers and parameters that a config names.

    Args:
        model: the base model.
        peft_config: the method's config, as the user wrote it.
        new_token_ids: tokens whose rows are trained in any case.

    Raises:
        ConfigError: for a name that matches nothing, and for a tied layer that would be trained apart from its twin.
    """
    problems = [problem for field in FIELDS for problem in _unmatched(model, peft_config, field)]
    problems += _tied(model, peft_config, new_token_ids)
    if problems:
        raise ConfigError(problems)


def adaptable(model: PreTrainedModel, modules: Collection[str] | None = None) -> tuple[list[str], list[str]]:
    """The names of linear layers but the head, and of experts' parameters, each the weights of all experts of a layer.

    Those are no linear layers.

    Args:
        model: the base model.
        modules: names of the modules that are looked at; None for all.
    """
    head, unsuited = model.get_output_embeddings(), unsuited_layers(model)
    named = [(name, module) for name, module in model.named_modules() if modules is None or name in modules]
    layers = [name for name, module in named if is_linear(module) and module is not head and name not in unsuited]
    experts = [
        f"{name}.{weight_name}"
        for name, module in named
        if "expert" in f"{name.rpartition('.')[2]} {type(module).__name__}".lower() and not is_linear(module)
        for weight_name, weight in module.named_parameters(recurse=False)
        if weight.dim() > 1 and not weight_name.endswith("bias")
    ]
    return layers, experts


def unsuited_layers(model: PreTrainedModel) -> list[str]:
    """The names of layers that are derived from linear ones, but compute something else, such as routers.

    An adapter adds its output to theirs, which has another form.
    """
    import torch

    def adds(layer: Any) -> bool:
        try:
            made = layer(torch.zeros(1, layer.in_features, device=layer.weight.device, dtype=layer.weight.dtype))
        except Exception:  # it takes another form, whatever it raises
            return False
        return torch.is_tensor(made) and tuple(made.shape) == (1, layer.out_features)

    own = ("transformers.models.", "transformers_modules.")  # code of models, unlike quantized layers
    with torch.no_grad():
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
            and type(module).forward is not torch.nn.Linear.forward
            and type(module).__module__.startswith(own)
            and not adds(module)
        ]


@contextmanager
def without_pattern_warnings(wanted: Any) -> Iterator[None]:
    """Without peft's warnings of ranks by pattern, if the user has set none.

    For fused experts, peft sets some itself, and does not look among the experts whether they match.

    Args:
        wanted: the config of the method as the user has set it.
    """
    with warnings.catch_warnings():
        for field in ("rank_pattern", "alpha_pattern"):
            if not getattr(wanted, field, None):
                warnings.filterwarnings("ignore", f"The following {field} keys did not match", RuntimeWarning)
        yield


def report_frozen(adapted: Any, layers: list[str], experts: list[str]) -> None:
    """Warn of layers and experts that got no adapter although ``all-linear`` was asked for."""
    targeted = {*adapted.base_model.targeted_module_names, *getattr(adapted.base_model, "targeted_parameter_names", ())}
    frozen = _short(name for name in experts if name not in targeted)
    if frozen:
        text = "peft: all-linear leaves the experts frozen; to adapt them, set target_parameters: [%s]"
        logging.getLogger("sftkit").warning(text, ", ".join(frozen))
    if others := _short(name for name in layers if not {name, f"{name}.weight"} & targeted):
        text = "peft: this version of peft leaves linear layers frozen (%s); to adapt them, name all in target_modules"
        logging.getLogger("sftkit").warning(text, ", ".join(others))


def _short(names: Iterable[str]) -> list[str]:
    """The last two components of names, without repeats."""
    return list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in names))


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output head and the input embeddings share their weight."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and getattr(head, "weight", None) is embedding.weight


def adapted_twins(adapted: Any) -> Problem | None:
    """The problem with a model that got an adapter on one of two tied layers; None if it did not.

    Merged into one, it would change the other. Its weights alone can be trained and saved apart.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = adapted.get_base_model()
    layers = {"head": base.get_output_embeddings(), "embeddings": base.get_input_embeddings()}
    found = [name for name, layer in layers.items() if isinstance(layer, BaseTunerLayer)]
    # A layer of trainable tokens is one too, inside its wrapper, and keeps both layers equal.
    if not found:
        return None
    what = f"the {' and the '.join(found)} would get an adapter, but they share their weights: it cannot be merged"
    fix = "remove them from target_modules; modules_to_save trains them in full, each with weights of its own"
    return Problem(what, f"{WHERE} target_modules", fix)


def _entries(peft_config: Any, field: str) -> list[str]:
    wanted = getattr(peft_config, field, None)
    return [str(name) for name in wanted] if isinstance(wanted, list | set | tuple) else []


def _matches(entry: str, names: Iterable[str]) -> bool:
    return any(name == entry or name.endswith(f".{entry}") for name in names)


def _unmatched(model: PreTrainedModel, peft_config: Any, field: str) -> Iterator[Problem]:
    weights = field == "target_parameters"
    names = [name for name, _ in (model.named_parameters() if weights else model.named_modules())]
    known = _short(adaptable(model)[1]) if weights else list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    kind = "parameter" if weights else "layer"
    listed = ", ".join(known if weights else linear_names(model))
    for entry in sorted(_entries(peft_config, field)):
        if not _matches(entry, names):
            fix = nearest(entry, known)
            shown = f"the {'experts' if weights else 'linear layers'} are {listed}"
            yield Problem(f"no {kind} of the model is called {entry!r}", f"{WHERE} {field}", fix or shown)
    wanted = getattr(peft_config, field, None)
    if field == "target_modules" and isinstance(wanted, str) and wanted in known and wanted not in names:
        what = f"the regular expression {wanted!r} matches no whole name"
        yield Problem(what, f"{WHERE} {field}", f"write it as a list: [{wanted}]")


def _tied(model: PreTrainedModel, peft_config: Any, new_token_ids: list[int]) -> Iterator[Problem]:
    """Rows of tokens and whole copies of a shared weight, which would not stay equal."""
    if not is_tied(model):
        return
    names = {id(module): name for name, module in model.named_modules()}
    head, embedding = names[id(model.get_output_embeddings())], names[id(model.get_input_embeddings())]
    rows = getattr(peft_config, "trainable_token_indices", None)
    if isinstance(rows, Mapping) and any(_matches(entry, [head]) for entry in rows):
        fix = f"name the embeddings, {embedding.rpartition('.')[2]}, alone: the head's rows follow"
        what = "rows of the head are to be trained, but it shares its weights with the embeddings"
        yield Problem(what, f"{WHERE} options.trainable_token_indices", fix)
    saved = [entry for entry in _entries(peft_config, "modules_to_save") if _matches(entry, [head, embedding])]
    if saved and (rows or new_token_ids):
        tokens = f"the rows of the {len(new_token_ids)} new tokens" if new_token_ids else "rows of tokens"
        what = f"{', '.join(saved)} would become a copy, but head and embeddings share {tokens}"
        fix = f"remove {', '.join(saved)} from modules_to_save: rows of new tokens are trained and saved anyway"
        yield Problem(what, f"{WHERE} options.modules_to_save", fix)
