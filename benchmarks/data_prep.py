"""How fast data is prepared: sftkit compared with TRL and with the tokenizer alone, taking turns in one process.

    python benchmarks/data_prep.py [--quick] [--json] [--no-engine]

The data is 26,208 rows of Code Alpaca without a repeated text, at 512 tokens, with three tokenizers: GPT-2's, one like
Llama 3's, which is trained here, and Llama 2's. sftkit is measured with the tokenizing engine of plugin fast_tokens and
without it; ``--no-engine`` leaves the former out. All start from the same loaded `datasets.Dataset` and tokenizer, in
one process with all threads: sftkit's `Stages.prepare_data` without its cache, TRL's `SFTTrainer._prepare_dataset`, and
`encode_batch_fast` of the same texts in batches of 1,000. Before that, some rows fill caches, and the engine is proved
equal, which is done once for each tokenizer on a machine. The comparison of the first 2,000 rows is measured.
``--quick`` gives fewer rows to all but sftkit with its engine. Ratios are of rows per second,
and, less sensitive to what else a machine does, of rows per second of processor time.

Turns are found in conversations of 1 to 80 turns with tool calls, each of another structure, with a template without
markers. The figure is how often a row is rendered, beside the rate of rendering alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SFTKIT_CACHE"] = tempfile.mkdtemp(prefix="sftkit-bench-")

from _data import code_alpaca, distinct_rows
from _report import add_flags, report, versions
from _whole_path import (
    CHATML,
    MAX_LENGTH,
    TARGETS,
    Sizes,
    alternate,
    ratios,
    tokenizers,
    trl_prepare,
    whole_path,
)

QUICK = Sizes(sftkit=26_208, trl=500, others=2_500)
CALLS = (
    "{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>\n{% endfor %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for call in m.tool_calls or [] %}"
    "<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MOST_RENDERS = 2.5
OTHERS = ("packing, to disk",)  # no target: both are limited by the disk


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
    figures = {f"{name} rows/s": round(count / value.wall) for name, value in took.items()}
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

    tokenizer = tokenizers([], CHATML)["Llama 2"]
    backend = tokenizer.backend_tokenizer
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

    took = alternate({"sftkit": ours, "trl": lambda: trl_prepare(rows, tokenizer, packing=True)}, rounds)
    return ratios(took, dict.fromkeys(took, len(pairs)))


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
    figures = ratios(took, dict.fromkeys(took, count))
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
    figures = ratios(took, dict.fromkeys(took, count))
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
    ours_ms, trl_ms = (took[name].wall * 1e3 for name in ("sftkit", "trl"))
    return {"sftkit ms": ours_ms, "trl ms": trl_ms, "times trl": trl_ms / ours_ms}


def verdict(name: str, found: dict[str, float], whole: bool) -> list[str]:
    """A target, and whether it is met; empty texts without a target."""
    if "renders per row" in found:
        met, wanted = found["renders per row"] <= MOST_RENDERS, f"≤ {MOST_RENDERS} renders per row"
    elif "times trl" in found and name not in OTHERS:
        kind = tuple(name.split(", ", 1)) if whole else ("", "")
        least = TARGETS.get((kind[0], kind[1]), 10)
        met, wanted = found["times trl"] >= least, f"≥ {least} × trl"
    else:
        return ["", ""]
    return [wanted, "met" if met else "missed"]


def main() -> None:
    import datasets

    parser = add_flags(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    parser.add_argument("--no-engine", action="store_true", help="measure sftkit only without its tokenizing engine")
    flags = parser.parse_args()
    datasets.disable_caching()
    datasets.disable_progress_bars()
    pairs, rounds = distinct_rows(), 1 if flags.quick else 3
    sizes = QUICK if flags.quick else Sizes(*[len(pairs)] * 3)
    found = whole_path(pairs, sizes, rounds, engine=not flags.no_engine)
    result = {", ".join(name): figures for name, figures in found.items()}
    count = 100_000 if flags.quick else 1_000_000
    result["finding turns"] = finding_turns(50 if flags.quick else 500, rounds)
    result["tokenized, packed"] = tokenized(code_alpaca()[: 2000 if flags.quick else None], rounds)
    result["packing lengths"] = lengths(count, 1)
    result["packing, to disk"] = packing(count // 4 if flags.quick else count, 1)
    result["collating"] = collating()
    rows = []
    for name, each in result.items():
        figures = ", ".join(f"{key} {value:,.5g}" for key, value in each.items())
        rows.append([name, figures, *verdict(name, each, tuple(name.split(", ", 1)) in found)])
    libraries = versions("sftkit-train", "trl", "tokenizers", "datasets", *([] if flags.no_engine else ["fastokens"]))
    report(result, f"Data preparation ({libraries})", ("case", "figures", "target", ""), rows, flags.json)


if __name__ == "__main__":
    main()
