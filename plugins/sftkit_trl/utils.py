"""``trl.utils`` of 2024."""

from sftkit_trl.parser import ScriptArguments

__all__ = ["ScriptArguments"]
