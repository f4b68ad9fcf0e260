"""What all sides start from: the same rows, tokenizer and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PAD, EOS, UNKNOWN, FIRST = 0, 1, 2, 3


def lengths() -> tuple[list[tuple[int, int]], str]:
    """Tokens of prompts and completions, and where they come from.

    Those of Code Alpaca where the data lies beside the checkout, else drawn from log-normal distributions like them.
    """
    import numpy as np

    path = SHARED / "code_alpaca_2k.json"
    if path.is_file():
        from tokenizers import Tokenizer

        backend = Tokenizer.from_file(str(SHARED / "llama2_tokenizer" / "tokenizer.json"))
        rows = json.loads(path.read_text(encoding="utf-8"))
        sides = [f"{row['instruction']}\n{row['input']}\n" for row in rows], [row["output"] for row in rows]
        counts = [[len(found.ids) for found in backend.encode_batch_fast(side)] for side in sides]
        return list(zip(*counts, strict=True)), "Code Alpaca"
    random = np.random.default_rng(0)
    drawn = [np.clip(random.lognormal(mean, 0.7, 2000).astype(int), 4, 2000).tolist() for mean in (3.6, 4.2)]
    return list(zip(*drawn, strict=True)), "drawn, log-normal"


def tokenizer_of(vocabulary: int) -> Any:
    """One token a word: text of as many tokens as asked for, with ids from the whole vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "</s>": EOS, "<unk>": UNKNOWN, **{f"w{at}": at for at in range(FIRST, vocabulary)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def rows_of(documents: list[tuple[int, int]], vocabulary: int) -> list[dict[str, str]]:
    """Prompts and completions of random words, with these numbers of tokens."""
    import numpy as np

    random = np.random.default_rng(0)
    rows = []
    for prompt, completion in documents:
        words = [f"w{at}" for at in random.integers(FIRST, vocabulary, prompt + completion).tolist()]
        rows.append({"prompt": " ".join(words[:prompt]) + " ", "completion": " ".join(words[prompt:])})
    return rows


def model_of(shape: dict[str, Any], device: str, **options: Any) -> Any:
    """Random weights, made on the device: bfloat16 on a GPU, float32 on a CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype, **options)


def config_of(shape: dict[str, Any]) -> Any:
    """The shape as a configuration of transformers."""
    from transformers import AutoConfig

    names = dict(shape)
    special = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
    return AutoConfig.for_model(names.pop("model_type"), **names, **special)


def saved(shape: dict[str, Any], directory: str, device: str) -> str:
    """A directory with these weights and the tokenizer, for a trainer that loads from one."""
    model_of(shape, device).save_pretrained(directory)
    tokenizer_of(shape["vocab_size"]).save_pretrained(directory)
    return directory
