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
class SFTScriptArguments:
    """Arguments about the data, for `HfArgumentParser`."""

    dataset_name: str = field(default="timdettmers/openassistant-guanaco", metadata={"help": "Data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    config: str | None = field(default=None, metadata={"help": "YAML file with defaults for all arguments."})
    gradient_checkpointing_use_reentrant: bool = field(
        default=False, metadata={"help": "Use reentrant gradient checkpointing."}
    )


SftScriptArguments = SFTScriptArguments


class TrlParser(HfArgumentParser):
    """`HfArgumentParser` with defaults from the YAML file that ``--config`` names."""

    def parse_args_and_config(self, args: list[str] | None = None, return_remaining_strings: bool = False) -> Any:
        """The dataclasses, from the file and the command line; the command line overrides the file.

        Args:
            args: the command line; by default that of the program.
            return_remaining_strings: return unknown arguments too, instead of raising an error.

        Raises:
            ValueError: if a key in the file is not an argument.
        """
        args = sys.argv[1:] if args is None else list(args)
        args = [part for word in args for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
        at = args.index("--config") if "--config" in args else None
        if at is not None:
            values = yaml.safe_load(Path(args[at + 1]).read_text(encoding="utf-8")) or {}
            os.environ.update({name: str(value) for name, value in values.pop("env", {}).items()})
            known = {action.dest for action in self._actions}
            if unknown := [name for name in values if name not in known]:
                raise ValueError(f"{args[at + 1]}: unknown arguments: {', '.join(unknown)}. Correct or remove them.")
            self.set_defaults(**values)
            if "config" not in known:
                del args[at : at + 2]
        return self.parse_args_into_dataclasses(args, return_remaining_strings=return_remaining_strings)
