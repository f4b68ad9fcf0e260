"""How fast data is prepared: sftkit compared with TRL and with the tokenizer alone, taking turns in one process.

    python benchmarks/data_prep.py [--quick] [--json]

The data is Code Alpaca, repeated four times, with the Llama 2 tokenizer and 512 tokens. Both trainers start from the
same loaded `datasets.Dataset` in one process, with all threads of the tokenizer. For TRL, the benchmark times
`SFTTrainer._prepare_dataset`, without a model; for sftkit, `Pipeline.prepare` without its cache. The tokenizer alone
encodes the same texts in batches of 1,000. The first round only fills caches and is not counted.

Turns are found in conversations of 1 to 80 turns with tool calls, each of another structure, with a template without
markers. The figure is how often a row is rendered, beside the rate of rendering alone.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SFTKIT_CACHE"] = tempfile.mkdtemp(prefix="sftkit-bench-")

from _data import SHARED, code_alpaca
from _report import median, parse_flags, report, versions

MAX_LENGTH = 512
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_MARKERS = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
#: case: (minimum speed-up over TRL, maximum time as a multiple of that of the tokenizer alone)
TARGETS = {"text": (4, 1.4), "prompt/completion": (5, 1.4), "chat": (5, 2.0), "chat, no markers": (3, 2.0)}
CALLS = (
    "{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>\n{% endfor %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for call in m.tool_calls or [] %}"
    "<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MOST_RENDERS = 2.5
OTHERS = {"packing, to disk": (0, None)}  # no target: both are limited by the disk


def tokenizer_with(template: str | None) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHARED / "llama2_tokenizer")
    tokenizer.chat_template = template
    tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def sftkit_prepare(rows: Any, tokenizer: Any, plugins: tuple[str, ...] = ()) -> Any:
    from sftkit import Pipeline
    from sftkit.testing import tiny_model

    config = {"data": {"max_length": MAX_LENGTH, "cache": False}, "train": {"output_dir": "unused"}}
    run = Pipeline(model=tiny_model(), data=rows, tokenizer=tokenizer, config=config, plugins=plugins)
    return run.prepare().data.train


def trl_prepare(rows: Any, tokenizer: Any, packing: bool = False, **options: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(output_dir="unused", max_length=MAX_LENGTH, packing=packing, use_cpu=True, bf16=False, **options)
    own = {"completion_only_loss": "prompt" in rows.column_names, "chat_template": tokenizer.chat_template}
    trainer = SimpleNamespace(_tokenizer=tokenizer, _is_vlm=False, **own)
    return SFTTrainer._prepare_dataset(trainer, rows, tokenizer, args, packing, None, "train")


def alternate(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each; all run once per round, and a first round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if number:
                taken[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in taken.items()}


def whole_path(pairs: list[tuple[str, str]], rounds: int) -> dict[str, dict[str, float]]:
    """Every format from loaded rows to examples."""
    from datasets import Dataset

    messages = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    marked, plain = tokenizer_with(CHATML), tokenizer_with(NO_MARKERS)
    data = {
        "text": Dataset.from_dict({"text": [q + a for q, a in pairs]}),
        "prompt/completion": Dataset.from_dict({"prompt": [q for q, _ in pairs], "completion": [a for _, a in pairs]}),
        "chat": Dataset.from_dict({"messages": messages}),
    }
    texts = {name: [q + a for q, a in pairs] for name in ("text", "prompt/completion")}
    texts["chat"] = [marked.apply_chat_template(row, tokenize=False) for row in messages]
    results = {}
    for name in TARGETS:
        form = name.partition(",")[0]
        tokenizer = plain if "no markers" in name else marked
        backend, rows, strings = marked.backend_tokenizer, data[form], texts[form]
        special = form != "chat"
        works = {
            "sftkit": lambda rows=rows, tokenizer=tokenizer: sftkit_prepare(rows, tokenizer),
            "trl": lambda rows=rows, form=form: trl_prepare(rows, marked, assistant_only_loss=form == "chat"),
            "raw": lambda strings=strings, special=special, backend=backend: [
                backend.encode_batch(strings[at : at + 1000], add_special_tokens=special)
                for at in range(0, len(strings), 1000)
            ],
        }
        took = alternate(works, rounds)
        results[name] = _ratios({key: len(pairs) / value for key, value in took.items()}, took)
    return results


def _ratios(rates: dict[str, float], took: dict[str, float]) -> dict[str, float]:
    figures = {f"{name} rows/s": round(rate) for name, rate in rates.items()}
    figures["times trl"] = round(took["trl"] / took["sftkit"], 2)
    if "raw" in took:
        figures["raw times"] = round(took["sftkit"] / took["raw"], 2)
    return figures


def tool_conversations(count: int) -> list[list[dict[str, Any]]]:
    """Conversations of 1 to 80 turns, in which the assistant makes 0 to 3 calls in a turn."""
    import random

    chance, rows = random.Random(0), []
    for _ in range(count):
        messages: list[dict[str, Any]] = []
        for turn in range(chance.randint(1, 80)):
            messages.append({"role": "user", "content": f"question {turn} " * 20})
            for at in range(chance.randint(0, 3)):
                function = {"name": "look_up", "arguments": {"key": f"key {turn}-{at}", "limit": at}}
                calls = [{"type": "function", "function": function}]
                messages.append({"role": "assistant", "content": "", "tool_calls": calls})
                messages.append({"role": "tool", "name": "look_up", "content": f"result {turn} " * 20})
            messages.append({"role": "assistant", "content": f"answer {turn} " * 20})
        rows.append(messages)
    return rows


def finding_turns(count: int, rounds: int) -> dict[str, float]:
    """Rows per second from conversations to spans, and how often a row is rendered."""
    from sftkit_plugins.formats.chat import Chat
    from sftkit_plugins.formats.messages import MessagesReader
    from sftkit_plugins.formats.rendering import Rendering

    rows = tool_conversations(count)
    special = {"eos_token": "<|im_end|>"}
    rendered, text = [0], Rendering.text

    def counted(self: Rendering, *args: Any, **options: Any) -> str:
        rendered[0] += 1
        return text(self, *args, **options)

    def ours() -> None:
        rendered[0] = 0
        Chat(reader=MessagesReader(("messages",)), template=CALLS, special_tokens=special)({"messages": rows})

    alone = Rendering(CALLS, special)
    Rendering.text = counted  # type: ignore[method-assign]
    try:
        took = alternate({"sftkit": ours, "rendering": lambda: [text(alone, row) for row in rows]}, rounds)
    finally:
        Rendering.text = text  # type: ignore[method-assign]
    figures = {f"{name} rows/s": count / value for name, value in took.items()}
    return {**figures, "renders per row": rendered[0] / count}


def document_lengths(count: int) -> Any:
    """Lengths of documents in tokens (int64, count), distributed like those of Code Alpaca."""
    import numpy as np

    return np.clip(np.random.default_rng(0).lognormal(4.6, 0.7, count).astype(np.int64), 8, 2048)


def pack_to_disk(examples: Any, max_length: int) -> dict[str, Any]:
    """What sftkit does after encoding: fit, pack, write."""
    from sftkit.data.counts import Counts
    from sftkit.data.prepare import pack
    from sftkit.testing import plugin_set, tiny_config
    from sftkit_plugins.packing import Packing

    config, counts = tiny_config(data={"max_length": max_length}), Counts()
    packer = plugin_set(Packing()).hook.make_packer(split="train", config=config, counts=counts)
    with tempfile.TemporaryDirectory() as directory:
        return pack([examples], packer, Path(directory, "rows.arrow"), "train", config, counts)


def tokenized(pairs: list[tuple[str, str]], rounds: int) -> dict[str, float]:
    """Labels, truncation and packing of tokenized rows, from Arrow columns to packed rows on disk."""
    import numpy as np
    from datasets import Dataset

    from sftkit.data.columns import IGNORE_INDEX, Examples, flatten_column

    backend = tokenizer_with(None).backend_tokenizer
    prompts = [encoding.ids for encoding in backend.encode_batch([q for q, _ in pairs])]
    answers = [encoding.ids for encoding in backend.encode_batch([a for _, a in pairs], add_special_tokens=False)]
    both = list(zip(prompts, answers, strict=True))
    columns = {
        "input_ids": [prompt + answer for prompt, answer in both],
        "completion_mask": [[0] * len(prompt) + [1] * len(answer) for prompt, answer in both],
    }
    rows = Dataset.from_dict(columns)

    def ours() -> None:
        table = rows.with_format("arrow")[:]
        ids, offsets = flatten_column(table, "input_ids")
        labels = np.where(flatten_column(table, "completion_mask")[0] == 1, ids, np.int32(IGNORE_INDEX))
        labels[offsets[:-1]] = IGNORE_INDEX
        pack_to_disk(Examples(ids, labels, offsets), MAX_LENGTH)

    tokenizer = tokenizer_with(CHATML)
    took = alternate({"sftkit": ours, "trl": lambda: trl_prepare(rows, tokenizer, packing=True)}, rounds)
    return _ratios({name: len(pairs) / value for name, value in took.items()}, took)


def lengths(count: int, rounds: int) -> dict[str, float]:
    """Only the plan: documents with the lengths of Code Alpaca are assigned to rows of 2,048 tokens, all at once.

    TRL's planner also rearranges a table: it gets one column of single bytes, the smallest that it accepts.
    """
    import numpy as np
    import pyarrow as pa
    from trl.data_utils import _pack_bfd

    from sftkit_plugins.packing.plan import best_fit

    sizes = document_lengths(count)
    offsets = np.append(0, np.cumsum(sizes))
    column = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.zeros(offsets[-1], np.int8)))
    table = pa.table({"input_ids": column})
    made = {}

    def ours() -> None:
        made["sftkit"] = best_fit(sizes, 2048).rows[-1] + 1

    def peers() -> None:
        made["trl"] = len(_pack_bfd(table, 2048))

    took = alternate({"sftkit": ours, "trl": peers}, rounds)
    figures = _ratios({name: count / value for name, value in took.items()}, took)
    return {**figures, **{f"{name} fill": round(float(offsets[-1] / (rows * 2048)), 5) for name, rows in made.items()}}


def packing(count: int, rounds: int) -> dict[str, float]:
    """The same documents, from tokenized columns to packed rows; TRL packs 1,000 at a time by default."""
    import numpy as np
    from datasets import Dataset
    from trl import pack_dataset

    from sftkit.data.columns import Examples

    sizes = document_lengths(count)
    offsets = np.append(0, np.cumsum(sizes))
    ids = np.random.default_rng(0).integers(3, 32000, offsets[-1]).astype(np.int32)
    labels = ids.copy()
    labels[offsets[:-1]] = -100
    examples = Examples(ids, labels, offsets)
    rows = Dataset(examples.table()).select_columns(["input_ids", "labels"])
    fill = {}

    def ours() -> None:
        totals = pack_to_disk(examples, 2048)
        fill["sftkit"] = totals["tokens"] / (totals["rows"] * 2048)

    def peers() -> None:
        packed = pack_dataset(rows, 2048, "bfd")
        fill["trl"] = offsets[-1] / (len(packed) * 2048)

    took = alternate({"sftkit": ours, "trl": peers}, rounds)
    figures = _ratios({name: count / value for name, value in took.items()}, took)
    return {**figures, **{f"{name} fill": round(float(value), 5) for name, value in fill.items()}}


def collating() -> dict[str, float]:
    """A batch of 8 rows of 4,096 tokens, in the form in which each library prepares rows."""
    import numpy as np
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from sftkit_plugins.pad import PadCollator

    random = np.random.default_rng(0)
    rows = [{"input_ids": random.integers(3, 32000, 4096 - at).astype(np.int32)} for at in range(8)]
    rows = [{**row, "labels": row["input_ids"]} for row in rows]
    lists = [{name: values.tolist() for name, values in row.items()} for row in rows]
    ours, peers = PadCollator(pad_id=0), DataCollatorForLanguageModeling(pad_token_id=0)
    took = alternate({"sftkit": lambda: ours(rows), "trl": lambda: peers(lists)}, 30)
    return {"sftkit ms": took["sftkit"] * 1e3, "trl ms": took["trl"] * 1e3, "times trl": took["trl"] / took["sftkit"]}


def main() -> None:
    import datasets

    flags = parse_flags(__doc__.splitlines()[0])
    datasets.disable_caching()
    datasets.disable_progress_bars()
    pairs = code_alpaca() * (1 if flags.quick else 4)
    rounds = 1 if flags.quick else 3
    result: dict[str, dict[str, float]] = whole_path(pairs, rounds)
    count = 100_000 if flags.quick else 1_000_000
    result["finding turns"] = finding_turns(100 if flags.quick else 500, rounds)
    result["tokenized, packed"] = tokenized(pairs, rounds)
    result["packing lengths"] = lengths(count, 1)
    result["packing, to disk"] = packing(count, 1)
    result["collating"] = collating()
    rows = []
    for name, found in result.items():
        figures = ", ".join(f"{key} {value:,.5g}" for key, value in found.items())
        if "renders per row" in found:
            met = found["renders per row"] <= MOST_RENDERS
            rows.append([name, figures, f"≤ {MOST_RENDERS} renders per row", "met" if met else "missed"])
            continue
        faster, slower = {**TARGETS, **OTHERS}.get(name, (10, None))
        met = found["times trl"] >= faster and (slower is None or found["raw times"] <= slower)
        wanted = f"≥ {faster} × trl" + (f", ≤ {slower} × raw" if slower else "")
        rows.append([name, figures, *((wanted, "met" if met else "missed") if faster else ("", ""))])
    libraries = versions("sftkit-train", "trl", "tokenizers", "datasets")
    report(result, f"Data preparation ({libraries})", ("case", "figures", "target", ""), rows, flags.json)


if __name__ == "__main__":
    main()
