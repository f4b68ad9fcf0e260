"""Scaled positions of other tools, as options of the plugin rope_scaling."""

from __future__ import annotations

from typing import Any

from sftkit_commands.init.translation import Translation

TYPES = ("yarn", "linear", "dynamic", "llama3")
#: Its options, as transformers calls them too.
OPTIONS = (
    *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate", "attention_factor"),
    *("low_freq_factor", "high_freq_factor"),
)
TARGET = "plugins.rope_scaling"
INSTEAD = "model.options: {rope_parameters: {...}}"


def by_type(t: Translation, key: str) -> None:
    """The name of a type, for which LLaMA-Factory derives the factor."""
    kind = t.get(key)
    if kind in TYPES:
        t.select("rope_scaling", type=kind)
        t.translated(key, f"{TARGET}.type", "the factor is data.max_length over the model's length, rounded up")
    elif t.pending(key) and not t.get(key):
        t.always(key, "it is empty")
    elif t.pending(key):
        t.lose(key, f"there is no type {kind!r}", INSTEAD)


def by_parameters(t: Translation, key: str, value: Any) -> str:
    """The parameters of the model's configuration, as of Axolotl.

    Returns:
        Why they are not translated; empty if they are.
    """
    if not isinstance(value, dict):
        return "it is no mapping"
    given = dict(value)
    old, kind = given.pop("type", None), given.pop("rope_type", None)
    kind = kind or old
    if kind not in TYPES:
        return f"there is no type {kind!r}"
    if unknown := [name for name in given if name not in OPTIONS]:
        return f"the plugin rope_scaling has no option {unknown[0]}"
    t.select("rope_scaling", type=kind, **given)
    t.sources.setdefault(TARGET, key)
    return ""
