"""What is measured: model shapes, settings, and the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

#: Configurations of Qwen3 0.6B, Llama 3.2 1B and Llama 3.1 8B; the toy tries the code on a CPU.
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
#: Rows of a batch by shape, training and form.
BATCH = {
    ("0.6B", "full"): {"packed": 4, "unpacked": 32},
    ("1B", "full"): {"packed": 4, "unpacked": 32},
    ("8B", "lora"): {"packed": 1, "unpacked": 8},
    ("8B", "full"): {"packed": 2, "unpacked": 16},
    ("toy", "full"): {"packed": 2, "unpacked": 4},
    ("toy", "lora"): {"packed": 2, "unpacked": 4},
}
#: Steps before the first that counts, and steps that count.
STEPS = {"0.6B": (4, 8), "1B": (4, 8), "8B": (3, 5), "toy": (1, 3)}
MAX_LENGTH, TOY_MAX_LENGTH = 4096, 128

TRL, TRL_KEEPS, TRL_LIGER, TRL_FLEX = "trl", "trl, no checkpointing", "trl, liger", "trl, flex attention"
LOOP, UNSLOTH = "plain loop", "unsloth"
PLAIN, FLASH, LIGER, COMPILE = "sftkit", "sftkit + flash_attn", "sftkit + liger", "sftkit + compile"
FUSED = "sftkit + flash_attn + liger"
ALL, SAVING = f"{FUSED} + compile", f"{FUSED} + activations"
#: What takes their place where liger cannot be used.
WITHOUT_LIGER = {FUSED: FLASH, ALL: f"{FLASH} + compile", SAVING: f"{FLASH} + activations"}
#: How each setting runs. TRL checkpoints activations unless it is switched off, with liger's kernels too.
SETTINGS: dict[str, dict[str, Any]] = {
    TRL: {"kind": "trl"},
    TRL_KEEPS: {"kind": "trl", "options": {"gradient_checkpointing": False}},
    TRL_LIGER: {"kind": "trl", "options": {"use_liger_kernel": True}},
    TRL_FLEX: {"kind": "trl", "attention": "flex_attention"},
    LOOP: {"kind": "loop"},
    UNSLOTH: {"kind": "unsloth"},
    PLAIN: {"kind": "sftkit", "plugins": ["no:flash_attn"]},
    FLASH: {"kind": "sftkit", "plugins": ["flash_attn"]},
    LIGER: {"kind": "sftkit", "plugins": ["liger", "no:flash_attn"]},
    COMPILE: {"kind": "sftkit", "plugins": ["compile", "no:flash_attn"]},
    FUSED: {"kind": "sftkit", "plugins": ["flash_attn", "liger"]},
    ALL: {"kind": "sftkit", "plugins": ["flash_attn", "liger", "compile"]},
    SAVING: {"kind": "sftkit", "plugins": ["flash_attn", "liger", "activations"]},
    WITHOUT_LIGER[ALL]: {"kind": "sftkit", "plugins": ["flash_attn", "compile"]},
    WITHOUT_LIGER[SAVING]: {"kind": "sftkit", "plugins": ["flash_attn", "activations"]},
}
_SMALL, _LORA, _FULL = ("0.6B", "full", "packed"), ("8B", "lora", "packed"), ("8B", "full", "packed")
#: The most telling first: a run may end at any of them.
ORDER = [
    *((_SMALL, setting) for setting in (TRL, FUSED, PLAIN)),
    *((_LORA, setting) for setting in (TRL, FUSED)),
    (_FULL, SAVING),
    *((_SMALL, setting) for setting in (LOOP, TRL_KEEPS, FLASH, ALL, TRL_LIGER, LIGER, TRL_FLEX, COMPILE)),
    (_LORA, TRL_KEEPS),
    (_FULL, TRL),
    *((group, UNSLOTH) for group in (_SMALL, _LORA)),
]
_OTHERS = [(shape, "full", form) for shape, form in (("1B", "packed"), ("0.6B", "unpacked"), ("1B", "unpacked"))]
#: What ``--all`` adds.
MORE = [
    *((group, setting) for group in _OTHERS for setting in (TRL, FUSED, PLAIN, LOOP, TRL_KEEPS, UNSLOTH)),
    *((("8B", "lora", "unpacked"), setting) for setting in (TRL, FUSED)),
]
#: Modules that a setting imports, by the kind or the plugin that needs them.
NEEDS = {"trl": "trl", "unsloth": "unsloth", "liger": "liger_kernel", "use_liger_kernel": "liger_kernel"}
#: Plugins, options and implementations without a CPU form.
GPU_ONLY = {"liger", "use_liger_kernel", "flex_attention", "unsloth"}


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
        """The cases that are compared with each other."""
        return f"{self.shape} {self.train} {self.form}"

    @property
    def name(self) -> str:
        """The key of the case in the results."""
        return f"{self.group}: {self.setting}"

    @property
    def ours(self) -> bool:
        """Whether sftkit trains."""
        return SETTINGS[self.setting]["kind"] == "sftkit"

    @classmethod
    def of(cls, name: str) -> Case:
        """The case with a name."""
        group, _, setting = name.partition(": ")
        return cls(*group.split(), setting)


@dataclass
class Spec:
    """What a child process runs.

    Attributes:
        kind: ``loop``, ``sftkit``, ``trl`` or ``unsloth``.
        shape: the model's configuration.
        train: ``full`` or ``lora``.
        packed: whether rows are packed to ``max_length``.
        batch: rows of a batch.
        max_length: tokens of the longest row.
        warmup: steps before the first that counts.
        steps: steps that count.
        profiled: steps after those, under the profiler.
        documents: tokens of each document's prompt and completion.
        directory: for files of the run.
        device: ``cuda`` or ``cpu``.
        attention: implementation for TRL; None for the model's default.
        plugins: of sftkit.
        options: of TRL.
    """

    kind: str
    shape: dict[str, Any]
    train: str
    packed: bool
    batch: int
    max_length: int
    warmup: int
    steps: int
    documents: list[tuple[int, int]]
    directory: str
    device: str
    profiled: int = 0
    attention: str | None = None
    plugins: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


def cases(toy: bool, everything: bool) -> Iterator[Case]:
    """The cases in the order in which they are measured."""
    others = WITHOUT_LIGER if toy or find_spec("liger_kernel") is None else {}
    order = ORDER + (MORE if everything else [])
    made = (Case("toy" if toy else shape, *rest, others.get(setting, setting)) for (shape, *rest), setting in order)
    yield from dict.fromkeys(made)


def spec_of(case: Case, lengths: list[tuple[int, int]], directory: str, device: str, profiled: int = 0) -> Spec:
    """How a case is run, with documents enough for all of its steps."""
    max_length = TOY_MAX_LENGTH if case.shape == "toy" else MAX_LENGTH
    batch, (warmup, steps) = BATCH[case.shape, case.train][case.form], STEPS[case.shape]
    setting = {**SETTINGS[case.setting]}
    if case.shape == "toy":  # inductor's C++ takes a minute, and is not what is tried
        setting["plugins"] = [
            f"{name}:backend=aot_eager" if name == "compile" else name for name in setting.get("plugins", [])
        ]
    total, cap = warmup + steps + profiled, max_length // 2
    documents = [(max(min(prompt, cap), 1), max(min(completion, cap - 1), 1)) for prompt, completion in lengths]
    if case.form == "packed":  # a row more, since packing leaves rows that are not full
        average = sum(map(sum, documents)) / len(documents)
        needed = int((batch * total + 1) * max_length / average * 1.2) + 8
    else:
        needed = batch * total
    return Spec(
        shape=SHAPES[case.shape],
        train=case.train,
        packed=case.form == "packed",
        batch=batch,
        max_length=max_length,
        warmup=warmup,
        steps=steps,
        profiled=profiled,
        documents=[documents[at % len(documents)] for at in range(needed)],
        directory=directory,
        device=device,
        **setting,
    )


def missing(case: Case, on_gpu: bool, gib: float) -> str:
    """Why a case cannot be measured here; empty if it can."""
    setting = SETTINGS[case.setting]
    uses = [setting["kind"], *setting.get("plugins", ()), *setting.get("options", ()), setting.get("attention", "")]
    if not on_gpu and (lacking := GPU_ONLY.intersection(uses)):
        return f"{lacking.pop()} needs a GPU"
    for name in uses:
        if name in NEEDS and find_spec(NEEDS[name]) is None:
            return f"the package {NEEDS[name]} is not installed"
    if on_gpu and (least := least_gib(case)) > gib * 0.95:
        return f"weights, gradients and optimizer alone take {least:.0f} GiB, and the GPU has {gib:.0f}"
    return ""


def parameters(shape: dict[str, Any]) -> tuple[int, int]:
    """Weights of the layers' products, and of the head; norms and the embeddings' lookup are left out."""
    hidden, head = shape["hidden_size"], shape["head_dim"]
    attention = hidden * head * 2 * (shape["num_attention_heads"] + shape["num_key_value_heads"])
    layers = shape["num_hidden_layers"] * (attention + 3 * hidden * shape["intermediate_size"])
    return layers, hidden * shape["vocab_size"]


def least_gib(case: Case) -> float:
    """Memory below which a case cannot run: weights in bfloat16; in full training, gradients and AdamW's state too."""
    shape = SHAPES[case.shape]
    layers, head = parameters(shape)
    weights = layers + head * (1 if shape["tie_word_embeddings"] else 2)
    return weights * (8 if case.train == "full" else 2) / 2**30
