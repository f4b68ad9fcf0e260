"""What all sides of the GPU benchmark begin with: the same rows, tokenizer and weights. Needs no sftkit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAD, EOS, UNKNOWN, FIRST = 0, 1, 2, 3


def tokenizer_of(vocabulary: int) -> Any:
    """A word a token, so that a row of text has as many tokens as it is to have, and ids from all of the vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "</s>": EOS, "<unk>": UNKNOWN, **{f"w{at}": at for at in range(FIRST, vocabulary)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def rows_of(path: str, vocabulary: int) -> list[dict[str, str]]:
    """Prompts and completions of random words, of the lengths that the file tells."""
    import numpy as np

    random = np.random.default_rng(0)
    rows = []
    for prompt, completion in json.loads(Path(path).read_text(encoding="utf-8")):
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
    from transformers import AutoConfig

    names = dict(shape)
    special = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
    return AutoConfig.for_model(names.pop("model_type"), **names, **special)


def saved(shape: dict[str, Any], directory: str, device: str) -> str:
    """A directory with these weights and the tokenizer, for what loads from one; made once."""
    path = Path(directory)
    if not (path / "config.json").exists():
        model_of(shape, device).save_pretrained(path)
        tokenizer_of(shape["vocab_size"]).save_pretrained(path)
    return str(path)
