"""Tokenizers of every common kind: trained here on the texts of this repository, or read from files."""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
CJK = "[一-龥぀-ゟ゠-ヿ]+"


def texts(limit: int | None = None) -> Iterator[str]:
    """The pages and the code of this repository."""
    files = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("sftkit/**/*.py")])
    for file in files[:limit]:
        yield file.read_text(encoding="utf-8")


def wrapped(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    """As transformers loads it."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def bos(token: str, tokenizer: Tokenizer, end: str = "") -> Any:
    """A post-processor that adds BOS, and EOS if there is an ``end``."""
    known = [(name, tokenizer.token_to_id(name)) for name in (token, end) if name]
    return processors.TemplateProcessing(single=f"{token} $A {end}".strip(), special_tokens=known)


def byte_level(steps: list[Any], size: int, some: list[str], special: list[str], **model: Any) -> Tokenizer:
    """Byte-level BPE, trained."""
    made = Tokenizer(models.BPE(**model))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(some, trainer)
    return made


def bytes_only(add_prefix_space: bool = False) -> Any:
    """The step that writes bytes as characters, and divides nothing."""
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)


def split(pattern: str) -> Any:
    """A step that divides text by a regular expression."""
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def llama_3(some: list[str], size: int) -> Any:
    """In the style of Llama 3: digits in threes, merges ignored for whole tokens, BOS."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    made = byte_level([split(LLAMA_3), bytes_only()], size, some, special, ignore_merges=True)
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), bos(special[0], made)])
    return wrapped(made, bos_token=special[0], eos_token=special[1])


def qwen(some: list[str], size: int) -> Any:
    """In the style of Qwen: NFC, single digits."""
    made = byte_level([split(QWEN), bytes_only()], size, some, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.normalizer = normalizers.NFC()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    made.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return wrapped(made, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def deepseek(some: list[str], size: int) -> Any:
    """In the style of DeepSeek V3: several splits one after another."""
    steps = [split(r"\p{N}{1,3}"), split(CJK), split(LLAMA_3), bytes_only()]
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    made = byte_level(steps, size, some, [begin, end])
    made.post_processor = bos(begin, made)
    return wrapped(made, bos_token=begin, eos_token=end)


def neox(some: list[str], size: int) -> Any:
    """In the style of GPT-NeoX and SmolLM: single digits, then GPT-2's pattern."""
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return wrapped(byte_level(steps, size, some, ["<|endoftext|>"]), eos_token="<|endoftext|>")


def roberta(some: list[str], size: int) -> Any:
    """In the style of RoBERTa: a space in front, and a mask that takes the space before it."""
    made = byte_level([pre_tokenizers.ByteLevel(add_prefix_space=True)], size, some, ["<s>", "</s>", "<pad>"])
    ends = (("</s>", made.token_to_id("</s>")), ("<s>", made.token_to_id("<s>")))
    made.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=True)
    made.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return wrapped(made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>")


def gemma(some: list[str], size: int) -> Any:
    """In the style of Gemma: BPE over text with bytes for the rest, spaces as a sign, none in front."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    lines = [line for text in some for line in text.splitlines()]  # without a limit, words are lines
    words = [
        " ".join(words[at : at + 2]) for line in lines if (words := line.split()) for at in range(0, len(words), 2)
    ]
    made.train_from_iterator(words, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False))
    made = Tokenizer.from_str(_without_special(made.to_str(), "<0x"))
    made.post_processor = bos("<bos>", made)
    return wrapped(made, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


def _without_special(definition: str, start: str) -> str:
    """Added tokens that begin in this way as plain entries of the vocabulary."""
    parts = json.loads(definition)
    parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["content"].startswith(start)]
    return json.dumps(parts)


def bert(some: list[str], size: int) -> Any:
    """In the style of BERT: WordPiece, lower case, accents removed."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    made.train_from_iterator(some, trainer)
    made.post_processor = bos("[CLS]", made, "[SEP]")
    return wrapped(made, bos_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]")


def t5(some: list[str], size: int) -> Any:
    """In the style of T5: Unigram with a space in front of each section, EOS."""
    made = _unigram(some, size, ["<pad>", "</s>", "<unk>"])
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", made.token_to_id("</s>"))]
    )
    return wrapped(made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def xlm_roberta(some: list[str], size: int) -> Any:
    """In the style of XLM-RoBERTa: Unigram after NFKC, with runs of spaces as one."""
    made = _unigram(some, size, ["<s>", "<pad>", "</s>", "<unk>"])
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.post_processor = bos("<s>", made, "</s>")
    return wrapped(made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def _unigram(some: list[str], size: int, special: list[str]) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(some, trainer)
    return made


def clip(some: list[str], size: int) -> Any:
    """In the style of CLIP: lower case, and a mark at the end of each word."""
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Sequence([split(QWEN), bytes_only()])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    made.train_from_iterator(some, trainer)
    return wrapped(made, bos_token="<|startoftext|>", eos_token="<|endoftext|>")


def mistral_files() -> Path | None:
    """The directory of tokenizers in the package mistral-common."""
    spec = importlib.util.find_spec("mistral_common")
    return Path(spec.origin).parent / "data" if spec and spec.origin else None


def mistral_7b(path: Path) -> Any:
    """Mistral 7B's, as its first ``tokenizer.json`` was written: a sign for spaces, put in front by a normalizer."""
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    read = SentencePieceExtractor(str(path)).extract(models.BPE)
    ids, merges = read["vocab"], read["merges"]
    made = Tokenizer(models.BPE(ids, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    made.post_processor = bos("<s>", made)
    return wrapped(made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def tekken(path: Path) -> Any:
    """Mistral Nemo's, from its file of byte sequences in the order of their merges."""
    parts = json.loads(path.read_text(encoding="utf-8"))
    special = parts["config"]["default_num_special_tokens"]
    count = parts["config"]["default_vocab_size"] - special
    ranks = {base64.b64decode(token["token_bytes"]): rank for rank, token in enumerate(parts["vocab"][:count])}
    names = bytes_to_unicode()
    written = {token: "".join(map(names.__getitem__, token)) for token in ranks}
    merges = []
    for token in ranks:
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = sorted(
            (ranks[left], ranks[right], left, right) for left, right in halves if {left, right} <= ranks.keys()
        )
        merges += [(written[left], written[right]) for _, _, left, right in known]
    extra = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<SPECIAL_{number}>" for number in range(5, special))]
    vocabulary = {written[token]: rank + special for token, rank in ranks.items()}
    made = Tokenizer(
        models.BPE(vocabulary | {name: number for number, name in enumerate(extra)}, merges, ignore_merges=True)
    )
    made.pre_tokenizer = pre_tokenizers.Sequence([split(parts["config"]["pattern"]), bytes_only()])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(extra)
    made.post_processor = bos("<s>", made)
    return wrapped(made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TRAINED: dict[str, tuple[str, Callable[[list[str], int], Any]]] = {
    "Llama 3 style": ("byte-level BPE", llama_3),
    "Qwen style": ("byte-level BPE, NFC", qwen),
    "DeepSeek style": ("byte-level BPE, several splits", deepseek),
    "GPT-NeoX style": ("byte-level BPE, digits", neox),
    "RoBERTa style": ("byte-level BPE, space in front", roberta),
    "Gemma style": ("BPE of text, spaces as ▁", gemma),
    "CLIP style": ("BPE, end of word", clip),
    "BERT style": ("WordPiece", bert),
    "T5 style": ("Unigram", t5),
    "XLM-RoBERTa style": ("Unigram, NFKC", xlm_roberta),
}


def real() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Real tokenizers that are there: name, kind, and how to load each."""
    if SHARED.exists():
        yield "GPT-2", "byte-level BPE", lambda: AutoTokenizer.from_pretrained(SHARED / "gpt2_tokenizer")
        yield "Llama 2", "SentencePiece BPE", lambda: AutoTokenizer.from_pretrained(SHARED / "llama2_tokenizer")
    if (files := mistral_files()) is not None:
        yield "Mistral 7B", "SentencePiece BPE, Prepend", lambda: mistral_7b(files / "tokenizer.model.v1")
        yield "Mistral Nemo", "byte-level BPE (tekken)", lambda: tekken(files / "tekken_240911.json")
