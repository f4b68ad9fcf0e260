"""Several sources of data as one, data held out of them, and the names of roles that sftkit recognises."""

from __future__ import annotations

from typing import Any

from sftkit_commands.init.local import Places
from sftkit_commands.init.translation import Translation

#: The names of roles that the plugin formats recognises, for tools whose names can be configured.
ROLE_NAMES: dict[str, str] = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "chatbot", "ai"), "assistant"
    ),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "assistant"),
    **dict.fromkeys(("tool", "observation", "ipython", "function", "environment", "tool_response"), "tool"),
    **dict.fromkeys(("tool_result", "tool_results", "function_response", "function_result"), "tool"),
}


def combine(t: Translation, names: list[str | list[str]], keys: list[str], places: Places) -> None:
    """Train on all rows of all sources, as the tools that join their sources do.

    Files of the same kind with the same columns are a list. Other sources are mixed with their numbers of rows as
    weights, so that each row is used once in an epoch.
    """
    flat = [name for item in names for name in (item if isinstance(item, list) else [item])]
    source = keys[0]
    if len(flat) == 1:
        t.put("data.train", flat[0], source)
        return
    kinds = {(name.rsplit(".", 1)[-1], tuple(sorted(places.columns(name)))) for name in flat}
    if len(set(flat)) == len(flat) and len(kinds) == 1 and all(places.columns(name) for name in flat):
        t.put("data.train", flat, source)
        return
    weights: dict[str, Any] = {}
    for name in flat:
        weights[name] = weights.get(name, 0) + (places.count(name) or 1)
    if len(weights) == 1:
        t.put("data.train", flat[0], source)
        for key in keys[1:]:
            t.demote(key, "it is the same source again", "train.num_train_epochs is the number of passes over it")
        return
    t.put("data.mix", weights, source)
    t.put("data.mix_until", "all", source)
    unknown = [name for name in weights if not places.count(name)]
    note = "the weights are numbers of rows, so that each is used once"
    if unknown:
        note = f"set the weight of {', '.join(unknown)} to its number of rows, so that each is used once"
    for key in keys:
        t.entries.pop(key, None)
        t.translated(key, "data.mix", note)


def fraction(t: Translation, key: str, names: list[str], places: Places) -> None:
    """Data held out of the training data: a fraction, or a number of rows."""
    value = float(t.get(key, 0))
    total = sum(places.count(name) for name in names)
    if value <= 0:
        t.always(key, "nothing is held out")
    elif value < 1:
        t.move(key, "data.eval", value)
    elif total > value:
        t.move(key, "data.eval", round(value / total, 6), f"{value:.0f} of {total:,} rows")
    else:
        t.lose(
            key, "data.eval is a fraction of the rows", f"divide {value:.0f} by the number of rows, and set data.eval"
        )
