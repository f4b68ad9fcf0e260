"""Axolotl's ``datasets``: sources, formats, templates, and what is trained."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sftkit_commands.init.axolotl import DATASET_RULES
from sftkit_commands.init.axolotl_prompts import USER_FIELDS, formatting_module, known_prompt
from sftkit_commands.init.local import Places
from sftkit_commands.init.mixing import ROLE_NAMES, combine, fraction
from sftkit_commands.init.translation import Translation

MODULE = "sft_prompts"
_TRAINED_KEYS = ("train", "training", "loss")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value", "text", "message")
_TEMPLATE_FIX = (
    "its own template is used; to use another one, save it as FILE.jinja and set plugin chatml: {template: FILE.jinja}"
)
_READERS = ("json", "csv", "text", "parquet", "arrow")
TEMPLATES = {"chatml": "chatml", "llama3": "llama3"}
ALL_ROLES = ["system", "developer", "user", "assistant", "tool"]


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


def data(t: Translation, places: Places) -> None:
    """Training and evaluation data, and their format."""
    streamed = entries(t, "pretraining_dataset")
    train = entries(t, "datasets") or streamed
    if train and train == streamed:
        t.put("data.streaming", True, "pretraining_dataset")
    sources(t, train, places)
    evaluation(t, entries(t, "test_datasets"), train, places)
    kinds = {entry.kind for entry in train}
    if len(kinds) > 1:
        _mixed_kinds(t, train)
    for number, entry in enumerate(train):
        format_of(t, entry, places, first=number == 0)
    conversations = any(_is_chat(entry) for entry in train)
    inputs(t, conversations)
    template(t, train, places, conversations)


def rest(t: Translation) -> None:
    """The keys of the entries that nothing else has taken."""
    for key in ("datasets", "test_datasets", "pretraining_dataset"):
        for entry in entries(t, key):
            t.apply({entry.prefix + name: rule for name, rule in DATASET_RULES.items()})


def _is_chat(entry: Entry) -> bool:
    return entry.kind.split(".")[0] in ("chat_template", "sharegpt", "messages")


def sources(t: Translation, found: list[Entry], places: Places) -> None:
    """Where the rows come from: one source, or several that are used together."""
    names = [_source(t, entry, places) for entry in found]
    if names:
        combine(t, names, [f"{entry.prefix}path" for entry in found], places)
    for option, target in (("name", "data.subset"), ("split", "data.split")):
        keys = [entry.prefix + option for entry in found if t.pending(entry.prefix + option)]
        values = {str(entry.get(option, "")) for entry in found}
        for key in keys:
            if len(values) > 1:
                t.lose(key, "all sources have the same one", f"write this source to a file; {target} is one value")
            elif option == "split" and not re.fullmatch(r"\w+", str(t.get(key, "train"))):
                t.lose(key, "part of a split cannot be read", "write these rows to a file")
            elif option == "split" and t.get(key) == "train":
                t.always(key, "it is the default")
            else:
                t.move(key, target)


def _source(t: Translation, entry: Entry, places: Places) -> str | list[str]:
    """The name of a source; a loader such as ``json`` stands for its files."""
    path, files = str(entry.get("path", "")), entry.get("data_files")
    t.translated(f"{entry.prefix}path", "data.train")
    if files is None:
        return places.name(path)
    t.translated(f"{entry.prefix}data_files", "data.train")
    listed = [files] if isinstance(files, str) else list(files)
    if path not in _READERS:
        base = path if places.find(path) else f"hf://datasets/{path}"
        listed = [f"{base}/{name}" for name in listed]
    named = [places.name(str(name)) for name in listed]
    return named[0] if len(named) == 1 else named


def evaluation(t: Translation, tests: list[Entry], train: list[Entry], places: Places) -> None:
    """Data sets for evaluation, or a part of the training data."""
    if t.pending("val_set_size") and not tests:
        fraction(t, "val_set_size", [str(name) for name in _flat(_named(train, places))], places)
    elif t.pending("val_set_size"):
        t.always("val_set_size", "test_datasets is used" if t.get("val_set_size") else "it is off")
    names = [_source(t, entry, places) for entry in tests]
    for entry in tests:
        key = f"{entry.prefix}split"
        if t.pending(key) and places.find(entry.get("path")):
            t.always(key, "a file that is named is read whatever its split is")
        elif t.pending(key) and t.get(key) in ("test", "validation"):
            t.translated(key, "data.eval", "the validation split is used if there is one, else the test split")
        elif t.pending(key):
            t.lose(key, "as evaluation data, the validation or test split is used", "write these rows to a file")
        for name in [name for name in entry.values if t.pending(entry.prefix + name)]:
            same = any(entry.values[name] == other.values.get(name) for other in train)
            if same and name in DATASET_RULES:
                t.always(entry.prefix + name, "it is the same as for the training data")
            elif name in DATASET_RULES and entry.values[name] is not None and name != "ds_type":
                t.lose(
                    entry.prefix + name, "evaluation data is read like the training data", "convert it to that format"
                )
    flat = _flat(names)
    if flat:
        t.put("data.eval", flat[0] if len(flat) == 1 else flat, "test_datasets")


def _named(found: list[Entry], places: Places) -> list[str | list[str]]:
    files = [entry.get("data_files") or entry.get("path", "") for entry in found]
    return [places.name(name) if isinstance(name, str) else name for name in files]


def _flat(names: list[str | list[str]]) -> list[str]:
    return [name for item in names for name in (item if isinstance(item, list) else [item])]


def _mixed_kinds(t: Translation, found: list[Entry]) -> None:
    """Formats are recognised source by source, so most may differ; those with a function of their own may not."""
    for entry in found[1:]:
        if entry.kind == "user" or known_prompt(entry.kind):
            for key in [name for name in t.given if name.startswith(f"{entry.prefix}type") and t.pending(name)]:
                t.lose(key, "one run has one formatting function", "convert this source, for instance to conversations")


def format_of(t: Translation, entry: Entry, places: Places, first: bool) -> None:
    """The format of one source, as options of the plugin `formats`."""
    kind, key = entry.kind, f"{entry.prefix}type"
    columns = places.columns(entry.get("path") if entry.get("path") not in _READERS else entry.get("data_files"))
    base = kind.split(".")[0].split(":")[0]
    if entry.kind == "user" or known_prompt(kind):
        if first:
            _function(t, entry)
    elif not t.pending(key) and key in t.given:
        return
    elif kind in ("", "alpaca", "input_output"):
        t.translated(key, "plugins.formats", "recognised by its columns")
    elif base in ("completion", "pretrain"):
        field = str(entry.get("field") or entry.get("text_column") or "text")
        _text(t, entry, field, columns)
    elif _is_chat(entry):
        t.translated(key, "plugins.formats", "recognised by its columns")
        _chat(t, entry)
    else:
        t.lose(key, f"sftkit has no format {kind!r}", "write a function: formats: {formatting: MODULE:FUNCTION}")


def _text(t: Translation, entry: Entry, field: str, columns: dict[str, Any]) -> None:
    note = "a text longer than max_length is not divided into several; data.truncation applies"
    t.translated(f"{entry.prefix}type", "plugins.formats", note)
    for name in ("field", "text_column"):
        t.translated(entry.prefix + name, "plugins.formats.text_column")
    if field != "text":
        t.select("formats", text_column=field)
    elif set(columns) - {"text"}:
        t.select("formats", columns={"text": "text"})


def _function(t: Translation, entry: Entry) -> None:
    """A prompt that Axolotl builds of format strings, as a formatting function in a file."""
    prompt = known_prompt(entry.kind) or USER_FIELDS | {
        key[5:]: value for key, value in entry.values.items() if key.startswith("type.") and value is not None
    }
    t.files[f"{MODULE}.py"] = formatting_module(prompt, bool(t.get("train_on_inputs")))
    t.select("formats", formatting=f"{MODULE}:format_row")
    for key in [name for name in t.given if name.startswith(f"{entry.prefix}type") and t.pending(name)]:
        t.translated(key, "plugins.formats.formatting", f"the function is in {MODULE}.py")


def _chat(t: Translation, entry: Entry) -> None:
    """Conversations: their column, the names in their messages, and whose turns are trained."""
    prefix, columns = entry.prefix, {}
    legacy = entry.kind.startswith("sharegpt")
    field = str(entry.get("field_messages") or entry.get("field") or ("conversations" if legacy else "messages"))
    known = ("messages", "conversations", "conversation")
    if field not in known:
        columns["messages"] = field
    for name in ("field_messages", "field"):
        t.translated(prefix + name, "plugins.formats.columns" if columns else "plugins.formats")
    for name, column in (("field_tools", "tools"), ("field_thinking", "reasoning_content")):
        if entry.get(name) and entry.get(name) != column and name == "field_tools":
            columns[column] = str(entry.get(name))
            t.translated(prefix + name, "plugins.formats.columns")
        elif entry.get(name) in (column, "reasoning", "thinking"):
            t.always(prefix + name, "it is recognised by its name")
        elif entry.get(name):
            t.lose(prefix + name, "reasoning has another name in the data", f"rename it to {column}")
    if columns:
        t.select("formats", columns=columns)
    _names(t, entry)
    _turns(t, entry)


def _names(t: Translation, entry: Entry) -> None:
    """The names of keys and roles inside messages, which are recognised and cannot be set."""
    fix = "rename it in the data"
    mapping = entry.get("message_property_mappings", {})
    unusual = {k: v for k, v in mapping.items() if v != k and v not in (*_ROLE_KEYS, *_CONTENT_KEYS)}
    if unusual:
        t.lose(f"{entry.prefix}message_property_mappings", f"unknown key {', '.join(map(str, unusual.values()))}", fix)
    else:
        t.always(f"{entry.prefix}message_property_mappings", "these names are recognised")
    for name, known in (("role", _ROLE_KEYS), ("content", _CONTENT_KEYS), ("training", _TRAINED_KEYS)):
        key = f"{entry.prefix}message_field_{name}"
        if t.get(key, known[0]) in known:
            t.always(key, "this name is recognised")
        else:
            t.lose(key, "messages have another key", f"rename it to {known[0]}")
    key = f"{entry.prefix}message_field_training_detail"
    if t.get(key, "train_detail") == "train_detail":
        t.always(key, "this name is recognised")
    else:
        t.lose(key, "messages have another key", "rename it to train_detail")
    roles = entry.get("roles", {})
    strange = [name for role, names in roles.items() for name in names if ROLE_NAMES.get(str(name).lower()) != role]
    if strange:
        t.lose(f"{entry.prefix}roles", f"{', '.join(map(str, strange))} is no name of this role", fix)
    else:
        t.always(f"{entry.prefix}roles", "these names are recognised")


def _turns(t: Translation, entry: Entry) -> None:
    """Whose turns are trained, and their closing tokens."""
    key, roles = f"{entry.prefix}roles_to_train", entry.get("roles_to_train")
    named = [ROLE_NAMES.get(str(role).lower(), "") for role in roles or []]
    if roles == []:
        t.lose(key, "a run trains at least one role", "name the roles in formats: {roles: [...]}")
    elif "" in named:
        t.lose(key, f"unknown role in {roles}", "formats: {roles: [...]}, of system, developer, user, assistant, tool")
    elif roles and named != ["assistant"]:
        t.select("formats", roles=list(dict.fromkeys(named)))
        t.translated(key, "plugins.formats.roles")
    else:
        t.always(key, "assistant is the default")
    for name in ("train_on_eos", "train_on_eot"):
        if entry.get(name, "turn") == "turn":
            t.always(entry.prefix + name, "the token that closes a trained turn is trained")
        else:
            t.lose(entry.prefix + name, "the token that closes a trained turn, and no other, is always trained")


def inputs(t: Translation, conversations: bool) -> None:
    """Whether prompts are trained too."""
    if not t.get("train_on_inputs"):
        t.always("train_on_inputs", "prompts are not trained by default")
    elif "formatting" in (t.value("plugins.formats") or {}):
        t.translated("train_on_inputs", "plugins.formats.formatting", "all of the text is marked as trained")
    elif conversations:
        t.select("formats", roles=ALL_ROLES)
        t.translated("train_on_inputs", "plugins.formats.roles", "the headers of turns are not trained, as in Axolotl")
    else:
        t.select("formats", loss="all")
        t.translated("train_on_inputs", "plugins.formats.loss")


def template(t: Translation, train: list[Entry], places: Places, conversations: bool) -> None:
    """The chat template of the run, or that of its only source."""
    keys = [
        "chat_template",
        *(f"{entry.prefix}{name}" for entry in train for name in ("chat_template", "conversation")),
    ]
    jinja = ["chat_template_jinja", *(f"{entry.prefix}chat_template_jinja" for entry in train)]
    for key in jinja:
        if t.get(key) and not t.selected("chatml"):
            _jinja(t, key, places)
        elif t.pending(key):
            t.always(key, "the run has a template already" if t.get(key) else "it is empty")
    for key in [key for key in keys if t.pending(key)]:
        name = str(t.get(key, ""))
        if not conversations:
            t.always(key, "the data is not rendered with a chat template")
        elif name == "jinja" and t.selected("chatml"):
            t.translated(key, "plugins.chatml.template")
        elif name in TEMPLATES and not t.selected("chatml"):
            t.select("chatml", template=TEMPLATES[name])
            t.translated(key, "plugins.chatml.template")
        elif name in TEMPLATES and t.value("plugins.chatml.template") == TEMPLATES[name]:
            t.always(key, "it is the template of the run")
        elif name in ("", "tokenizer_default"):
            t.always(key, "the tokenizer's own template is used")
        elif name.startswith("tokenizer_default_fallback_") and name[27:] in TEMPLATES:
            t.lose(key, "the tokenizer's own template is used", f"if it has none: -p chatml:template={name[27:]}")
        else:
            t.lose(key, "the tokenizer has a template of its own", _TEMPLATE_FIX)


def _jinja(t: Translation, key: str, places: Places) -> None:
    """A template in a file, or in place: then it is written to a file."""
    value = str(t.get(key))
    if value.endswith((".jinja", ".jinja2")) or places.find(value):
        t.select("chatml", template=places.name(value))
        t.translated(key, "plugins.chatml.template")
    else:
        t.files["template.jinja"] = value
        t.select("chatml", template="template.jinja")
        t.translated(key, "plugins.chatml.template", "the template is in template.jinja")
