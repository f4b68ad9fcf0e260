"""``trl.env_utils`` of 2024."""

from transformers.utils import strtobool

__all__ = ["strtobool"]
