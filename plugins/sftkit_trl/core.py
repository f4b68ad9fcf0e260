"""``trl.core`` of 2024, as far as supervised fine-tuning uses it."""

from transformers import set_seed

__all__ = ["set_seed"]
