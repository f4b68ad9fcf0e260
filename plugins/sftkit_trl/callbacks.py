"""`RichProgressCallback`: the progress of training as sftkit shows it."""

from __future__ import annotations

from sftkit.api import Display, ProgressCallback


class RichProgressCallback(ProgressCallback):
    """Shows the progress of training as sftkit does, instead of the progress bar of transformers."""

    def __init__(self) -> None:
        super().__init__(Display())
