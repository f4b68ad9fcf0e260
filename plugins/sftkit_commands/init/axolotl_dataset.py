"""The entries of Axolotl's ``datasets``: their keys, and what each becomes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sftkit_commands.init.translation import Always, Handled, Lost, Rule, Translation

READERS = ("json", "csv", "text", "parquet", "arrow")  # loaders of `datasets` that stand for files
_ORIGIN = Lost("the data is read as it is", "write what should be read to a file of its own")

#: The keys of an entry of ``datasets`` and ``test_datasets``.
DATASET_RULES: dict[str, Rule] = {
    "path": Handled("data.train, or data.mix"),
    "data_files": Handled("data.train"),
    "name": Handled("data.subset"),
    "split": Handled("data.split"),
    "ds_type": Always("the kind of a file follows from its name"),
    "type": Handled("plugin formats"),
    "field": Handled("plugin formats, text_column or columns"),
    "field_messages": Handled("plugin formats, columns"),
    "field_tools": Handled("plugin formats, columns"),
    "field_thinking": Handled("plugin formats, columns"),
    "template_thinking_key": Always("reasoning is passed under the name that the template reads"),
    "split_thinking": Always("a <think> block at the start of an answer is always split off"),
    "message_property_mappings": Handled("nothing: the usual names of roles and contents are recognised"),
    "message_field_role": Handled("nothing: the usual names are recognised"),
    "message_field_content": Handled("nothing: the usual names are recognised"),
    "message_field_training": Handled("nothing: the usual names are recognised"),
    "message_field_training_detail": Handled("nothing: train_detail is recognised"),
    "roles": Handled("nothing: the usual names of roles are recognised"),
    "roles_to_train": Handled("plugin formats, roles"),
    "train_on_eos": Handled("nothing: the token that closes a trained turn is trained"),
    "train_on_eot": Handled("nothing: the token that closes a trained turn is trained"),
    "chat_template": Handled("plugin chatml"),
    "chat_template_jinja": Handled("plugin chatml, template"),
    "conversation": Handled("plugin chatml"),
    "drop_system_message": Lost("system messages are kept", "remove them from the data"),
    "trust_remote_code": Lost("data sets with code are not loaded", "use one in a standard format"),
    "revision": Lost(
        "data of the hub is read from its main branch", "hf://datasets/OWNER/NAME@REVISION/FILE as data.train"
    ),
    "skip": _ORIGIN,
    **dict.fromkeys(("shards", "shards_idx", "preprocess_shards", "input_transform", "input_format"), _ORIGIN),
    "text_column": Handled("plugin formats, text_column"),
    **{
        f"type.{name}": Handled("a formatting function in a file of its own")
        for name in (
            "system_prompt",
            "system_format",
            "field_system",
            "field_instruction",
            "field_input",
            "field_output",
            "format",
            "no_input_format",
        )
    },
}


@dataclass(frozen=True)
class Entry:
    """One entry of ``datasets``: where its keys begin, and its values."""

    prefix: str
    values: dict[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """A value; the default if it is missing or null."""
        value = self.values.get(name)
        return default if value is None else value

    @property
    def kind(self) -> str:
        """The format: a name, ``user`` for one that is defined in place, or empty for tokenized rows."""
        return "user" if any(key.startswith("type.") for key in self.values) else str(self.get("type", ""))


def entries(t: Translation, key: str) -> list[Entry]:
    """The entries of a list of data sets, in order."""
    prefixes = list(dict.fromkeys(m[0] for name in t.given if (m := re.match(rf"{key}\[\d+\]\.", name))))
    return [Entry(prefix, t.below(prefix)) for prefix in prefixes]
