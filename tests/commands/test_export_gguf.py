"""GGUF files: their tensors and tokenizer, what is refused, and what llama.cpp makes of them."""

from __future__ import annotations

import importlib.util
import json
import math
from itertools import pairwise

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from sftkit.api import ConfigError, RunError
from sftkit.testing import CHATML, tiny_model, tiny_tokenizer
from sftkit_commands.export.convert import end_ids
from sftkit_commands.export.gguf_check import check_gguf
from sftkit_commands.export.gguf_model import TYPES, architecture_of, rope_factors, write_gguf
from sftkit_commands.export.gguf_tokens import plain_template, vocabulary_of
from sftkit_commands.export.job import Wanted, export

gguf = pytest.importorskip("gguf")
CASES = [("llama", False), ("llama", True), ("qwen2", True), ("qwen3", False)]


def saved(directory, architecture="llama", tokenizer=None, **options):
    """A model whose vectors are not all ones or zeros, saved with a tokenizer."""
    tokenizer = tokenizer or tiny_tokenizer(chat_template=CHATML)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"vocab_size": len(tokenizer) + 3, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    model = tiny_model(architecture, **{**sizes, **ids, **options})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
            else:
                weight.mul_(4)  # so that the most likely token is clear
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model, AutoTokenizer.from_pretrained(directory)


def written(directory, model, tokenizer, kind="f32"):
    vocabulary = vocabulary_of(tokenizer, model.config.vocab_size, end_ids(model, tokenizer))
    path = directory / f"model-{kind}.gguf"
    write_gguf(directory, path, kind, vocabulary, "tiny")
    return path, vocabulary


@pytest.mark.parametrize(("architecture", "tied"), CASES)
def test_a_file_has_every_tensor_and_the_tokenizer_in_every_type(architecture, tied, tmp_path):
    model, tokenizer = saved(tmp_path, architecture, tie_word_embeddings=tied)
    for kind in TYPES:
        path, vocabulary = written(tmp_path, model, tokenizer, kind)
        number = check_gguf(path, tmp_path, architecture_of(model.config), kind, vocabulary)
        assert number == len(model.state_dict()) - tied
    reader = gguf.GGUFReader(tmp_path / "model-f32.gguf")
    assert reader.fields["general.architecture"].contents() == architecture
    assert reader.fields[f"{architecture}.attention.head_count_kv"].contents() == 2
    assert reader.fields["tokenizer.ggml.tokens"].contents()[:3] == ["<s>", "</s>", "<pad>"]
    assert reader.fields["tokenizer.ggml.token_type"].contents()[-2:] == [5, 5]  # rows without a token


def test_queries_of_llama_are_interleaved_and_those_of_qwen_are_not(tmp_path):
    for architecture in ("llama", "qwen3"):
        (tmp_path / architecture).mkdir()
        model, tokenizer = saved(tmp_path / architecture, architecture)
        path, _ = written(tmp_path / architecture, model, tokenizer)
        read = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
        ours = model.model.layers[1].self_attn.k_proj.weight.detach()
        theirs = read["blk.1.attn_k.weight"]
        order = [8 * half + pair for pair in range(8) for half in range(2)] if architecture == "llama" else range(16)
        for head in range(2):
            assert torch.equal(theirs[16 * head : 16 * head + 16], ours[16 * head : 16 * head + 16][list(order)])


def test_a_file_that_differs_is_refused(tmp_path):
    model, tokenizer = saved(tmp_path)
    path, vocabulary = written(tmp_path, model, tokenizer)
    damaged = bytearray(path.read_bytes())
    damaged[-2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(RunError, match="differs from the model when it is read back"):
        check_gguf(path, tmp_path, architecture_of(model.config), "f32", vocabulary)


def test_the_frequencies_of_llama_3_are_scaled_as_transformers_does():
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = tiny_model(head_dim=64, rope_parameters=rope, max_position_embeddings=131072).config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(plain / torch.tensor(rope_factors(architecture_of(config))), theirs)


def test_yarn_is_written_with_what_its_attention_differs_by(tmp_path):
    model = tiny_model(head_dim=32, hidden_size=128, rope_parameters={**YARN, "attention_factor": 1.5})
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    path, _ = written(tmp_path, model, tokenizer)
    fields = gguf.GGUFReader(path).fields
    scaling = {name: fields[f"llama.rope.scaling.{name}"].contents() for name in ("type", "factor", "attn_factor")}
    assert (scaling["type"], scaling["factor"]) == ("yarn", 4)
    assert scaling["attn_factor"] == pytest.approx(1.5 / (0.1 * math.log(4) + 1))  # llama.cpp multiplies the rest
    assert fields["llama.rope.scaling.original_context_length"].contents() == 64


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
REFUSED = {
    "beta_fast 8, which llama.cpp does not read": {"rope_parameters": {**YARN, "beta_fast": 8}},
    "by llama3 only for Llama": {"architecture": "qwen3", "rope_parameters": LLAMA3},
    "scaled by dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
    "the types are: llama, qwen2, qwen3": {"architecture": "gpt2"},
    "the activation is gelu": {"hidden_act": "gelu"},
    "not as wide as the model": {"architecture": "qwen2", "head_dim": 8},
    "uses a sliding window": {"architecture": "qwen2", "use_sliding_window": True},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(message):
    options = {**REFUSED[message]}
    with pytest.raises(ConfigError, match=message):
        architecture_of(AutoConfig.for_model(options.pop("architecture", "llama"), **options))


def test_tokenizers_that_split_text_otherwise_are_refused():
    from tokenizers import Regex, pre_tokenizers

    tokenizer = tiny_tokenizer()
    split = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    with pytest.raises(ConfigError, match="not known to be one of"):
        vocabulary_of(tokenizer, 320, [1])


def test_the_template_of_a_file_marks_no_trained_parts_and_renders_the_same():
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    before = tokenizer.apply_chat_template(messages, tokenize=False)
    tokenizer.chat_template = plain_template(CHATML)
    assert "generation %}" not in tokenizer.chat_template.replace("add_generation_prompt %}", "")
    assert tokenizer.apply_chat_template(messages, tokenize=False) == before


def sentencepiece(text, vocabulary):
    """Tokens of text as SentencePiece makes them: neighbours with the highest score are merged, from the left."""
    scores = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    known = {token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == 1}
    pieces = list("▁" + text.replace(" ", "▁"))
    while pairs := [(-scores[a + b], at) for at, (a, b) in enumerate(pairwise(pieces)) if a + b in known]:
        at = min(pairs)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces


def test_the_scores_of_llama_2_merge_as_its_tokenizer_does(real_data):
    tokenizer = AutoTokenizer.from_pretrained(real_data / "llama2_tokenizer")
    vocabulary = vocabulary_of(tokenizer, 32000, [2])
    assert (vocabulary.model, vocabulary.types[:4], vocabulary.space_prefix) == ("llama", (2, 3, 3, 6), True)
    rows = json.loads((real_data / "alpaca_en_demo.json").read_text(encoding="utf-8"))[:15]
    for row in rows:
        text = row["output"][:120].replace("\n", " ")
        if text.isascii():
            assert sentencepiece(text, vocabulary) == tokenizer.tokenize(text)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["gpt2_tokenizer", "llama2_tokenizer"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_llama_cpp_predicts_the_same_tokens(architecture, tokens, real_data, tmp_path):
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("needs llama-cpp-python")
    saved(tmp_path / "model", architecture, AutoTokenizer.from_pretrained(real_data / tokens))
    rows = json.loads((real_data / "alpaca_en_demo.json").read_text(encoding="utf-8"))[:8]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": row["output"][:300]}) for row in rows))
    report, _ = export(Wanted(str(tmp_path / "model"), tmp_path / "out", gguf=True, data=str(tmp_path / "rows.jsonl")))
    assert report.proof["llama.cpp"].agreement == 1
    assert report.proof["llama.cpp"].relative < 1e-3
    assert report.gguf["rows_tokenized_alike"] == report.gguf["rows"] == 8
