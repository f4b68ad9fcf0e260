"""Adapters of the peft library, attached to their base model to be trained further."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.api import (
    ConfigError,
    Problem,
    align_special_tokens,
    as_config_error,
    grow_embeddings,
    is_adapter,
    load_tokenizer,
    requirement_problem,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sftkit.api import RunConfig

PEFT = "peft>=0.18"


def adapter_problems(config: RunConfig) -> Iterator[Problem]:
    """Problems with a directory that holds an adapter: peft is missing, or the adapter's weights are."""
    name, key = config.model.name, ("model", "name")
    if not is_adapter(name):
        return
    if problem := requirement_problem(PEFT, "model.name: a PEFT adapter"):
        yield problem
    if not Path(name, "adapter_model.safetensors").is_file():
        what = f"there is no adapter_model.safetensors in {name!r}"
        fix = "save the adapter again with peft's save_pretrained"
        if Path(name, "adapter_model.bin").is_file():
            what = f"the adapter's weights in {name!r} are a pickle, which can run code when it is read"
            fix = "convert it in an environment that you trust: load the adapter and call its save_pretrained"
        yield Problem(what, "model.name", fix, key)


def with_adapter(base: PreTrainedModel, config: RunConfig) -> Any:
    """The base model with the adapter of ``config.model.name``, trainable. Changes the base.

    Of a prompt, the embeddings are trained. On the meta device the adapter gets shapes but no weights.

    Raises:
        ConfigError: if peft is missing, or the adapter does not fit the base.
    """
    if problems := list(adapter_problems(config)):
        raise ConfigError(problems)
    from peft import PeftConfig, PeftModel, get_peft_model

    directory = Path(config.model.name)
    tokenizer = load_tokenizer(config)
    grow_embeddings(base, tokenizer, [])
    align_special_tokens(base, tokenizer, changed=True)
    with as_config_error("model.name"):
        rows = _saved_rows(directory, base)
        if rows > base.get_input_embeddings().weight.shape[0]:
            grow_embeddings(base, tokenizer, [], pad_to_multiple_of=rows)
        if next(base.parameters()).is_meta:
            peft_config = PeftConfig.from_pretrained(str(directory))
            peft_config.inference_mode = False
            return get_peft_model(base, peft_config)
        # peft refuses to load a prompt as trainable, since it lacks the encoder that made it; its embeddings train on
        trainable = not PeftConfig.from_pretrained(str(directory)).is_prompt_learning
        model = PeftModel.from_pretrained(base, str(directory), is_trainable=trainable)
    if not rows:  # the adapter holds the rows of new tokens; peft would save the whole resized embeddings too
        model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
    return model


def _saved_rows(directory: Path, base: PreTrainedModel) -> int:
    """Rows of the whole embedding that some trainers save in the adapter's file after a resize; else 0."""
    from safetensors import safe_open

    embedding = base.get_input_embeddings()
    name = next(name for name, module in base.named_modules() if module is embedding)
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as file:
        keys = [key for key in file.keys() if f".{name}." in key and key.endswith(".weight")]  # noqa: SIM118
        return max((file.get_slice(key).get_shape()[0] for key in keys if "lora_" not in key), default=0)
