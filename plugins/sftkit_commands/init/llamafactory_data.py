"""LLaMA-Factory's data sets, with their descriptions in ``dataset_info.json``, and templates."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit_commands.init.llamafactory import INFO_RULES
from sftkit_commands.init.local import Places
from sftkit_commands.init.mixing import ROLE_NAMES, combine, fraction
from sftkit_commands.init.translation import Translation

INFO = "dataset_info.json"
_ROLES = {"user": "user", "assistant": "assistant", "observation": "tool", "function": "assistant", "system": "system"}
_TAGS = {"role": ("role", "from"), "content": ("content", "value", "text", "message")}
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_SAME = {"chatml": "chatml", "llama3": "llama3"}
#: Templates that no tokenizer has: the default system message, and how each role is written.
_TURNS = {
    "default": {
        "system": "'System: ' + m.content + eos_token + '\\n'",
        "user": "'Human: ' + m.content + eos_token + '\\nAssistant:'",
        "assistant": "m.content + eos_token + '\\n'",
    },
    "vicuna": {
        "first": "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user\\'s questions.",
        "system": "m.content",
        "user": "'USER: ' + m.content + ' ASSISTANT:'",
        "assistant": "m.content + eos_token",
    },
    "alpaca": {
        "first": "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\\n\\n",
        "system": "m.content",
        "user": "'### Instruction:\\n' + m.content + '\\n\\n### Response:\\n'",
        "assistant": "m.content + eos_token + '\\n\\n'",
    },
}


@dataclass(frozen=True)
class DataSet:
    """One data set of a run: its name, where its description begins among the keys, and the description."""

    name: str
    prefix: str
    values: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the description."""
        value = self.values.get(key)
        return default if value is None else value

    @property
    def columns(self) -> dict[str, str]:
        """The columns by the names that LLaMA-Factory gives them."""
        found = {key[8:]: str(value) for key, value in self.values.items() if key.startswith("columns.") and value}
        if found or self.get("formatting", "alpaca") != "alpaca":
            return found
        return dict(_ALPACA)

    @property
    def chats(self) -> bool:
        """Whether the rows are conversations."""
        return self.get("formatting", "alpaca") in ("sharegpt", "openai")


def names(value: Any) -> list[str]:
    """The names in a list, or in text with commas."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return [str(name) for name in (value if isinstance(value, list) else [value])] if value else []


def read_info(values: Mapping[str, Any], places: Places) -> tuple[dict[str, Any], str]:
    """The descriptions of the data sets that a configuration uses, and the directory of their files."""
    directory = values.get("dataset_dir") or "data"
    if isinstance(directory, dict):
        info, base = directory, "data"
    else:
        directory = str(directory)
        bases = (Path.cwd(), places.source, *list(places.source.resolve().parents)[:3])
        tried = [base / part for base in bases for part in (directory, ".")]
        found = next((path for path in tried if (path / INFO).is_file()), None)
        if found is None:
            return {}, directory
        info, base = json.loads((found / INFO).read_text(encoding="utf-8")), _shown(found, directory)
    if not isinstance(info, dict):
        return {}, base
    used = [*names(values.get("dataset")), *names(values.get("eval_dataset"))]
    return {name: info[name] for name in used if isinstance(info.get(name), dict)}, base


def _shown(found: Path, directory: str) -> str:
    """The directory of the data, relative to the working directory unless the configuration says otherwise."""
    return str(found) if os.path.isabs(directory) else os.path.relpath(found)


def data(t: Translation, places: Places, base: str) -> None:
    """Training and evaluation data, their columns, and how several are put together."""
    train = [_described(t, name) for name in names(t.get("dataset"))]
    tests = [_described(t, name) for name in names(t.get("eval_dataset"))]
    if t.pending("dataset_dir"):
        t.translated("dataset_dir", "data.train")
    files = [_source(t, one, places, base) for one in train]
    unknown = [one.name for one in train if not one.values]
    if train and unknown:
        fix = "write the path or hub name of the data as data.train"
        t.put("data.train", files if len(files) > 1 else files[0], "dataset")
        t.lose("dataset", f"{', '.join(unknown)} is not described in a {INFO} here", fix)
        for key in [key for key in ("mix_strategy", "interleave_probs") if t.pending(key)]:
            t.lose(key, "the sources are not known", "data.mix gives each source its weight")
    elif train:
        t.translated("dataset", "data.train")
        _several(t, train, files, places)
    for key in [key for key in ("mix_strategy", "interleave_probs") if t.pending(key)]:
        t.always(key, "it does nothing without dataset")
    _held_out(t, tests, [_source(t, one, places, base, "data.eval") for one in tests], files, places)
    for one in train:
        _columns(t, one, places, base)
    for one in (*train, *tests):
        _shared(t, one, places)
        rules = {f"{one.prefix}{key}": rule for key, rule in INFO_RULES.items()}
        for key in [key for key in rules if t.pending(key) and one in tests and one not in train]:
            t.always(key, "evaluation data is read like the training data")
        t.apply(rules, "it has no effect on this format")


def _described(t: Translation, name: str) -> DataSet:
    prefix = f"dataset_info.{name}."
    return DataSet(name, prefix, t.below(prefix))


def _source(t: Translation, one: DataSet, places: Places, base: str, target: str = "data.train") -> str:
    for key in ("hf_hub_url", "cloud_file_name", "file_name"):
        if one.get(key):
            if t.pending(one.prefix + key):
                t.translated(one.prefix + key, target)
            for other in [
                other
                for other in ("ms_hub_url", "om_hub_url", "script_url", "file_name")
                if t.pending(one.prefix + other)
            ]:
                t.always(one.prefix + other, f"{key} is used")
            value = str(one.get(key))
            return places.name(str(Path(base) / value)) if key == "file_name" else value
    for key in [key for key in ("ms_hub_url", "om_hub_url") if t.pending(one.prefix + key)]:
        t.lose(
            one.prefix + key, "only the hub of Hugging Face is read", "name a file or a data set there as data.train"
        )
    return one.name


def _several(t: Translation, train: list[DataSet], files: list[str], places: Places) -> None:
    strategy = str(t.get("mix_strategy", "concat"))
    until = {"interleave_under": "first", "interleave_over": "all"}.get(strategy)
    if until is None or len(files) == 1:
        combine(t, list(files), ["dataset"], places)
        if strategy == "interleave_once" and len(files) > 1:
            t.lose("mix_strategy", "sources are joined, and their order is drawn anew in each epoch")
        for key in [key for key in ("mix_strategy", "interleave_probs") if t.pending(key)]:
            t.always(key, "the sources are joined" if len(files) > 1 else "there is one source")
        return
    probabilities = t.get("interleave_probs", [1] * len(files))
    given = names(probabilities) if isinstance(probabilities, str) else probabilities
    weights = [float(value) for value in given]
    t.put("data.mix", dict(zip(files, weights, strict=False)), "dataset")
    t.put("data.mix_until", until, "mix_strategy")
    t.entries.pop("dataset", None)
    t.translated("dataset", "data.mix")
    t.translated("mix_strategy", "data.mix_until", "sources are drawn with their exact shares")
    t.translated("interleave_probs", "data.mix")


def _held_out(t: Translation, tests: list[DataSet], evals: list[str], files: list[str], places: Places) -> None:
    by_name = bool(t.get("eval_on_each_dataset"))
    if tests and by_name and len(evals) > 1:
        t.move("eval_dataset", "data.eval", {one.name: name for one, name in zip(tests, evals, strict=True)})
        t.translated("eval_on_each_dataset", "data.eval")
    elif tests:
        t.move("eval_dataset", "data.eval", evals[0] if len(evals) == 1 else evals)
    if t.pending("eval_on_each_dataset"):
        t.always("eval_on_each_dataset", "there is one set, or it is off")
    if t.pending("val_size") and tests:
        t.always("val_size", "eval_dataset is used")
    elif t.pending("val_size"):
        fraction(t, "val_size", files, places)


def _columns(t: Translation, one: DataSet, places: Places, base: str) -> None:
    """Columns of questions and answers become a conversation, and other names those that are recognised."""
    chosen: dict[str, str] = {}
    columns = one.columns
    seen = places.columns(str(Path(base) / str(one.get("file_name", ""))))
    if one.get("formatting", "alpaca") == "alpaca" and t.get("stage", "sft") == "pt":
        text = columns.get("prompt", "instruction")
        if text != "text":
            t.select("formats", text_column=text)
    elif one.values and not one.chats:
        question, answer = columns.get("prompt"), columns.get("response")
        if question and answer:
            chosen = {"instruction": question, "response": answer}
        if (extra := columns.get("query")) and (not seen or extra in seen):
            chosen["input"] = extra
    else:
        message = columns.get("messages", "conversations")
        if message not in ("messages", "conversations", "conversation"):
            chosen["messages"] = message
    for name in ("system", "tools", "history"):
        if columns.get(name) and columns[name] != name:
            chosen[name] = columns[name]
    if chosen and t.value("plugins.formats.columns") not in (None, chosen):
        t.lose(
            f"{one.prefix}columns.{next(iter(columns))}",
            "all sources have the columns of the first one",
            "rename the columns in the data",
        )
    elif chosen and set(chosen.items()) != {(name, name) for name in chosen}:
        t.select("formats", columns=chosen)
    note = "instruction and input are separated by a blank line, not by a line break" if "input" in chosen else ""
    for name in columns:
        key = f"{one.prefix}columns.{name}"
        if t.pending(key) and name == "images":
            t.select("vision")
            t.translated(key, "plugins.vision")
        elif t.pending(key) and name in ("prompt", "query", "response", "history", "messages", "system", "tools"):
            t.translated(key, "plugins.formats.columns", note if name == "query" else "")


def _shared(t: Translation, one: DataSet, places: Places) -> None:
    """Subset, split, tags and ranking of a data set."""
    for name, target, usual in (("subset", "data.subset", ""), ("split", "data.split", "train")):
        key = one.prefix + name
        if t.pending(key) and one.get(name, usual) == usual:
            t.always(key, "it is the default")
        elif t.pending(key) and t.value(target) in (None, one.get(name)):
            t.move(key, target)
        elif t.pending(key):
            t.lose(key, "all sources have the same one", "write these rows to a file")
    for name, known in _TAGS.items():
        key = f"{one.prefix}tags.{name}_tag"
        if t.pending(key) and one.get(f"tags.{name}_tag", known[0]) in known:
            t.always(key, "this name is recognised")
        elif t.pending(key):
            t.lose(key, "messages have another key", f"rename it to {known[0]} in the data")
    for name, role in _ROLES.items():
        key = f"{one.prefix}tags.{name}_tag"
        if t.pending(key) and ROLE_NAMES.get(str(one.get(f"tags.{name}_tag", name)).lower()) == role:
            t.always(key, "this name is recognised")
        elif t.pending(key):
            t.lose(key, "messages have another role", f"rename it to {name} in the data")
    key = f"{one.prefix}ranking"
    if t.pending(key) and one.get("ranking"):
        t.lose(key, "it is data for training on preferences", "use data with one answer per row")
    elif t.pending(key):
        t.always(key, "it is off")


def template(t: Translation) -> None:
    """The chat template, by the name that LLaMA-Factory gives it."""
    name = t.get("template")
    if name in _SAME:
        t.select("chatml", template=_SAME[name])
        t.translated("template", "plugins.chatml.template")
    elif name in _TURNS:
        t.files["template.jinja"] = template_text(str(name))
        t.select("chatml", template="template.jinja")
        t.translated("template", "plugins.chatml.template", "the template is in template.jinja")
    elif name == "empty":
        t.lose(
            "template",
            "a conversation needs a chat template",
            "plugin formats: {columns: {prompt: ..., completion: ...}}",
        )
    elif t.pending("template"):
        t.translated("template", "model.tokenizer", f"the tokenizer's own template, of which {name} is a copy")
    thinking = t.get("enable_thinking")
    if thinking is not None:
        t.put("data.chat_template_kwargs", {"enable_thinking": thinking}, "enable_thinking")
        t.translated("enable_thinking", "data.chat_template_kwargs", "the chat template must read it")


def template_text(name: str) -> str:
    """One of LLaMA-Factory's templates that no tokenizer has, as Jinja."""
    turns = _TURNS[name]
    first = (
        f"{{% if messages[0].role != 'system' %}}{{{{ '{turns['first']}' }}}}{{% endif %}}" if "first" in turns else ""
    )
    return (
        f"{first}{{% for m in messages %}}{{% if m.role == 'system' %}}{{{{ {turns['system']} }}}}"
        f"{{% elif m.role == 'assistant' %}}{{% generation %}}{{{{ {turns['assistant']} }}}}{{% endgeneration %}}"
        f"{{% else %}}{{{{ {turns['user']} }}}}{{% endif %}}{{% endfor %}}"
    )
