"""``trl.models`` of 2024: the ChatML format."""

from sftkit_plugins.chatml.chat_format import ChatMlSpecialTokens, setup_chat_format

__all__ = ["ChatMlSpecialTokens", "setup_chat_format"]
