"""What is done before training, so that nothing fails after it: layers are tried, rows to calibrate on are drawn."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sftkit.api import ConfigError, Problem
from sftkit_plugins.gptq.export import ROWS, folder, work


class Calibration(TrainerCallback):
    """Tries the model's layers and writes the rows to calibrate on beside where the quantized model will be.

    Args:
        settings: the arguments of optimum's quantizer.
        rows: how many documents.
        max_length: tokens of a document, at most.
        trust_remote_code: whether the model's own code may be run.
    """

    def __init__(self, settings: dict[str, Any], rows: int, max_length: int, trust_remote_code: bool) -> None:
        self.settings, self.rows, self.max_length = settings, rows, max_length
        self.trust_remote_code = trust_remote_code

    def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Refuses a model or data that could not be quantized or calibrated on.

        Raises:
            ConfigError: if a layer cannot be quantized, the adapter cannot be merged, or there are too few documents.
        """
        if not state.is_world_process_zero:
            return
        drawn = draw(trainer["train_dataloader"].dataset, self.rows, self.max_length, args.seed)
        directory = folder(Path(args.output_dir))
        directory.mkdir(parents=True, exist_ok=True)
        told = {"settings": self.settings, "trust_remote_code": self.trust_remote_code, "rows": drawn}
        (directory / ROWS).write_text(json.dumps(told), encoding="utf-8")
        check_layers(trainer["model"], directory)


def check_layers(model: Any, directory: Path) -> None:
    """Refuse a model with layers that cannot be quantized, by its configuration alone.

    Raises:
        ConfigError: with every such layer, or if the adapter cannot be merged into the model.
    """
    if hasattr(model, "peft_config") and not hasattr(model, "merge_and_unload"):
        what = "this adapter cannot be merged into the model that is to be quantized"
        raise ConfigError(Problem(what, "plugin gptq", "use method lora, or drop plugin gptq"))
    model.config.save_pretrained(directory)
    found = work("check", directory, directory)
    problems = [Problem(item["what"], "plugin gptq", item["mend"]) for item in json.loads(found.splitlines()[-1])]
    if problems:
        raise ConfigError(problems)


def draw(dataset: Any, rows: int, max_length: int, seed: int) -> list[list[int]]:
    """The ids of ``rows`` documents, drawn at random; the first ones of a stream. A packed row holds several.

    Raises:
        ConfigError: if there are fewer.
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
    what = f"the training data has {len(found)} documents, and {rows} are wanted to calibrate on"
    raise ConfigError(Problem(what, "plugin gptq, option rows", f"set rows={len(found)} or lower"))


def documents(example: dict[str, Any]) -> Iterator[list[int]]:
    """The ids of an example, or of each of the documents that are packed in it: positions restart at each."""
    ids = list(map(int, example["input_ids"]))
    positions = example.get("position_ids")
    starts = [0] if positions is None else [at for at, position in enumerate(positions) if int(position) == 0]
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        yield ids[start:end]
