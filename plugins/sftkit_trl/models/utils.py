"""``trl.models.utils`` of 2024: the ChatML format."""

from sftkit_plugins.chatml.chat_format import FORMAT_MAPPING, ChatMlSpecialTokens, setup_chat_format

__all__ = ["FORMAT_MAPPING", "ChatMlSpecialTokens", "setup_chat_format"]
