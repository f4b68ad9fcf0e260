"""Preparation from loaded rows to examples on disk: sftkit with and without its engine, TRL, the bare tokenizer."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from _report import median
from _tokenizers import SHARED, llama_3

MAX_LENGTH = 512
VOCABULARY = 16_000  # of the tokenizer like Llama 3's, trained in seconds; Llama 3 has 128,000 tokens
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_MARKERS = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
KINDS = ("text", "prompt/completion", "chat", "chat, no markers")


class Sizes(NamedTuple):
    """How many rows each of them prepares; all rates are rows per second."""

    sftkit: int
    trl: int
    others: int


#: The minimum speed-up over TRL by tokenizer and kind of data.
TARGETS = {
    **{(name, kind): 12 if "chat" not in kind else 8 for name in ("GPT-2", "like Llama 3") for kind in KINDS},
    **{("Llama 2", kind): 6 for kind in KINDS},
}
WARM = Sizes(4000, 100, 100)  # before anything is counted; an engine is not used for fewer rows
ENGINE, ALONE = "sftkit", "sftkit without engine"


class Taken(NamedTuple):
    """The median of seconds, and of seconds of processor time, that one turn takes."""

    wall: float
    used: float


def tokenizers(texts: list[str], template: str | None) -> dict[str, Any]:
    """GPT-2's tokenizer, one like Llama 3's, and Llama 2's.

    Args:
        texts: what the one like Llama 3's is trained on.
        template: the chat template of all of them.
    """
    from transformers import AutoTokenizer

    made = {
        "GPT-2": AutoTokenizer.from_pretrained(SHARED / "gpt2_tokenizer"),
        "like Llama 3": llama_3(texts, VOCABULARY),
        "Llama 2": AutoTokenizer.from_pretrained(SHARED / "llama2_tokenizer"),
    }
    for name, tokenizer in made.items():
        tokenizer.chat_template = template
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        if name != "Llama 2":
            tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


def alternate(
    works: dict[str, Callable[[], Any]], rounds: int, before: dict[str, Callable[[], Any]] | None = None
) -> dict[str, Taken]:
    """How long each takes; all run once per round.

    Args:
        works: what to measure.
        rounds: how often.
        before: what fills caches, and is not counted; all of ``works`` if it is None.
    """
    for work in (works if before is None else before).values():
        work()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started, used = time.perf_counter(), time.process_time()
            work()
            taken[name].append((time.perf_counter() - started, time.process_time() - used))
    return {name: Taken(*(median(values) for values in zip(*each, strict=True))) for name, each in taken.items()}


def sftkit_prepare(rows: Any, tokenizer: Any, *plugins: str) -> Callable[[], Any]:
    """Prepares rows with a loaded tokenizer, as TRL's function does: the run is set up before."""
    from sftkit import Pipeline
    from sftkit.testing import tiny_model

    config = {"data": {"max_length": MAX_LENGTH, "cache": False}, "train": {"output_dir": "unused"}}
    run = Pipeline(model=tiny_model(), data=rows, tokenizer=tokenizer, config=config, plugins=plugins)
    stages = run.stages()
    loaded = stages.load_tokenizer().tokenizer
    return lambda: stages.prepare_data(loaded).train


def trl_prepare(rows: Any, tokenizer: Any, packing: bool = False, **options: Any) -> Any:
    """Prepares rows by TRL's `SFTTrainer._prepare_dataset`, without a model."""
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(output_dir="unused", max_length=MAX_LENGTH, packing=packing, use_cpu=True, bf16=False, **options)
    own = {"completion_only_loss": "prompt" in rows.column_names, "chat_template": tokenizer.chat_template}
    trainer = SimpleNamespace(_tokenizer=tokenizer, _is_vlm=False, **own)
    return SFTTrainer._prepare_dataset(trainer, rows, tokenizer, args, packing, None, "train")


def whole_path(
    pairs: list[tuple[str, str]], sizes: Sizes, rounds: int, engine: bool
) -> dict[tuple[str, str], dict[str, float]]:
    """Every tokenizer and kind of data.

    Args:
        pairs: questions and answers.
        sizes: how many of them each prepares.
        rounds: how often each is measured.
        engine: whether to measure sftkit with its engine too.
    """
    from datasets import Dataset

    messages = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    data = {
        "text": Dataset.from_dict({"text": [q + a for q, a in pairs]}),
        "prompt/completion": Dataset.from_dict({"prompt": [q for q, _ in pairs], "completion": [a for _, a in pairs]}),
        "chat": Dataset.from_dict({"messages": messages}),
    }
    found = {}
    for name, tokenizer in tokenizers([q + a for q, a in pairs[: len(pairs) // 4]], CHATML).items():
        texts = {form: [q + a for q, a in pairs[: sizes.others]] for form in ("text", "prompt/completion")}
        shown = (tokenizer.apply_chat_template(row, tokenize=False) for row in messages[: sizes.others])
        texts["chat"] = list(shown)
        for kind in KINDS if name == "GPT-2" else KINDS[:3]:
            form = kind.partition(",")[0]
            tokenizer.chat_template = NO_MARKERS if "no markers" in kind else CHATML
            works, before = (
                _works(data[form], texts[form], tokenizer, some, form, engine)
                for some in (sizes, Sizes(*map(min, sizes, WARM)))
            )
            tokenizer.chat_template = CHATML
            numbers = {ENGINE: sizes.sftkit, "trl": sizes.trl}
            took = alternate(works, rounds, before)
            found[name, kind] = ratios(took, {each: numbers.get(each, sizes.others) for each in took})
    return found


def _works(
    rows: Any, texts: list[str], tokenizer: Any, sizes: Sizes, form: str, engine: bool
) -> dict[str, Callable[[], Any]]:
    few, backend, chat = rows.select(range(sizes.trl)), tokenizer.backend_tokenizer, form == "chat"
    works: dict[str, Callable[[], Any]] = {}
    if engine:
        works[ENGINE] = sftkit_prepare(rows.select(range(sizes.sftkit)), tokenizer)
    works[ALONE] = sftkit_prepare(rows.select(range(sizes.others)), tokenizer, "no:fast_tokens")
    works["trl"] = lambda: trl_prepare(few, tokenizer, assistant_only_loss=chat)
    works["raw"] = lambda: [
        backend.encode_batch_fast(texts[at : min(at + 1000, sizes.others)], add_special_tokens=not chat)
        for at in range(0, sizes.others, 1000)
    ]
    return works


def ratios(took: dict[str, Taken], numbers: dict[str, int]) -> dict[str, float]:
    """Rows per second of each, and how many times as fast as TRL sftkit is, by the clock and by processor time."""
    wall = {name: numbers[name] / each.wall for name, each in took.items()}
    used = {name: numbers[name] / each.used for name, each in took.items()}
    figures: dict[str, float] = {f"{name} rows/s": round(rate) for name, rate in wall.items()}
    for name in (each for each in (ENGINE, ALONE) if each in took):
        end = name.removeprefix("sftkit")
        figures[f"times trl{end}"] = round(wall[name] / wall["trl"], 2)
        figures[f"times trl{end}, processor"] = round(used[name] / used["trl"], 2)
        if "raw" in took:
            figures[f"raw times{end}"] = round(wall["raw"] / wall[name], 2)
    return figures
