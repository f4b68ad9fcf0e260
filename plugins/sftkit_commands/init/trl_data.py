"""The data of TRL's scripts, their templates, and the collator that trains on completions."""

from __future__ import annotations

import re
from typing import Any

from sftkit_commands.init.local import Places
from sftkit_commands.init.mixing import combine
from sftkit_commands.init.translation import Translation
from sftkit_commands.init.trl import DATASET_RULES

_READERS = ("json", "csv", "text", "parquet", "arrow")
_CHANGED = "the script changes the rows"
_CHANGED_FIX = (
    "write the changed rows to a file (to_json), or a formatting function: formats: {formatting: MODULE:FUNCTION}"
)


def data(t: Translation, places: Places) -> None:
    """Where the rows come from, and those for evaluation."""
    mixture = list(dict.fromkeys(m[0] for key in t.given if (m := re.match(r"datasets\[\d+\]\.", key))))
    if mixture:
        combine(t, [_mixed(t, prefix, places) for prefix in mixture], [f"{prefix}path" for prefix in mixture], places)
        t.always("dataset_name", "datasets is used")
    elif t.get("dataset_name") or t.get("data_files"):
        name = _source(t, "", places)
        t.put("data.train", name, "dataset_name")
    for prefix in mixture:
        t.apply({prefix + key: rule for key, rule in DATASET_RULES.items()}, "it has no effect here")
    _split(t)
    _evaluation(t, places)
    _changes(t)
    _text(t, places)
    template(t, places)
    if t.pending("dataset_kwargs.add_special_tokens") and t.get("dataset_kwargs.add_special_tokens") is False:
        t.move("dataset_kwargs.add_special_tokens", "data.special_tokens", "none")
    elif t.pending("dataset_kwargs.add_special_tokens"):
        t.always("dataset_kwargs.add_special_tokens", "it is the default")


def first_file(t: Translation) -> Any:
    """The first file of the training data, if it is one."""
    name = t.value("data.train") or next(iter(t.value("data.mix") or {}), None)
    return name[0] if isinstance(name, list) else name


def _source(t: Translation, prefix: str, places: Places) -> Any:
    """The name of a data set; a loader such as ``json`` stands for its files."""
    path, files = str(t.get(f"{prefix}dataset_name", "")), t.get(f"{prefix}data_files")
    target = "data.eval" if prefix == "eval." else "data.train"
    t.translated(f"{prefix}dataset_name", target)
    if t.pending(f"{prefix}data_dir"):
        t.translated(f"{prefix}data_dir", target)
        path = f"{path}/{t.get(f'{prefix}data_dir')}"
        path = path if places.find(path) else f"hf://datasets/{path}"
    if files is None:
        return places.name(path)
    t.translated(f"{prefix}data_files", target)
    if isinstance(files, dict):
        part = str(t.get(f"{prefix}dataset_train_split", "train"))
        if not prefix and (
            test := next((files[name] for name in ("test", "validation", "eval") if name in files), None)
        ):
            t.put("data.eval", _named(test, path, places), "data_files")
        files = files.get(part) or next(iter(files.values()))
    return _named(files, path, places)


def _named(files: Any, path: str, places: Places) -> Any:
    listed = [str(name) for name in (files if isinstance(files, list) else [files])]
    if path not in _READERS:
        listed = [f"{path if places.find(path) else f'hf://datasets/{path}'}/{name}" for name in listed]
    named = [places.name(name) for name in listed]
    return named[0] if len(named) == 1 else named


def _mixed(t: Translation, prefix: str, places: Places) -> str | list[str]:
    path, files = str(t.get(f"{prefix}path", "")), t.get(f"{prefix}data_files")
    t.translated(f"{prefix}path", "data.mix")
    for key, target, usual in ((f"{prefix}name", "data.subset", None), (f"{prefix}split", "data.split", "train")):
        value = t.get(key)
        if t.pending(key) and value == usual:
            t.always(key, "it is the default")
        elif t.pending(key) and t.value(target) in (None, value):
            t.move(key, target)
        elif t.pending(key):
            t.lose(key, "all sources have the same one", "write these rows to a file")
    if t.pending(f"{prefix}data_dir"):
        t.lose(f"{prefix}data_dir", "a data set is named by its path", "hf://datasets/OWNER/NAME/FOLDER/*")
    if files is None:
        return places.name(path)
    t.translated(f"{prefix}data_files", "data.mix")
    named: str | list[str] = _named(files if not isinstance(files, dict) else next(iter(files.values())), path, places)
    return named


def _split(t: Translation) -> None:
    key, split = "dataset_train_split", str(t.get("dataset_train_split", "train"))
    if split == "train":
        t.always(key, "it is the default")
    elif re.fullmatch(r"\w+", split):
        t.move(key, "data.split")
    else:
        t.lose(key, "part of a split cannot be read", "write these rows to a file")


def _evaluation(t: Translation, places: Places) -> None:
    strategy = t.get("eval_strategy", t.get("evaluation_strategy", "no"))
    evaluates = strategy not in ("no", False)
    if t.get("test_split_size"):
        size = float(t.get("test_split_size"))
        if size < 1:
            t.move("test_split_size", "data.eval", size)
        else:
            t.lose("test_split_size", "data.eval is a fraction of the rows", "divide it by the number of rows")
    if t.get("eval.dataset_name") or t.get("eval.data_files"):
        same = t.get("eval.dataset_name") == t.get("dataset_name") and t.get("eval.data_files") == t.get("data_files")
        name = _source(t, "eval.", places)
        if not (same and t.has("data.eval")):
            t.put("data.eval", name, "eval_dataset")
    if t.pending("dataset_test_split") and evaluates and not t.has("data.eval"):
        t.translated(
            "dataset_test_split", "data.eval", "the validation split is used if there is one, else the test split"
        )
    if (
        evaluates
        and not t.has("data.eval")
        and t.get("dataset_name")
        and not any(key.startswith("datasets[") for key in t.given)
    ):
        t.put("data.eval", t.value("data.train"), "dataset_name")
    for key in ("dataset_test_split", "eval.dataset_train_split", "eval.dataset_config", "eval.dataset_streaming"):
        if t.pending(key):
            t.always(key, "the evaluation data is the validation or test split, or a file of its own")


def _changes(t: Translation) -> None:
    for key in [key for key in t.given if re.match(r"(eval\.)?dataset\.", key)]:
        t.demote(key, _CHANGED, _CHANGED_FIX)
    for key in [key for key in ("train_dataset", "eval_dataset") if key in t.given]:
        t.demote(
            key, "the script makes the rows itself", "write them to a file (to_json), and set data." + key.split("_")[0]
        )


def _text(t: Translation, places: Places) -> None:
    """The column of plain text, which other formats do not have."""
    key, field = "dataset_text_field", str(t.get("dataset_text_field", "text"))
    columns = places.columns(first_file(t))
    if not t.pending(key):
        return
    if field == "text":
        t.always(key, "the column text is recognised by its name")
    elif columns and field not in columns:
        t.always(key, "the data has no such column, and is recognised by the others")
    else:
        t.move(key, "plugins.formats.text_column")


def template(t: Translation, places: Places) -> None:
    """The chat template: a file, or that of ``setup_chat_format``."""
    path = t.get("chat_template_path")
    if t.pending("chat_template_path") and str(path).endswith((".jinja", ".jinja2", ".j2")):
        t.select("chatml", template=places.name(str(path)))
        t.translated("chat_template_path", "plugins.chatml.template")
    elif t.pending("chat_template_path"):
        t.lose(
            "chat_template_path",
            "the template of another model cannot be named",
            "save it as FILE.jinja, and set plugin chatml: {template: FILE.jinja}",
        )
    if t.pending("chat_format"):
        t.select("chatml")
        t.translated("chat_format", "plugins.chatml")
    if t.pending("eos_token") and t.get("eos_token") == "<|im_end|>" and t.selected("chatml"):
        t.always("eos_token", "the token that ends answers in the template becomes EOS")
    elif t.pending("eos_token"):
        t.lose(
            "eos_token",
            "the tokenizer keeps its own, if it is another one",
            "set it in the tokenizer, save it, and name it in model.tokenizer",
        )


def collator(t: Translation) -> None:
    """`DataCollatorForCompletionOnlyLM`, which finds the answers in a text."""
    known = ("response_template", "instruction_template")
    for name in known:
        key = f"data_collator.{name}"
        if t.pending(key):
            t.select("completion_only")
            t.move(key, f"plugins.completion_only.{name}")
    for key in [key for key in t.given if key.startswith("data_collator.") and t.pending(key)]:
        t.always(key, "the collator has no such choice")
    if "data_collator" in t.given and t.pending("data_collator"):
        t.lose(
            "data_collator",
            "a script's own collator is not part of a configuration",
            "Pipeline(config='sft.yaml', collator=...)",
        )
