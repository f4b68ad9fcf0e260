"""What happens before training, so that nothing fails after it: layers are checked, calibration documents drawn."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sftkit.api import ConfigError, Problem, has_adapter
from sftkit_plugins.gptq.export import ROWS, folder, work


class Calibration(TrainerCallback):
    """Checks the model's layers, and writes the calibration documents into the folder of the quantized model.

    Args:
        settings: the arguments of optimum's quantizer.
        rows: number of documents.
        max_length: maximum number of tokens of a document.
        trust_remote_code: whether the model's own code may run.
    """

    def __init__(self, settings: dict[str, Any], rows: int, max_length: int, trust_remote_code: bool) -> None:
        self.settings, self.rows, self.max_length = settings, rows, max_length
        self.trust_remote_code = trust_remote_code

    def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Refuses a model that cannot be quantized, and data that cannot be used for calibration.

        Raises:
            ConfigError: if a layer cannot be quantized, the adapter cannot be merged, or there are too few documents.
        """
        if not state.is_world_process_zero:
            return
        drawn = draw(trainer["train_dataloader"].dataset, self.rows, self.max_length, args.seed)
        directory = folder(Path(args.output_dir))
        directory.mkdir(parents=True, exist_ok=True)
        task = {"settings": self.settings, "trust_remote_code": self.trust_remote_code, "rows": drawn}
        (directory / ROWS).write_text(json.dumps(task), encoding="utf-8")
        check_layers(trainer["model"], directory)


def check_layers(model: Any, directory: Path) -> None:
    """Refuse a model with layers that cannot be quantized, from its configuration alone.

    Raises:
        ConfigError: with every such layer, or if the adapter cannot be merged into the model.
    """
    if has_adapter(model) and not hasattr(model, "merge_and_unload"):
        what = "the adapter cannot be merged into the model, which is needed to quantize it"
        raise ConfigError(Problem(what, "plugin gptq", "use method lora, or drop plugin gptq"))
    model.config.save_pretrained(directory)
    found = work("check", directory, directory)
    problems = [Problem(item["what"], "plugin gptq", item["fix"]) for item in json.loads(found.splitlines()[-1])]
    if problems:
        raise ConfigError(problems)


def draw(dataset: Any, rows: int, max_length: int, seed: int) -> list[list[int]]:
    """The ids of ``rows`` documents, drawn at random, or the first ones of a stream. A packed row holds several.

    Raises:
        ConfigError: if there are too few.
    """
    if hasattr(dataset, "__len__"):
        order = random.Random(seed).sample(range(len(dataset)), len(dataset))
        examples: Iterable[dict[str, Any]] = (dataset[index] for index in order)
    else:
        examples = iter(dataset)
    found: list[list[int]] = []
    for example in examples:
        found += [document[:max_length] for document in documents(example)]
        if len(found) >= rows:
            return found[:rows]
    what = f"the training data has {len(found)} documents, but calibration needs {rows}"
    raise ConfigError(Problem(what, "plugin gptq, option rows", f"set rows to at most {len(found)}"))


def documents(example: dict[str, Any]) -> Iterator[list[int]]:
    """The ids of an example, or of each document packed in it: positions restart at 0 in each."""
    ids = list(map(int, example["input_ids"]))
    positions = example.get("position_ids")
    starts = [0] if positions is None else [at for at, position in enumerate(positions) if int(position) == 0]
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        yield ids[start:end]
