"""``trl.models`` of 2024, as far as supervised fine-tuning uses it."""

from sftkit_trl.models.utils import setup_chat_format

__all__ = ["setup_chat_format"]
