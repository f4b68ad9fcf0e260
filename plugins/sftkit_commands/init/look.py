"""What the first rows of the data are, and what the tokenizer makes of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sftkit_commands.init.local import Places

ROWS = 20
_KINDS = {
    "Chat": "conversations: what the assistant writes is trained",
    "Alpaca": "instructions (Alpaca): the output is trained",
    "PromptCompletion": "prompts and completions: the completion is trained",
    "Text": "plain text: all of it is trained",
    "Segments": "segments: those labelled are trained",
    "Tokens": "tokenized rows",
}
_TEMPLATES = {
    "<|im_start|>": "ChatML",
    "<|start_header_id|>": "Llama 3",
    "<start_of_turn>": "Gemma",
    "[INST]": "Mistral",
}
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Seen:
    """What was seen of model and data.

    Attributes:
        lines: for people.
        needs_template: whether conversations have no chat template yet.
        problems: what makes the data unusable.
    """

    lines: tuple[str, ...]
    needs_template: bool = False
    problems: tuple[str, ...] = ()


def look(model: str, data: str, places: Places) -> Seen:
    """Read the first rows of a local file with the tokenizer of the model."""
    from sftkit.api import Pipeline, SftkitError

    rows = list(islice(places.rows(data), ROWS))
    try:
        stages = Pipeline(
            model={"name": model, "init": "random"}, data={"train": data}, train={"max_steps": 1}
        ).stages()
        tokenizer = stages.load_tokenizer().tokenizer
    except SftkitError as error:
        return Seen((f"the model cannot be read here: {error.problems[0].what}",))
    except Exception as error:  # of a hub that cannot be reached
        return Seen((f"the tokenizer cannot be loaded here: {str(error).splitlines()[0]}",))
    template = str(getattr(tokenizer, "chat_template", None) or "")
    named = next((name for mark, name in _TEMPLATES.items() if mark in template), "one of its own")
    lines = [f"chat template of the tokenizer: {named if template else 'none'}"]
    if not rows:
        return Seen((*lines, "the data is read when the run is checked"))
    return _formatted(stages, tokenizer, rows, lines)


def _formatted(stages: Any, tokenizer: Any, rows: list[dict[str, Any]], lines: list[str]) -> Seen:
    from datasets import Dataset

    from sftkit.api import ConfigError, DataError

    lines.append(f"columns: {', '.join(dict.fromkeys(name for row in rows for name in row))}")
    try:
        features = Dataset.from_list(rows).features
        given = {"columns": features, "tokenizer": tokenizer, "processor": None, "config": stages.config}
        formatter = stages.plugins.hook.make_formatter(**given)
        formatter = getattr(formatter, "inner", formatter)
    except ConfigError as error:
        if any(problem.where == "chat template" for problem in error.problems):
            return Seen((*lines, f"data: {_KINDS['Chat']}"), needs_template=True)
        return Seen(tuple(lines), problems=tuple(map(str, error.problems)))
    except DataError as error:
        return Seen(tuple(lines), problems=tuple(map(str, error.problems)))
    except Exception as error:  # of rows whose types differ, which the run reads one by one
        return Seen((*lines, f"the first rows cannot be put into a table: {str(error).splitlines()[0]}"))
    kind = _KINDS.get(type(formatter).__name__, type(formatter).__name__)
    return Seen((*lines, f"data: {kind}"))


def billions(model: str) -> float | None:
    """The number of weights of a model in billions: by the sizes of its files, or by its name; None if unknown."""
    path = Path(model)
    if path.is_dir():
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        return size / 2e9 if size else None  # half precision, as checkpoints are stored
    if match := _SIZE.search(model.replace("_", "-").replace("-", " ")):
        return float(match[1]) / (1000 if match[2].lower() == "m" else 1)
    return None


def method_for(weights: float | None, memory: float) -> str:
    """The method of training that fits into the memory of a GPU in GB: weights, gradients and the optimizer's state."""
    if not memory or weights is None:
        return "full" if weights is not None and weights < 0.2 else "lora"
    if weights * 16 < 0.8 * memory:
        return "full"
    return "lora" if weights * 2.5 < 0.8 * memory else "qlora"


def gpu_memory() -> float:
    """The memory of the first GPU in GB; 0 if there is none."""
    from sftkit.api import has_gpu

    if not has_gpu():
        return 0.0
    import torch

    if not torch.cuda.is_available():
        return 0.0
    return float(round(torch.cuda.get_device_properties(0).total_memory / 1e9))
