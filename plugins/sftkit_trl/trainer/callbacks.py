"""``trl.trainer.callbacks`` of 2024."""

from sftkit_trl.callbacks import RichProgressCallback

__all__ = ["RichProgressCallback"]
