"""A script's run as sftkit's stages: the configuration and the plugins that its arguments ask for."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

import datasets
import torch
from transformers import BitsAndBytesConfig, TrainingArguments

from sftkit.api import Pipeline, allowed_fields
from sftkit_plugins.liger import Liger
from sftkit_plugins.loss import Loss
from sftkit_plugins.neftune import NEFTune
from sftkit_plugins.packing import Packing
from sftkit_plugins.peft import PEFT

if TYPE_CHECKING:
    from sftkit.api import Stages
    from sftkit_trl.arguments import SFTConfig
    from sftkit_trl.data import DataSets


def stages_of(
    model: Any, args: SFTConfig, sets: DataSets, plugins: list[Any], tokenizer: Any, collator: Any = None
) -> Stages:
    """The stages of a script's run.

    Args:
        model: the model's name, or anything else for a loaded model.
        args: the script's, complete.
        sets: the data sets to prepare.
        plugins: plugins beside the default ones.
        tokenizer: of the model; it is not copied.
        collator: the script's own.

    Raises:
        ConfigError: with every problem of the configuration.
    """
    data: dict[str, Any] = {
        "max_length": args.max_seq_length,
        "special_tokens": "tokenizer" if sets.add_special_tokens else "none",
        "streaming": isinstance(sets.train, datasets.IterableDataset),
        "shuffle_buffer": 0,
    }
    if (args.dataset_batch_size or 0) > 0 and not args.packing:
        data["window"] = args.dataset_batch_size
    return Pipeline(
        model=model_section(model, args),
        data=[] if sets.train is None else sets.train,
        eval=sets.eval or None,
        plugins=[*plugins, {"formats": {"loss": "all", "text_column": sets.text_column}}],
        train=train_section(args),
        config={"data": data},
        tokenizer=tokenizer,
        collator=collator,
    ).stages()


def plugins_of(args: SFTConfig, tokenizer: Any, packs: bool, peft_config: Any = None) -> list[Any]:
    """The plugins that the arguments ask for.

    Args:
        args: the script's, complete.
        tokenizer: its EOS ends each packed text.
        packs: whether rows are packed here.
        peft_config: the adapter to train.
    """
    chosen: list[Any] = []
    if packs:
        appended = (args.dataset_kwargs or {}).get("append_concat_token", True)
        chosen.append(
            Packing(
                strategy="wrapped",
                concat_token_id=tokenizer.eos_token_id if appended else None,
                keep_short=False,
                eval="wrapped" if args.eval_packing is not False else False,
            )
        )
    if peft_config is not None:
        chosen.append(PEFT(config=peft_config))
    if args.neftune_noise_alpha is not None:
        chosen.append(NEFTune(alpha=args.neftune_noise_alpha))
    if args.use_liger:
        chosen.append(Liger(**(args.liger_kernel_config or {})))
    if args.label_smoothing_factor:
        chosen.append(Loss(label_smoothing=args.label_smoothing_factor))
    return chosen


def model_section(model: Any, args: SFTConfig) -> Any:
    """The section ``model`` for a model passed by name; a loaded model itself.

    Raises:
        ValueError: if ``torch_dtype`` is not a data type.
    """
    if not isinstance(model, str):
        return model
    options = {name: value for name, value in (args.model_init_kwargs or {}).items() if value is not None}
    dtype = options.pop("torch_dtype", options.pop("dtype", "float32"))
    known = dtype == "auto" or isinstance(dtype, torch.dtype)
    if not known and not (isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)):
        raise ValueError(
            "Invalid `torch_dtype` passed to the SFTConfig. Expected a string with either `torch.dtype` or 'auto', "
            f"but got {dtype}."
        )
    for name in ("load_in_8bit", "load_in_4bit"):
        if options.pop(name, False):
            options["quantization_config"] = BitsAndBytesConfig(**{name: True})
    section = {name: options.pop(name) for name in ("revision", "trust_remote_code") if name in options}
    if "use_auth_token" in options:
        options["token"] = options.pop("use_auth_token")
    if options.get("use_safetensors"):
        del options["use_safetensors"]  # only safetensors are read anyway
    return {"name": model, "dtype": str(dtype).removeprefix("torch."), "options": options, **section}


def train_section(args: SFTConfig) -> dict[str, Any]:
    """The section ``train``, for the plugins that read it: plain values that differ from the defaults."""
    section = {}
    for known in dataclasses.fields(TrainingArguments):
        value = getattr(args, known.name)
        value = value.value if isinstance(value, enum.Enum) else value
        plain = isinstance(value, bool | int | float | str | dict | list)
        if known.name in allowed_fields() and plain and value != known.default:
            section[known.name] = value
    return section
