"""Fixtures for tests of plugins, which pytest loads wherever sftkit is installed.

Nothing but pytest is imported before a test asks for one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sftkit import Plugin, RunResult
    from sftkit.testing import PluginReport


@pytest.fixture
def sftkit_model() -> PreTrainedModel:
    """A fresh model of two layers with random weights: `sftkit.testing.tiny_model`."""
    from sftkit.testing import tiny_model

    return tiny_model()


@pytest.fixture
def sftkit_tokenizer() -> PreTrainedTokenizerBase:
    """A fresh tokenizer for it, with a chat template: `sftkit.testing.tiny_tokenizer`."""
    from sftkit.testing import CHATML, tiny_tokenizer

    return tiny_tokenizer(chat_template=CHATML)


@pytest.fixture
def sftkit_rows() -> Callable[..., list[dict[str, Any]]]:
    """Small rows of a format, as in ``sftkit_rows("messages", rows=4)``: `sftkit.testing.sample_rows`."""
    from sftkit.testing import sample_rows

    return sample_rows


@pytest.fixture
def sftkit_check() -> Callable[..., PluginReport]:
    """Makes every check that applies to a plugin: `sftkit.testing.check_plugin`."""
    from sftkit.testing import check_plugin

    return check_plugin


@pytest.fixture
def sftkit_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunResult]:
    """Trains two steps with plugins, as in ``sftkit_run(Noise(), rows=rows)``, and returns the `RunResult`.

    Rows are those of the format ``messages`` unless given. Further arguments are those of `Pipeline`; fields of
    ``train`` are added to those of the two steps. Runs are in ``tmp_path``, with the cache of their data.
    """
    from sftkit.testing.training import train_tiny

    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))

    def run(*plugins: str | Plugin, rows: list[dict[str, Any]] | None = None, **arguments: Any) -> RunResult:
        return train_tiny(tmp_path, plugins, rows, **arguments)

    return run
