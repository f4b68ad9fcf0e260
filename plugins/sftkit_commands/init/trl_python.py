"""The arguments in a Python script for TRL, read from its syntax tree; the script is never run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sftkit_commands.init.translation import Expression

_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
#: Arguments of these calls, and the names under which they are known on the command line.
_LORA = {
    **{name: f"lora_{name}" for name in ("r", "target_modules", "target_parameters", "modules_to_save", "task_type")},
    **{name: name for name in ("lora_alpha", "lora_dropout", "use_rslora", "use_dora")},
}
_QUANTIZED = (
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_storage",
)
_MODEL = (
    "dtype",
    "torch_dtype",
    "attn_implementation",
    "trust_remote_code",
    "use_cache",
    "use_flash_attention_2",
    "load_in_4bit",
    "load_in_8bit",
)
_FOLLOWED = (
    "model",
    "args",
    "train_dataset",
    "eval_dataset",
    "peft_config",
    "tokenizer",
    "processing_class",
    "quantization_config",
)
_ARGUMENTS = ("SFTConfig", "TrainingArguments", "UnslothTrainingArguments")
_CHANGES = ("map", "filter", "select", "remove_columns", "rename_column", "rename_columns", "take", "skip")


@dataclass
class Script:
    """What a script says.

    Attributes:
        values: arguments by the names that they have on a command line.
        old: whether it uses names that only versions of 2024 have.
    """

    values: dict[str, Any] = field(default_factory=dict)
    old: bool = False


def is_script(text: str) -> bool:
    """Whether a text is a Python script that trains with an SFTTrainer."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return any(_called(node) in ("SFTTrainer", *_ARGUMENTS) for node in ast.walk(tree))


def read_script(text: str) -> Script:
    """The arguments of the calls in a script that configure its training."""
    return _Reader(ast.parse(text)).read()


def _called(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    function = node.func
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


class _Reader:
    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.script = Script()
        self.names: dict[str, ast.expr] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, node.value)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                self._assign(node.target, node.value)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.names.setdefault(target.id, value)
        elif isinstance(target, ast.Tuple):
            for part in target.elts:
                if isinstance(part, ast.Name):
                    self.names.setdefault(part.id, value)
        elif isinstance(target, ast.Attribute) and ast.unparse(target.value) == "tokenizer":
            self.script.values[f"tokenizer.{target.attr}"] = Expression(ast.unparse(value))

    def read(self) -> Script:
        readers = {
            **dict.fromkeys(_ARGUMENTS, self._training),
            "SFTTrainer": self._trainer,
            "LoraConfig": self._lora,
            "BitsAndBytesConfig": self._quantized,
            "from_pretrained": self._pretrained,
            "get_peft_model": self._unsloth_adapter,
            "setup_chat_format": self._chat_format,
            "train": self._train,
        }
        for call in [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]:
            if (reader := readers.get(_called(call))) is not None:
                reader(call)
        return self.script

    def _put(self, name: str, node: ast.expr) -> None:
        self.script.values[name] = self._value(node)

    def _value(self, node: ast.expr) -> Any:
        try:
            return self._literal(node, 0)
        except (ValueError, TypeError, KeyError, ZeroDivisionError, RecursionError):
            return Expression(ast.unparse(node))

    def _literal(self, node: ast.expr, depth: int) -> Any:
        if depth > 20:
            raise ValueError("names that refer to each other")
        if isinstance(node, ast.Name):
            return self._literal(self.names[node.id], depth + 1)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("torch", "TaskType", "IntervalStrategy"):
            return node.attr
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            sides = self._literal(node.left, depth + 1), self._literal(node.right, depth + 1)
            return _OPERATIONS[type(node.op)](*sides)
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.FormattedValue) else part for part in node.values)
            return "".join(str(self._literal(part, depth + 1)) for part in parts)
        if isinstance(node, ast.List | ast.Tuple):
            return [self._literal(item, depth + 1) for item in node.elts]
        if isinstance(node, ast.Dict) and all(node.keys):
            keys = [self._literal(key, depth + 1) for key in node.keys if key is not None]
            return dict(zip(keys, (self._literal(item, depth + 1) for item in node.values), strict=True))
        if _called(node) == "dict" and isinstance(node, ast.Call) and not node.args:
            return {item.arg: self._literal(item.value, depth + 1) for item in node.keywords if item.arg}
        return ast.literal_eval(node)

    def _keywords(self, call: ast.Call, what: str) -> Iterator[tuple[str, ast.expr]]:
        for item in call.keywords:
            if item.arg is None:
                values = self._value(item.value)
                node = self._resolved(item.value)
                if isinstance(values, dict) and isinstance(node, ast.Dict):
                    yield from zip(map(str, values), node.values, strict=True)
                elif isinstance(values, dict) and isinstance(node, ast.Call):
                    yield from ((part.arg, part.value) for part in node.keywords if part.arg)
                else:
                    self.script.values[f"{what}.**"] = Expression(ast.unparse(item.value))
            else:
                yield item.arg, item.value

    def _resolved(self, node: ast.expr) -> ast.expr:
        for _ in range(20):
            if not isinstance(node, ast.Name) or node.id not in self.names:
                break
            node = self.names[node.id]
        return node

    def _training(self, call: ast.Call) -> None:
        self.script.old |= _called(call) == "TrainingArguments"
        for name, value in self._keywords(call, _called(call)):
            self._put(name, value)

    def _trainer(self, call: ast.Call) -> None:
        given = dict(self._keywords(call, "SFTTrainer"))
        if call.args:
            given.setdefault("model", call.args[0])
        self.script.old |= bool({"dataset_text_field", "max_seq_length", "packing", "tokenizer"} & set(given))
        for name, value in given.items():
            if name == "model" and isinstance(text := self._value(value), str):
                self.script.values["model_name_or_path"] = text
            elif name in ("train_dataset", "eval_dataset"):
                self._data(name, value)
            elif name == "data_collator":
                self._collator(value)
            elif name not in _FOLLOWED:
                self._put(name, value)

    def _collator(self, node: ast.expr) -> None:
        call = self._resolved(node)
        if not isinstance(call, ast.Call) or _called(call) != "DataCollatorForCompletionOnlyLM":
            self._put("data_collator", node)
            return
        self.script.old = True
        given = {"response_template": call.args[0]} if call.args else {}
        given |= dict(self._keywords(call, "data_collator"))
        if len(call.args) > 1:
            given["instruction_template"] = call.args[1]
        for name, value in given.items():
            if name != "tokenizer":
                self._put(f"data_collator.{name}", value)

    def _lora(self, call: ast.Call) -> None:
        self.script.values["use_peft"] = True
        for name, value in self._keywords(call, "LoraConfig"):
            self._put(_LORA.get(name, f"LoraConfig.{name}"), value)

    def _quantized(self, call: ast.Call) -> None:
        for name, value in self._keywords(call, "BitsAndBytesConfig"):
            self._put(name if name in _QUANTIZED else f"BitsAndBytesConfig.{name}", value)

    def _pretrained(self, call: ast.Call) -> None:
        owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        name = next(
            (item.value for item in call.keywords if item.arg in ("model_name", "pretrained_model_name_or_path")), None
        )
        name = name or (call.args[0] if call.args else None)
        if owner == "FastLanguageModel":
            if name:
                self._put("model_name_or_path", name)
            for key, value in self._keywords(call, owner):
                if key not in ("model_name", "pretrained_model_name_or_path"):
                    self._put(f"unsloth.{key}", value)
        elif "Tokenizer" in owner or "Processor" in owner:
            if name:
                self._put("tokenizer_name", name)
            for key, value in self._keywords(call, owner):
                if key != "pretrained_model_name_or_path":
                    self._put(f"tokenizer.{key}", value)
        elif "Model" in owner or "ForCausalLM" in owner:
            if name:
                self._put("model_name_or_path", name)
            self.script.values["model"] = owner
            for key, value in self._keywords(call, owner):
                if key == "revision":
                    self._put("model_revision", value)
                elif key not in ("quantization_config", "pretrained_model_name_or_path"):
                    self._put(key if key in _MODEL else f"model_init_kwargs.{key}", value)

    def _unsloth_adapter(self, call: ast.Call) -> None:
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "FastLanguageModel":
            for key, value in self._keywords(call, "FastLanguageModel"):
                self._put(f"unsloth.{key}", value)

    def _chat_format(self, call: ast.Call) -> None:
        self.script.values["chat_format"] = next(
            (self._value(item.value) for item in call.keywords if item.arg == "format"), "chatml"
        )

    def _train(self, call: ast.Call) -> None:
        for item in call.keywords:
            if item.arg == "resume_from_checkpoint":
                self._put("resume_from_checkpoint", item.value)

    def _data(self, name: str, node: ast.expr) -> None:
        """Follow a data set back to ``load_dataset``, and list what the script does to it on the way."""
        prefix = "" if name == "train_dataset" else "eval."
        for _ in range(30):
            node = self._resolved(node)
            if isinstance(node, ast.Subscript):
                part = self._value(node.slice)
                if isinstance(part, str):
                    self.script.values.setdefault(f"{prefix}dataset_train_split", part)
                node = node.value
            elif _called(node) == "load_dataset" and isinstance(node, ast.Call):
                self._loaded(node, prefix)
                return
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                self._changed(node, _called(node), prefix)
                node = node.func.value
            else:
                break
        self.script.values[name] = Expression(ast.unparse(node))

    def _changed(self, call: ast.Call, method: str, prefix: str) -> None:
        if method == "train_test_split":
            sizes = [item.value for item in call.keywords if item.arg == "test_size"] or call.args[:1]
            self.script.values["test_split_size"] = self._value(sizes[0]) if sizes else 0.25
            self.script.values.pop(f"{prefix}dataset_train_split", None)
        elif method in _CHANGES:
            change = Expression(ast.unparse(call).rpartition(f".{method}(")[2][:-1])
            if not (prefix and self.script.values.get(f"dataset.{method}") == change):
                self.script.values[f"{prefix}dataset.{method}"] = change

    def _loaded(self, call: ast.Call, prefix: str) -> None:
        known = {
            "path": "dataset_name",
            "name": "dataset_config",
            "split": "dataset_train_split",
            "streaming": "dataset_streaming",
        }
        given = dict(zip(("path", "name"), call.args, strict=False)) | dict(self._keywords(call, "load_dataset"))
        for name, value in given.items():
            if name == "split":
                self.script.values.pop(f"{prefix}dataset_train_split", None)
            self._put(
                prefix + known.get(name, name if name in ("data_files", "data_dir") else f"load_dataset.{name}"), value
            )
