"""``trl.trainer.sft_config`` of 2024."""

from sftkit_trl.arguments import SFTConfig

__all__ = ["SFTConfig"]
