"""``trl.commands`` of 2024, as far as supervised fine-tuning uses it."""

from sftkit_trl.commands.cli_utils import SFTScriptArguments, SftScriptArguments, TrlParser, init_zero_verbose

__all__ = ["SFTScriptArguments", "SftScriptArguments", "TrlParser", "init_zero_verbose"]
