"""The formats of Axolotl's data sets, their templates, and what is trained."""

from __future__ import annotations

from typing import Any

from sftkit_commands.init.axolotl_dataset import READERS, Entry
from sftkit_commands.init.axolotl_prompts import USER_FIELDS, formatting_module, known_prompt
from sftkit_commands.init.local import Places
from sftkit_commands.init.mixing import ROLE_NAMES
from sftkit_commands.init.translation import Translation

MODULE = "sft_prompts"
_TRAINED_KEYS = ("train", "training", "loss")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value", "text", "message")
_TEMPLATE_FIX = (
    "its own template is used; to use another one, save it as FILE.jinja and set plugin chatml: {template: FILE.jinja}"
)
TEMPLATES = {"chatml": "chatml", "llama3": "llama3"}
ALL_ROLES = ["system", "developer", "user", "assistant", "tool"]


def is_chat(entry: Entry) -> bool:
    return entry.kind.split(".")[0] in ("chat_template", "sharegpt", "messages")


def format_of(t: Translation, entry: Entry, places: Places, first: bool) -> None:
    """The format of one source, as options of the plugin `formats`."""
    kind, key = entry.kind, f"{entry.prefix}type"
    columns = places.columns(entry.get("path") if entry.get("path") not in READERS else entry.get("data_files"))
    base = kind.split(".")[0].split(":")[0]
    if entry.kind == "user" or known_prompt(kind):
        if first:
            _function(t, entry)
    elif not t.pending(key) and key in t.given:
        return
    elif kind in ("", "alpaca", "input_output"):
        t.translated(key, "plugins.formats")
    elif base in ("completion", "pretrain"):
        field = str(entry.get("field") or entry.get("text_column") or "text")
        _text(t, entry, field, columns)
    elif is_chat(entry):
        t.translated(key, "plugins.formats")
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
        t.translated(key, f"{MODULE}.py")


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
