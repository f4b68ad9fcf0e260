"""The tokenizers of the benchmark of data preparation: GPT-2's, one like Llama 3's, and Llama 2's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from _data import SHARED

#: How Llama 3 divides text into words, before BPE.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BEGIN, END, TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
VOCABULARY = 16_000  # of the one like Llama 3's, trained in seconds; Llama 3 has 128,000 tokens


def tokenizers(texts: Iterable[str], template: str | None) -> dict[str, Any]:
    """The tokenizers by name.

    Args:
        texts: what the one like Llama 3's is trained on.
        template: the chat template of all of them.
    """
    made = {"GPT-2": _shared("gpt2_tokenizer"), "like Llama 3": llama_3(texts), "Llama 2": _shared("llama2_tokenizer")}
    for name, tokenizer in made.items():
        tokenizer.chat_template = template
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        if name != "Llama 2":
            tokenizer.add_special_tokens({"additional_special_tokens": CHATML_TOKENS})
    return made


def llama_3(texts: Iterable[str]) -> Any:
    """Byte-level BPE with the words, the special tokens and the BOS of Llama 3, trained on some texts."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(ignore_merges=True))
    words = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(8)]
    backend.add_special_tokens([BEGIN, END, "<|start_header_id|>", "<|end_header_id|>", TURN, *reserved])
    first = processors.TemplateProcessing(f"{BEGIN} $A", special_tokens=[(BEGIN, backend.token_to_id(BEGIN))])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), first])
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BEGIN, eos_token=END)


def _shared(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHARED / name)
