"""Which layers of a model are divided, by the plan in its configuration, and what does not allow it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sftkit.api import Problem

#: The rules of a plan that are applied, by what becomes of a linear layer; transformers renamed some.
COLUMNS, COLUMNS_GATHERED = "columns", "columns, then gathered"
ROWS, ROWS_OF_WHOLE = "rows", "rows of a whole input"
OF_HEADS = "whole, for the heads of each process"
RULES = {
    "colwise": COLUMNS,
    "colwise_rep": COLUMNS_GATHERED,
    "colwise_gather_output": COLUMNS_GATHERED,
    "rowwise": ROWS,
    "rowwise_rep": ROWS_OF_WHOLE,
    "rowwise_split_input": ROWS_OF_WHOLE,
    "replicated_with_grad_allreduce": OF_HEADS,
}
#: Rules of the embeddings, which are always divided by tokens.
EMBEDDINGS = ("embedding_rowwise", "embedding_colwise")
WHERE = "plugin tensor_parallel"
OTHER_WAY = "use a plugin that shards the model in another way, or a model with such a plan"


def plan_of(config: Any) -> dict[str, str]:
    """The rules of a model by the names of its decoder's modules, in which ``*`` is the number of a layer.

    Args:
        config: the model's configuration.
    """
    return {
        name: style
        for name, style in (getattr(config, "base_model_tp_plan", None) or {}).items()
        if style not in EMBEDDINGS
    }


def rule_of(plan: Mapping[str, str], name: str) -> str:
    """The rule of a module of the decoder; empty if it has none."""
    return RULES.get(plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name), ""), "")


def plan_problems(config: Any, size: int) -> Iterator[Problem]:
    """Why a model cannot be divided among this number of processes.

    Args:
        config: the model's configuration.
        size: the number of processes.
    """
    kind = getattr(config, "model_type", type(config).__name__)
    if config.get_text_config() is not config:
        what = f"model type {kind} has a part for other inputs than text, which no plan covers"
        yield Problem(what, WHERE, "use a plugin that shards the model in another way")
        return
    plan = plan_of(config)
    if not plan:
        yield Problem(f"transformers has no tensor-parallel plan for model type {kind}", WHERE, OTHER_WAY)
        return
    if unknown := sorted(set(plan.values()) - set(RULES)):
        what = f"the plan of model type {kind} has rules for layers that are not linear: {', '.join(unknown)}"
        yield Problem(what, WHERE, OTHER_WAY)
    whole = not any(RULES.get(rule) == COLUMNS for rule in plan.values())
    names = ("intermediate_size",) if whole else ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    for name in names:
        number = getattr(config, name, None)
        numbers = number if isinstance(number, list) else [number]
        if wrong := [each for each in numbers if isinstance(each, int) and each % size]:
            what = f"{wrong[0]} {WORDS[name]} cannot be divided among {size} processes"
            yield Problem(what, f"{WHERE}, option size", f"set a size that divides {wrong[0]}")


WORDS = {
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key and value heads",
    "intermediate_size": "units of the MLP (intermediate_size)",
}
