"""Text to token ids: by `tokenizers`, or by a faster engine that is proved equal to it before it is used."""
