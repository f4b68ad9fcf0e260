"""Spans are mapped to tokens by characters; an independent implementation gives the same ids and labels."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from sftkit.data.documents import Span
from sftkit.data.encode import encode
from sftkit.testing import CHATML, tiny_tokenizer

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def rows(documents, tokenizer, special=True):
    made = encode(documents, tokenizer, "bos_eos" if special else "none")
    return [(made.ids_S[a:b].tolist(), made.labels_S[a:b].tolist()) for a, b in pairwise(made.offsets_N1)]


def reference(document, tokenizer):
    """Token by token, with the tokenizer's public call: a token is trained if its last character is."""
    text = "".join(span.text for span in document)
    flags = [span.trained for span in document for _ in span.text]
    out = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = list(out["input_ids"]), list(out["offset_mapping"])
    labels = [i if end and flags[end - 1] else -100 for i, (_, end) in zip(ids, offsets, strict=True)]
    if ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
        labels.append(tokenizer.eos_token_id if flags[-1] else -100)
    labels[0] = -100
    return ids, labels


def real_tokenizer(name):
    if not SHARED.exists():
        pytest.skip("the shared data is not beside the project")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHARED / name)


def test_trained_spans_and_the_eos_after_them_have_labels():
    tokenizer = tiny_tokenizer()
    ((ids, labels),) = rows([[Span("### Question: a\n", False), Span("Paris", True)]], tokenizer)
    trained = [token for token in labels if token != -100]
    assert tokenizer.decode(trained) == "Paris</s>"
    assert ids[0] == tokenizer.bos_token_id


def test_eos_is_not_trained_after_an_untrained_end():
    tokenizer = tiny_tokenizer()
    ((ids, labels),) = rows([[Span("Paris", True), Span(" is", False)]], tokenizer)
    assert ids[-1] == tokenizer.eos_token_id
    assert labels[-1] == -100


def test_documents_have_one_bos_and_one_eos():
    tokenizer = tiny_tokenizer()
    ((ids, _),) = rows([[Span("<s>Paris</s>", True)]], tokenizer)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.eos_token_id) == 1


def test_a_token_across_a_boundary_belongs_to_the_later_span():
    tokenizer = tiny_tokenizer()
    whole = tokenizer("Paris", add_special_tokens=False)["input_ids"]
    ((ids, labels),) = rows([[Span("x Par", False), Span("is", True), Span(" the", False)]], tokenizer, special=False)
    for token, label in zip(ids, labels, strict=True):
        piece = tokenizer.decode([token])
        if piece.endswith("is") or piece in ("i", "s"):
            assert label == token
        if piece.strip() in ("the", "t", "h", "e", "th", "he"):
            assert label == -100
    assert len(whole) >= 1


def test_the_first_token_of_a_document_is_never_trained():
    ((_, labels),) = rows([[Span("Paris is", True)]], tiny_tokenizer(bos=False))
    assert labels[0] == -100
    assert labels[1] != -100


def test_a_document_of_a_chat_template_gets_no_special_tokens():
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    ((ids, _),) = rows([[Span("Hello", True)]], tokenizer, special=False)
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.eos_token_id not in ids


def test_an_empty_document_has_no_trained_token():
    assert all(label == -100 for _, labels in rows([[Span("", True)]], tiny_tokenizer()) for label in labels)


def test_spaces_at_a_boundary_are_labelled_by_their_span():
    tokenizer = tiny_tokenizer()
    documents = [[Span("a:", False), Span("    b", True)], [Span("a:    ", False), Span("b", True)]]
    for document, (ids, labels) in zip(documents, rows(documents, tokenizer), strict=True):
        assert (ids, labels) == reference(document, tokenizer)


@pytest.mark.parametrize("name", ["llama2_tokenizer", "gpt2_tokenizer"])
def test_labels_equal_an_independent_implementation_on_real_rows(name):
    tokenizer = real_tokenizer(name)
    data = json.loads((SHARED / "code_alpaca_2k.json").read_text())[:400]
    documents = [
        [Span(f"### Q: {row['instruction']} {row['input']}\n### A:", False), Span(f" {row['output']}", True)]
        for row in data
    ]
    for document, found in zip(documents, rows(documents, tokenizer), strict=True):
        assert found == reference(document, tokenizer)


def test_special_tokens_can_be_those_of_the_tokenizer_or_none():
    """A tokenizer may add nothing, only BOS, or BOS and EOS; an EOS that it adds is trained."""
    from tokenizers.processors import TemplateProcessing

    document = [[Span("Paris is ", False), Span("a city", True)]]
    tokenizer = tiny_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    inner = tokenizer("Paris is a city", add_special_tokens=False)["input_ids"]
    assert encode(document, tokenizer, "none").ids_S.tolist() == inner
    pair = [(tokenizer.bos_token, bos), (tokenizer.eos_token, eos)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A {tokenizer.eos_token}", special_tokens=pair
    )
    made = encode(document, tokenizer, "tokenizer")
    assert made.ids_S.tolist() == [bos, *inner, eos]
    assert made.labels_S.tolist()[-1] == eos
    assert encode(document, tokenizer, "none").ids_S.tolist() == inner
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=pair[:1]
    )
    assert encode(document, tokenizer, "tokenizer").ids_S.tolist() == [bos, *inner]


def labelled(document, tokenizer, special_tokens="bos_eos"):
    """The text of the tokens, with ⟦ ⟧ around those that are trained."""
    made = encode([document], tokenizer, special_tokens)
    names = tokenizer.convert_ids_to_tokens(made.ids_S)
    pieces = zip(names, made.labels_S != -100, strict=True)
    return "".join(f"⟦{name}⟧" if trained else name for name, trained in pieces).replace("⟧⟦", "")


def with_suffix(tokenizer):
    """The tokenizer, which now adds its EOS itself."""
    from tokenizers.processors import TemplateProcessing

    pair = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=pair)
    return tokenizer


@pytest.mark.parametrize("make", [tiny_tokenizer, lambda: with_suffix(tiny_tokenizer())], ids=["BOS", "BOS and EOS"])
@pytest.mark.parametrize(
    ("spans", "right"),
    [
        ([Span("Hi</s>", True)], "<s>⟦Hi</s>⟧"),
        ([Span("Hi</s>\n", True)], "<s>⟦Hi</s>⟧Ċ"),
        ([Span("Hi</s></s>", True)], "<s>⟦Hi</s>⟧"),
        ([Span("Hi</s>\n</s>\n", True)], "<s>⟦Hi</s>⟧ĊĊ"),
        ([Span("Hi</s>\nHi", True)], "<s>⟦Hi</s>ĊHi</s>⟧"),
        ([Span("Hi", False), Span("Hi</s>\n", True)], "<s>Hi⟦Hi</s>⟧Ċ"),
        ([Span("Hi", True), Span("Hi</s>\n", False)], "<s>⟦Hi⟧Hi</s>Ċ"),
        ([Span("Hi", False), Span("Hi</s>", True, 0.5), Span("\n", False)], "<s>Hi⟦Hi</s>⟧Ċ"),
    ],
)
def test_a_text_that_ends_with_eos_gets_no_second_one(make, spans, right):
    assert labelled(spans, make()) == right


def test_an_own_eos_keeps_its_weight():
    made = encode([[Span("Hi", False), Span("Hi</s>\n", True, 0.5)]], tiny_tokenizer(), "bos_eos")
    trained = made.labels_S != -100
    assert made.labels_S[trained][-1] == tiny_tokenizer().eos_token_id
    assert set(made.weights_S[trained].tolist()) == {0.5}


def test_a_token_that_is_bos_and_eos_begins_a_text_and_ends_it():
    tokenizer = tiny_tokenizer(bos=False)
    tokenizer.bos_token = tokenizer.eos_token
    assert labelled([Span("</s>Hi", True)], tokenizer) == "</s>⟦Hi</s>⟧"
    assert labelled([Span("</s>Hi</s> \n", True)], tokenizer) == "</s>⟦Hi</s>⟧ĠĊ"


def test_documents_beside_one_with_its_own_eos_are_unchanged():
    tokenizer = tiny_tokenizer()
    documents = [[Span("Paris", True)], [Span("Hi</s></s>\n", True)], [Span("", True)], [Span("city", True)]]
    together = rows(documents, tokenizer)
    assert together == [rows([document], tokenizer)[0] for document in documents]


def test_eos_text_is_only_text_where_the_tokenizer_does_not_read_it_as_a_token():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.encode_special_tokens = True
    made = encode([[Span("Hi</s>", True)]], tokenizer, "bos_eos")
    assert made.ids_S.tolist().count(tokenizer.eos_token_id) == 1
    assert made.ids_S[-1] == made.labels_S[-1] == tokenizer.eos_token_id
