"""``trl.trainer.model_config`` of 2024."""

from sftkit_trl.model_arguments import ModelConfig

__all__ = ["ModelConfig"]
