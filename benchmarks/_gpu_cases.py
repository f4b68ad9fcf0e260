"""What the GPU benchmark measures: shapes, settings, and which of them make a case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

#: Configurations as their models have them: Qwen3 0.6B, Llama 3.2 1B, Llama 3.1 8B; the toy is for trying the script.
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "max_position_embeddings": 40_960,
    },
    "1B": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131_072,
    },
    "8B": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131_072,
    },
    "toy": {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": False,
        "max_position_embeddings": 512,
    },
}
#: Rows of a batch, packed to 4,096 tokens and unpacked.
BATCH = {"0.6B": (4, 32), "1B": (4, 32), "8B": (1, 8), "toy": (2, 4)}
#: Tokens, hidden size and vocabulary of the head that is measured alone.
HEAD = {"tokens": 8192, "hidden": 4096, "vocabulary": 151_936}
TOY_HEAD = {"tokens": 300, "hidden": 64, "vocabulary": 512}

TRL, PEER_ALIKE, LOOP, UNSLOTH = "trl", "trl, no checkpointing", "plain loop", "unsloth"
#: Setting: what runs it, and with what. TRL's default keeps no activations; so does its run with Liger's kernels.
SETTINGS: dict[str, dict[str, Any]] = {
    LOOP: {"kind": "loop"},
    "sftkit": {"kind": "sftkit", "plugins": []},
    TRL: {"kind": "trl", "options": {}},
    "sftkit + flash_attn": {"kind": "sftkit", "plugins": ["flash_attn:implementation=varlen"]},
    PEER_ALIKE: {"kind": "trl", "options": {"gradient_checkpointing": False}},
    "sftkit + flash_attn + liger": {"kind": "sftkit", "plugins": ["flash_attn:implementation=varlen", "liger"]},
    "trl, liger": {"kind": "trl", "options": {"use_liger_kernel": True}},
    "trl, flash attention": {"kind": "trl", "attention": "flash_attention_2"},
    "sftkit + liger": {"kind": "sftkit", "plugins": ["liger"]},
    "sftkit + compile": {"kind": "sftkit", "plugins": ["compile"]},
    UNSLOTH: {"kind": "unsloth"},
}
#: Shape, what is trained, form; the most telling first, since --quick ends when its time is over.
QUICK = [("0.6B", "full", "packed"), ("8B", "lora", "packed"), ("0.6B", "full", "unpacked")]
_FULL = [("0.6B", "full"), ("1B", "full"), ("8B", "lora"), ("0.6B", "lora"), ("1B", "lora"), ("8B", "full")]
FULL = [(shape, train, form) for form in ("packed", "unpacked") for shape, train in _FULL]
TOY = [("toy", "full", "packed"), ("toy", "full", "unpacked"), ("toy", "lora", "packed")]
#: At 8B, what --quick leaves out.
QUICK_SKIPS = {"sftkit + liger", "sftkit + compile"}

TIMES_TRL = {"full": (("0.6B", "1B"), 1.3), "lora": (("8B",), 1.15)}
MFU_LEAST = {"8B": 0.45}
HEAD_MS, HEAD_GIB = 80.0, 6.0


@dataclass(frozen=True)
class Case:
    """One setting on one model and one form of the data.

    Attributes:
        shape: of `SHAPES`.
        train: ``full`` or ``lora``.
        form: ``packed`` into rows of one length, or ``unpacked``.
        setting: of `SETTINGS`.
    """

    shape: str
    train: str
    form: str
    setting: str

    @property
    def group(self) -> str:
        """What it is compared within."""
        return f"{self.shape} {self.train} {self.form}"

    @property
    def name(self) -> str:
        """Its name, for `--only` and the table."""
        return f"{self.group}: {self.setting}"


@dataclass
class Spec:
    """What a child process is told, as JSON.

    Attributes:
        kind: ``loop``, ``sftkit``, ``trl`` or ``unsloth``.
        shape: the model's configuration.
        train: ``full`` or ``lora``.
        packed: whether rows are packed to ``max_length``.
        batch: rows of a batch.
        max_length: tokens a row, at most.
        steps: that are measured.
        warmup: steps before them.
        rows: path of a file with the lengths of prompts and completions.
        directory: for what a run writes.
        device: ``cuda`` or ``cpu``.
        peak_tflops: of the device; None where that is looked up or measured.
        attention: implementation for TRL; None for the model's own choice.
        plugins: of sftkit.
        options: of TRL.
    """

    kind: str
    shape: dict[str, Any]
    train: str
    packed: bool
    batch: int
    max_length: int
    steps: int
    warmup: int
    rows: str
    directory: str
    device: str
    peak_tflops: float | None = None
    attention: str | None = None
    plugins: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


def cases(toy: bool, quick: bool, only: list[str]) -> Iterator[Case]:
    """The cases in the order in which they are measured; ``only`` has names of cases, or parts of names."""
    known = [
        Case(shape, train, form, setting)
        for shape, train, form in (TOY if toy else QUICK if quick else FULL)
        for setting in SETTINGS
        if (setting != LOOP or (train, form) == ("full", "unpacked"))  # it pads, and knows no adapters
        and not (quick and shape == "8B" and setting in QUICK_SKIPS)
    ]
    names = {case.name for case in known}
    for case in known:
        if not only or any(text == case.name or (text not in names and text in case.name) for text in only):
            yield case


def parameters(shape: dict[str, Any]) -> tuple[int, int]:
    """Weights of the layers, and of the head; norms, which are few, and embeddings, which are looked up, left out."""
    hidden, head = shape["hidden_size"], shape["head_dim"]
    attention = hidden * head * 2 * (shape["num_attention_heads"] + shape["num_key_value_heads"])
    layers = shape["num_hidden_layers"] * (attention + 3 * hidden * shape["intermediate_size"])
    return layers, hidden * shape["vocab_size"]


def least_gib(case: Case) -> float:
    """Memory below which a case cannot run: weights in bfloat16, and for full training gradients and AdamW's two."""
    shape = SHAPES[case.shape]
    layers, head = parameters(shape)
    weights = layers + head * (1 if shape["tie_word_embeddings"] else 2)
    return weights * (8 if case.train == "full" else 2) / 2**30
