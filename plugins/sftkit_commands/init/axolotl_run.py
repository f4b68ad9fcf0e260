"""The translation of a configuration of Axolotl."""

from __future__ import annotations

import re
from typing import Any

from sftkit_commands.init import axolotl, axolotl_data, axolotl_model, axolotl_training, hf, techniques
from sftkit_commands.init.axolotl import INSIDE, RULES
from sftkit_commands.init.axolotl_dataset import DATASET_RULES
from sftkit_commands.init.local import Places
from sftkit_commands.init.nested import flatten
from sftkit_commands.init.translation import Lost, Translation


def translate(values: dict[str, Any], places: Places) -> Translation:
    """The translation of a configuration of Axolotl."""
    t = Translation(axolotl.NAME, flatten(values, INSIDE))
    t.blank({*RULES, *(f"[].{name}" for name in DATASET_RULES)})
    axolotl_model.model(t, places)
    axolotl_data.data(t, places)
    length(t)
    axolotl_model.adapter(t)
    axolotl_model.precision(t)
    axolotl_model.memory(t)
    axolotl_model.kernels(t)
    axolotl_training.batches(t)
    axolotl_training.schedule(t)
    axolotl_training.saving(t)
    axolotl_training.evaluating(t)
    axolotl_training.trackers(t)
    axolotl_training.processes(t, places)
    axolotl_model.tokens(t)
    techniques.lora_plus(t, str(t.get("adapter")), "lora_embedding_")
    techniques.unfrozen(t)
    techniques.lisa(t)
    hf.positive(t, "neftune_noise_alpha", "neftune", "alpha", "the noise is scaled by the length of each document")
    hf.positive(t, "noisy_embedding_alpha", "neftune", "alpha", "the noise is scaled by the length of each document")
    axolotl_data.rest(t)
    t.apply(RULES)
    t.apply({key: Lost("plugins of Axolotl cannot be used") for key in t.given if re.fullmatch(r"plugins\[\d+\]", key)})
    axolotl_training.defaults(t)
    hf.prune(t)
    return t.finish()


def length(t: Translation) -> None:
    """Rows that are too long: Axolotl drops them unless the file says otherwise."""
    strategies = {"drop": "drop", "truncate": "keep_start", "raise": "error"}
    if "sequence_len" not in t.given:
        t.default("data.max_length", 512)
    if t.get("excess_length_strategy") in strategies:
        t.move("excess_length_strategy", "data.truncation", strategies[t.get("excess_length_strategy")])
    elif t.pending("excess_length_strategy"):
        t.lose("excess_length_strategy", "unknown value", "set data.truncation to keep_start, drop or error")
    t.default("data.truncation", "drop")
