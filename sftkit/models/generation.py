"""Greedy completions that leave the model and the random state as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from sftkit.models.inspect import evaluating, position_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def complete(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int,
    batch_size: int = 32,
    before_batch: Callable[[], None] | None = None,
) -> list[str]:
    """Greedy completion of each prompt: text without special tokens and outer blanks.

    A completion ends at the tokenizer's or the model's end token, after ``max_new_tokens``, or where the model's
    positions end. Modes of the modules, gradients and random state are left as they were.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        prompts: token ids.
        max_new_tokens: where a completion ends at the latest.
        batch_size: prompts that are completed together, padded on the left; those of similar length are together.
        before_batch: called before each batch; what it raises ends the completing.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    completions = [""] * len(prompts)
    with evaluating(model):
        for low in range(0, len(order), batch_size):
            if before_batch is not None:
                before_batch()
            batch = order[low : low + batch_size]
            texts = _complete_batch(model, tokenizer, [prompts[index] for index in batch], max_new_tokens)
            for index, text in zip(batch, texts, strict=True):
                completions[index] = text.strip()
    return completions


def _complete_batch(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], max_new_tokens: int
) -> list[str]:
    device = next(model.get_input_embeddings().parameters()).device
    width = max(map(len, prompts))
    room = position_limit(model.config)
    new = max_new_tokens if room is None else min(max_new_tokens, room - width)
    if new < 1:
        return [""] * len(prompts)
    ends = end_token_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padding on the left: a completion continues the last column
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    settings = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, max_new_tokens=new, pad_token_id=pad, eos_token_id=ends or None
    )
    made = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings)
    return tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)


def end_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a completion: EOS, those of the model's generation config, and the token after a turn.

    The token after a turn is often none of the others: base models of Qwen have ``<|endoftext|>`` as EOS, and a
    template that writes ``<|im_end|>``.
    """
    own = getattr(model.generation_config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, turn_end_id(tokenizer), *(own if isinstance(own, list) else [own])]
    return sorted({int(token) for token in ids if token is not None})


def turn_end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes directly after an answer; None without such a token or template.

    It is found by rendering a question and its answer.
    """
    from jinja2 import TemplateError

    answer = "the answer of the assistant"
    messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TemplateError, TypeError, ValueError):  # no template, or one for messages of another form
        return None
    rest = text.rpartition(answer)[2].lstrip()
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = max((token for token in special if rest.startswith(token)), key=len, default=None)
    return None if found is None else special[found]
