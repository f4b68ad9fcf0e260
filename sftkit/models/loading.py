"""Models and their tokenizers from a directory or the Hugging Face hub, for the plugins that load them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.errors import ConfigError, Problem, nearest
from sftkit.models.adapters import base_of, is_adapter
from sftkit.models.embeddings import split_processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sftkit.config import RunConfig

#: Arguments of ``from_pretrained`` that have a key of their own, and what to write instead.
OWN_KEYS = {
    "revision": "set model.revision",
    "dtype": "set model.dtype",
    "torch_dtype": "set model.dtype",
    "trust_remote_code": "set model.trust_remote_code",
    "use_safetensors": "drop it: only safetensors are read",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def model_problems(config: RunConfig) -> Iterator[Problem]:
    """Directories that do not exist or hold no model, and options that have a key of their own."""
    for key in config.model.options:
        if key in OWN_KEYS:
            yield Problem("this is no place for it", f"model.options.{key}", OWN_KEYS[key], ("model", "options", key))
    name = config.model.name
    path = Path(name)
    if name and path.is_dir():
        yield from _directory_problems(path, config)
    elif _looks_like_path(name):
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        fix = nearest(path.name, siblings) or "correct the path, or give a hub name such as Qwen/Qwen3-0.6B"
        yield Problem(f"there is no directory {name!r}", "model.name", fix, ("model", "name"))


def load_tokenizer(config: RunConfig, auto: Any = None, **options: Any) -> Any:
    """The tokenizer of ``model.tokenizer``, else of the model; an adapter's own before its base model's.

    Args:
        config: the run as resolved.
        auto: the class that loads it; `transformers.AutoTokenizer`, or that of a processor.
        options: further arguments of its ``from_pretrained``.

    Raises:
        ConfigError: if it cannot be loaded, or is not a fast one, which alone tells where tokens stand in a text.
    """
    from transformers import AutoTokenizer

    name, revision, where = config.model.name, config.model.revision, "model.name"
    if not any(Path(name, file).is_file() for file in TOKENIZER_FILES):
        name, revision = base_of(name, revision)
    if config.model.tokenizer:
        name, where = config.model.tokenizer, "model.tokenizer"
        revision = revision if name == config.model.name else None
    with as_config_error(where):
        loaded = (auto or AutoTokenizer).from_pretrained(
            name, revision=revision, trust_remote_code=config.model.trust_remote_code, **options
        )
    if not getattr(split_processor(loaded)[0], "is_fast", False):
        fix = "set model.tokenizer to one with a tokenizer.json"
        raise ConfigError(Problem(f"the tokenizer of {name!r} is not a fast one", where, fix))
    return loaded


def load_model(config: RunConfig, options: Mapping[str, Any], auto: Any) -> PreTrainedModel:
    """The model with its weights, from safetensors only; for a directory with an adapter, its base model.

    Args:
        config: the run as resolved.
        options: further arguments of ``from_pretrained``.
        auto: the class that loads it, as `transformers.AutoModelForCausalLM`.

    Raises:
        ConfigError: if it cannot be loaded, or weights are missing from the checkpoint.
    """
    name, revision = base_of(config.model.name, config.model.revision)
    return _load_base(name, revision, config, options, auto)


def _looks_like_path(name: str) -> bool:
    """Whether a name that is no directory was meant as one: a hub name is ``name`` or ``owner/name``."""
    owner, slash, _ = name.partition("/")
    return (
        name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or bool(slash and Path(owner).is_dir())
    )


def _directory_problems(path: Path, config: RunConfig) -> Iterator[Problem]:
    key = ("model", "name")
    if is_adapter(str(path)):
        return
    if not (path / "config.json").is_file():
        what = f"the directory {str(path)!r} has neither a config.json nor an adapter_config.json"
        yield Problem(what, "model.name", "name the directory that save_pretrained wrote", key)
    elif config.model.init == "pretrained":
        yield from _weight_problems(path, config)


def _weight_problems(path: Path, config: RunConfig) -> Iterator[Problem]:
    root = path / str(config.model.options.get("subfolder", ""))
    if any(root.glob("*.safetensors")) or "gguf_file" in config.model.options:
        return
    if any(root.glob("*.bin")):
        what = f"the weights in {str(root)!r} are pickles, which run code when they are read"
        fix = "convert them where you trust them: load the model and save_pretrained it"
        yield Problem(what, "model.name", fix, ("model", "name"))
    else:
        fix = "give a directory with weights, or set model.init=random to train from scratch"
        yield Problem(f"there are no *.safetensors in {str(root)!r}", "model.name", fix, ("model", "name"))


def _load_base(
    name: str, revision: str | None, config: RunConfig, options: Mapping[str, Any], auto: Any
) -> PreTrainedModel:
    if config.model.init == "random":
        return _random_model(name, revision, config, options, auto)
    if Path(name).is_dir() and (problems := list(_weight_problems(Path(name), config))):
        raise ConfigError(problems)
    with as_config_error("model"):
        model, told = auto.from_pretrained(
            name,
            revision=revision,
            dtype=config.model.dtype,
            trust_remote_code=config.model.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(told["missing_keys"]):
        what = f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}, as {missing[0]}"
        raise ConfigError(Problem(what, "model.name", "give a checkpoint of this kind of model"))
    return model


def _random_model(
    name: str, revision: str | None, config: RunConfig, options: Mapping[str, Any], auto: Any
) -> PreTrainedModel:
    import torch
    from transformers import AutoConfig, GenerationConfig, set_seed

    trust = config.model.trust_remote_code
    with as_config_error("model"):
        architecture = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust)
        wanted = architecture.dtype or "float32" if config.model.dtype == "auto" else config.model.dtype
        dtype = getattr(torch, wanted) if isinstance(wanted, str) else wanted
        set_seed(config.train.get("seed", 42))
        model = auto.from_config(architecture, dtype=dtype, trust_remote_code=trust, **options)
        if Path(name, "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(name)
    return model.eval()


@contextlib.contextmanager
def as_config_error(where: str) -> Iterator[None]:
    """What the libraries raise for a name, file or option that does not fit, as an error of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, ImportError, SafetensorError) as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(Problem(line, where, _fix(str(error)))) from error


def _fix(text: str) -> str:
    if "trust_remote_code" in text:
        return "set model.trust_remote_code=true if you trust the code that comes with it"
    if "unexpected keyword argument" in text:
        return "correct model.options"
    if "safetensors" in text:
        return "give a checkpoint with whole *.safetensors files; no pickle is read"
    return "correct the name or the option"
