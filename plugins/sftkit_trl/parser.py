"""`TrlParser` and the arguments of TRL's example scripts."""

# Not `from __future__ import annotations`: HfArgumentParser reads the fields' types.

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


@dataclass
class ScriptArguments:
    """Arguments about the data, as in TRL 0.12."""

    dataset_name: str = field(metadata={"help": "Data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    config: str | None = field(default=None, metadata={"help": "YAML file with defaults for all arguments."})
    gradient_checkpointing_use_reentrant: bool = field(
        default=False, metadata={"help": "Use reentrant gradient checkpointing."}
    )
    ignore_bias_buffers: bool = field(default=False, metadata={"help": "For scripts that read it."})


@dataclass
class SFTScriptArguments(ScriptArguments):
    """Arguments about the data, as in TRL 0.9 to 0.11."""

    dataset_name: str = field(default="timdettmers/openassistant-guanaco", metadata={"help": "Data set."})


@dataclass
class SftScriptArguments(SFTScriptArguments):
    """Arguments about the data, as in TRL 0.8, whose trainer had no `SFTConfig`."""

    dataset_train_name: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_name: str = field(default="test", metadata={"help": "Split to evaluate on."})
    dataset_text_field: str | None = field(default=None, metadata={"help": "Column that holds the text."})
    max_seq_length: int = field(default=512, metadata={"help": "Tokens per row."})
    packing: bool = field(default=False, metadata={"help": "Pack several texts into each row."})


class TrlParser(HfArgumentParser):
    """`HfArgumentParser` with defaults from the YAML file that ``--config`` names.

    Args:
        dataclass_types: one dataclass or several, whose fields are the arguments.
        ignore_extra_args: ignore keys of the file that are no arguments, instead of raising an error.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(self, dataclass_types: Any = None, ignore_extra_args: bool = False, **options: Any) -> None:
        super().__init__(dataclass_types, **options)
        self.ignore_extra_args = ignore_extra_args

    def parse_args_and_config(self, args: list[str] | None = None, return_remaining_strings: bool = False) -> Any:
        """The dataclasses, from the file and the command line; the command line overrides the file.

        Args:
            args: the command line; by default that of the program.
            return_remaining_strings: return unknown arguments and keys too, instead of raising an error.

        Raises:
            ValueError: if a key in the file is not an argument, or its ``env`` is not a mapping.
        """
        args = sys.argv[1:] if args is None else list(args)
        args = [part for word in args for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
        extra: dict[str, Any] = {}
        if "--config" in args:
            at = args.index("--config")
            extra = self._defaults_from(args[at + 1])
            if extra and not (self.ignore_extra_args or return_remaining_strings):
                raise ValueError(f"{args[at + 1]}: unknown arguments: {', '.join(extra)}. Correct or remove them.")
            if not any(action.dest == "config" for action in self._actions):
                del args[at : at + 2]
        parsed = self.parse_args_into_dataclasses(args, return_remaining_strings=return_remaining_strings)
        if return_remaining_strings:
            parsed[-1].extend(word for name, value in extra.items() for word in (f"--{name}", str(value)))
        return parsed

    def _defaults_from(self, path: str) -> dict[str, Any]:
        """Take defaults from a file: what it names is no longer required. Returns what is not an argument."""
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        variables = values.pop("env", {})
        if not isinstance(variables, dict):
            raise ValueError(f"{path}: `env` should map the names of environment variables to their values.")
        os.environ.update({name: str(value) for name, value in variables.items()})
        for action in self._actions:
            if action.dest in values:
                action.default, action.required = values.pop(action.dest), False
        return values
