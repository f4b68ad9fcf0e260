"""``trl.commands.cli_utils`` of 2024: what scripts import from it."""

from __future__ import annotations

import logging
import warnings

import transformers

from sftkit_trl.parser import ScriptArguments, SFTScriptArguments, SftScriptArguments, TrlParser

__all__ = ["SFTScriptArguments", "ScriptArguments", "SftScriptArguments", "TrlParser", "init_zero_verbose"]


def init_zero_verbose() -> None:
    """Log errors only, and show no warnings."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
