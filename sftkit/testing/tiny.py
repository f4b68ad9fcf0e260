"""Tiny models, tokenizers and configurations, made in memory."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sftkit.config import RunConfig

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = [
    "### Question: What is the capital of France?\n ### Answer: Paris is the capital of France.",
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "### Instruction: Write a function that adds two numbers.\n### Response: def add(a, b):\n    return a + b",
    "user assistant system The quick brown fox jumps over the lazy dog. Hello! How can I help you today?",
]


@functools.cache
def _trained_bpe(vocab_size: int) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    return bpe.to_str()


def tiny_tokenizer(
    *, bos: bool = True, pad: bool = True, chat_template: str | None = None, vocab_size: int = 320
) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with ``<s>``, ``</s>`` and ``<pad>``.

    Args:
        bos: whether it puts ``<s>`` in front, as Llama's does.
        pad: whether it has a pad token.
        chat_template: a Jinja chat template; `CHATML` is one.
        vocab_size: number of tokens, at most.
    """
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer.from_str(_trained_bpe(vocab_size))
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>" if pad else None
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_model(architecture: str = "llama", *, vocab_size: int = 320, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A two-layer model with random weights, made from a config.

    Args:
        architecture: a transformers model type, as ``llama``, ``gpt2``, ``qwen3``, ``gemma2``.
        vocab_size: rows of the embedding.
        seed: of the weights.
        options: further arguments of the config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {"vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    sizes |= {"max_position_embeddings": 256, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    if architecture == "gpt2":
        sizes = {"vocab_size": vocab_size, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
        sizes |= {"bos_token_id": 0, "eos_token_id": 1, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **(sizes | options)))


def tiny_conversations(rows: int = 20, first: int = 0) -> list[dict[str, Any]]:
    """Rows with ``messages``: a question and an answer each.

    Args:
        rows: how many.
        first: the number in the first row, so that held-out rows can differ from training rows.
    """
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {number} plus one?"},
                {"role": "assistant", "content": f"It is {number + 1}."},
            ]
        }
        for number in range(first, first + rows)
    ]


def tiny_config(**sections: Any) -> RunConfig:
    """A `RunConfig` for calling one hook: ``tiny_config(data={"max_length": 64})``; everything else is minimal."""
    from sftkit.config import RunConfig

    base: dict[str, Any] = {"model": {"name": "tiny"}, "data": {"train": "tiny"}}
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return RunConfig(**base)
