"""Models and their tokenizers from a directory or the Hugging Face hub, for the plugins that load them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.config.train_fields import train_value
from sftkit.errors import ConfigError, Problem, nearest
from sftkit.garbage import uncollected
from sftkit.models.adapters import base_of, is_adapter
from sftkit.models.auto_tokenizer import load_auto_tokenizer
from sftkit.models.embeddings import split_processor
from sftkit.ranks import world_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sftkit.config import RunConfig

#: Arguments of any loader that are keys of the section ``model``, and the fix where they are among ``model.options``.
MODEL_KEYS = {"revision": "set model.revision", "trust_remote_code": "set model.trust_remote_code"}
#: The same for ``from_pretrained``.
_PRETRAINED_KEYS = {
    **MODEL_KEYS,
    "dtype": "set model.dtype",
    "torch_dtype": "set model.dtype",
    "use_safetensors": "remove it; only safetensors are read",
    **dict.fromkeys(
        ("distributed_config", "device_mesh", "tp_plan", "tp_size"),
        "remove it, and use a plugin that divides the model among processes",
    ),
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def model_problems(config: RunConfig) -> Iterator[Problem]:
    """Directories that do not exist or hold no model, and options that are keys of the section ``model``."""
    yield from misplaced_options(config.model.options, _PRETRAINED_KEYS)
    if config.model.options.get("device_map") is not None and world_size() > 1:
        what, fix = "each process trains on its own device", "remove it, or start a single process"
        yield Problem(what, "model.options.device_map", fix, ("model", "options", "device_map"))
    name = config.model.name
    path = Path(name)
    if name and path.is_dir():
        yield from _directory_problems(path, config)
    elif looks_like_path(name):
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        fix = nearest(path.name, siblings) or "correct the path, or use a hub name such as owner/name"
        yield Problem(f"there is no directory {os.path.abspath(name)!r}", "model.name", fix, ("model", "name"))


def misplaced_options(
    options: Mapping[str, Any], fixes: Mapping[str, str], where: str = "model.options"
) -> Iterator[Problem]:
    """Options of a loader that must be set elsewhere.

    Args:
        options: keyword arguments.
        fixes: for each that is not allowed, what to do instead.
        where: where the options come from.
    """
    for name in options:
        if name in fixes:
            yield Problem("not allowed here", f"{where}.{name}", fixes[name], ("model", "options", name))


def load_tokenizer(config: RunConfig, auto: Any = None, **options: Any) -> Any:
    """The tokenizer of ``model.tokenizer``, else of the model; an adapter's own takes precedence over its base model's.

    Args:
        config: the run as resolved.
        auto: the class that loads it: `transformers.AutoTokenizer` by default, or that of a processor.
        options: further arguments of its ``from_pretrained``.

    Raises:
        ConfigError: if it cannot be loaded, or is slow: only fast tokenizers report the offsets of tokens in the text.
    """
    name, revision, where = config.model.name, config.model.revision, "model.name"
    if not any(Path(name, file).is_file() for file in TOKENIZER_FILES):
        name, revision = base_of(name, revision)
    if config.model.tokenizer:
        name, where = config.model.tokenizer, "model.tokenizer"
        revision = revision if name == config.model.name else None
    with as_config_error(where, name=name), uncollected():
        if auto is None and not options and not config.model.trust_remote_code:
            loaded = load_auto_tokenizer(name, revision)
        else:
            from transformers import AutoTokenizer

            trust = config.model.trust_remote_code
            loaded = (auto or AutoTokenizer).from_pretrained(
                name, revision=revision, trust_remote_code=trust, **options
            )
    if not getattr(split_processor(loaded)[0], "is_fast", False):
        fix = "set model.tokenizer to one with a tokenizer.json"
        raise ConfigError(Problem(f"the tokenizer of {name!r} is not a fast tokenizer", where, fix))
    return loaded


def load_model(config: RunConfig, options: Mapping[str, Any], auto: Any) -> PreTrainedModel:
    """The model with its weights, from safetensors only; for a directory with an adapter, its base model.

    Args:
        config: the run as resolved.
        options: further arguments of ``from_pretrained``.
        auto: the class that loads it, such as `transformers.AutoModelForCausalLM`.

    Raises:
        ConfigError: if it cannot be loaded, or weights are missing from the checkpoint.
    """
    name, revision = base_of(config.model.name, config.model.revision)
    if config.model.init == "random":
        return _random_model(name, config, options, auto)
    if Path(name).is_dir() and (problems := list(_weight_problems(Path(name), config))):
        raise ConfigError(problems)
    with as_config_error("model", name=name):
        model, info = auto.from_pretrained(
            name,
            revision=revision,
            dtype=config.model.dtype,
            trust_remote_code=config.model.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(info["missing_keys"]):
        what = f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}"
        raise ConfigError(Problem(what, "model.name", "use a checkpoint of this model class"))
    return model


def base_configuration(config: RunConfig, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The configuration of the section ``model``, or of an adapter's base, read from here or the hub.

    Args:
        config: the run as resolved.
        options: arguments of ``from_pretrained``, of which some change the configuration.

    Returns:
        The configuration, and the arguments that are no part of it.

    Raises:
        ConfigError: if it cannot be read.
    """
    from transformers import AutoConfig

    name, revision = base_of(config.model.name, config.model.revision)
    with as_config_error("model", name=name):
        found, unused = AutoConfig.from_pretrained(
            name,
            revision=revision,
            trust_remote_code=config.model.trust_remote_code,
            return_unused_kwargs=True,
            **options,
        )
    return found, unused


def looks_like_path(name: str) -> bool:
    """Whether a name that is not a directory was meant as one: a hub name is ``name`` or ``owner/name``."""
    owner, slash, _ = name.partition("/")
    return (
        name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or bool(slash and Path(owner).is_dir())
    )


def _directory_problems(path: Path, config: RunConfig) -> Iterator[Problem]:
    if is_adapter(str(path)):
        return
    if not (path / "config.json").is_file():
        what = f"the directory {str(path)!r} has neither a config.json nor an adapter_config.json"
        yield Problem(what, "model.name", "name a directory that save_pretrained wrote", ("model", "name"))
    elif config.model.init == "pretrained":
        yield from _weight_problems(path, config)


def _weight_problems(path: Path, config: RunConfig) -> Iterator[Problem]:
    root = path / str(config.model.options.get("subfolder", ""))
    if any(root.glob("*.safetensors")) or "gguf_file" in config.model.options:
        return
    if any(root.glob("*.bin")):
        what = f"the weights in {str(root)!r} are pickles, which can run code when they are read"
        fix = "convert them in an environment that you trust: load the model and call its save_pretrained"
        yield Problem(what, "model.name", fix, ("model", "name"))
    else:
        fix = "use a directory with weights, or set model.init=random to train from scratch"
        yield Problem(f"there are no *.safetensors in {str(root)!r}", "model.name", fix, ("model", "name"))


def _random_model(name: str, config: RunConfig, options: Mapping[str, Any], auto: Any) -> PreTrainedModel:
    import torch
    from transformers import GenerationConfig, set_seed

    trust = config.model.trust_remote_code
    architecture, unused = base_configuration(config, options)
    with as_config_error("model", name=name):
        wanted = architecture.dtype or "float32" if config.model.dtype == "auto" else config.model.dtype
        dtype = getattr(torch, wanted) if isinstance(wanted, str) else wanted
        set_seed(train_value(config, "seed"))
        model = auto.from_config(architecture, dtype=dtype, trust_remote_code=trust, **unused)
        if Path(name, "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(name)
    return model.eval()


@contextlib.contextmanager
def as_config_error(where: str, *further: type[Exception], name: str = "") -> Iterator[None]:
    """Turns what libraries raise for an unsuitable name, file or option into a ConfigError of one line.

    Args:
        where: the place that the error names.
        further: exceptions to turn as well.
        name: directory or hub name of what is loaded, which libraries do not name if the hub cannot be reached.
    """
    from safetensors import SafetensorError

    usual = (OSError, ValueError, TypeError, KeyError, ImportError, SafetensorError)
    try:
        yield
    except usual + further as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if name and "couldn't connect to" in line:
            what = f"{name!r} is neither a directory here nor in the cache of the hub, and the hub cannot be reached"
            fix = "correct the name, or connect to the network without HF_HUB_OFFLINE"
            raise ConfigError(Problem(what, where, fix)) from error
        raise ConfigError(Problem(line, where, _fix(str(error), where))) from error


def _fix(text: str, where: str) -> str:
    if "trust_remote_code" in text:
        return "set model.trust_remote_code=true if you trust the code that comes with it"
    if "unexpected keyword argument" in text:
        return "correct model.options" if where == "model" else "correct the options"
    if "safetensors" in text:
        return "use a checkpoint with complete *.safetensors files; pickles are not read"
    return "correct the name or the options"
