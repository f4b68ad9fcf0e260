"""An engine tokenizes as tokenizers does, or it is not used: ids and borders, and what happens at a difference."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import threading
import time

import _tokenizers
import numpy as np
import pytest
from tokenizers import AddedToken

from sftkit import Pipeline, Plugin
from sftkit.api import ConfigError, DataError, Pool, TokenizingEngine, dataclass, hookimpl, prepare_to
from sftkit.data import cache
from sftkit.data.counts import Counts
from sftkit.data.documents import Span
from sftkit.data.encode import Encoder
from sftkit.data.prepare import PreparedData
from sftkit.data.regions import Texts
from sftkit.data.threads import SameThread
from sftkit.data.tokenizing import proven, use
from sftkit.data.tokenizing.backend import backend_of
from sftkit.data.tokenizing.borders import Borders
from sftkit.data.tokenizing.proof import DiffersError, Proof, store_proof
from sftkit.data.tokenizing.proven import ProvenEngine
from sftkit.data.tokenizing.tokens import token_after
from sftkit.data.tokenizing.use import EngineOfRun, Use, prepare_engine
from sftkit.testing import CHATML, plugin_set, tiny_model, tiny_tokenizer

KINDS = ["Llama 3 style", "Qwen style", "DeepSeek style", "GPT-NeoX style", "Gemma style"]
WITHOUT_BORDERS = ["CLIP style", "BERT style", "T5 style", "XLM-RoBERTa style"]
REAL = {name: load for name, _, load in _tokenizers.real()}
ODD = "an odd text"


@dataclasses.dataclass(frozen=True)
class Same(TokenizingEngine):
    """tokenizers itself, which gets texts with ``wrong`` in them wrong, and fails for those with ``fails``."""

    wrong: str = ""
    required: bool = False
    fails: str = ""

    @property
    def name(self):
        return f"same but {self.wrong!r}" if self.wrong else "same indeed"

    def load(self, definition):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(definition)

        def tokenize(texts, special):
            encodings = tokenizer.encode_batch([*texts], add_special_tokens=special)
            ids = [encoding.ids for encoding in encodings]
            for text, some in zip(texts, ids, strict=True):
                if self.fails and self.fails in text:
                    raise OverflowError(self.fails)
                if self.wrong and self.wrong in text:
                    some[-1:] = [5, 5]
            return np.array([token for some in ids for token in some], np.uint32), np.array([*map(len, ids)])

        return tokenize


@dataclass(frozen=True, kw_only=True)
class Engines(Plugin):
    """Offers such an engine."""

    wrong: str = ""
    required: bool = False
    fails: str = ""

    @hookimpl
    def make_tokenizing(self):
        return Same(self.wrong, self.required, self.fails)


def trained(name):
    return _tokenizers.TRAINED[name][1]([*_tokenizers.texts(12)], 700)


def proved(tokenizer, engine=None):
    made = prepare_engine(engine or Same(), tokenizer, tokenizer.backend_tokenizer.to_str(), "plugin test")
    assert isinstance(made, ProvenEngine), made
    return made


@pytest.fixture
def trusted(monkeypatch):
    """Engines are not compared on the corpus, which these tests are not about."""
    monkeypatch.setattr(use, "prove", lambda made, backend: Proof(1))


SENTENCES = [
    "It's  a test:\n\n\tdef f(x): return x  # 1234 5",
    " leading and trailing ",
    "naïve Straße 日本語 😀👩‍👩‍👧 é é ▁x ▁",
    "",
    "x",
]


@pytest.mark.parametrize("name", [*KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in REAL)])
def test_each_character_has_the_token_that_its_offsets_give(name):
    tokenizer = REAL[name]() if name in REAL else trained(name)
    special = [*tokenizer.added_tokens_encoder][:3]
    texts = [*SENTENCES, *(f"{token}a{token} b {token}\n {token}" for token in special)]
    backend = tokenizer.backend_tokenizer
    made = proved(tokenizer)
    assert made.borders is not None
    for around in (True, False):
        tokens, known = made.trial(texts, around, True)
        compared = 0
        for number, text in enumerate(texts):
            encoding = backend.encode(text, add_special_tokens=around)
            for character in range(len(text)) if known[number] else ():
                found = tokens.first_after([number], [character], [-1])
                assert found == [token_after(encoding, character, -1)], (text, character)
                compared += 1
        assert compared > 60
    assert known[[0, 1, 3, 4]].all()


@pytest.mark.parametrize("name", WITHOUT_BORDERS)
def test_tokenizers_that_change_the_text_have_no_known_borders(name):
    tokenizer = trained(name)
    assert Borders.of(json.loads(tokenizer.backend_tokenizer.to_str())) is None
    made = proved(tokenizer)
    encoder = Encoder.of(tokenizer, "tokenizer")
    partly = Texts.pieces_of([[Span("question ", False), Span("answer", True)]])
    whole = Texts.pieces_of([[Span("question answer", True)]])
    assert not encoder.tokenize(next(partly), Use(made)).counts
    assert encoder.tokenize(next(whole), Use(made)).counts == {made.engine.name: 1, "compared": 0}


def test_a_text_whose_bytes_do_not_add_up_is_left_to_tokenizers(trusted):
    tokenizer = trained("Qwen style")
    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True)})
    documents = [[Span("ask <mask>", False), Span(" answer", True)], [Span("a", False), Span("b", True)]]
    texts = next(Texts.pieces_of(documents))
    encoder, made = Encoder.of(tokenizer, "tokenizer"), proved(tokenizer)
    tokens = encoder.tokenize(texts, Use(made))
    assert [*tokens.encodings] == [0]
    assert tokens.counts["compared"] == 1
    ours, plain = encoder.label(texts, tokens).examples, encoder.label(texts, encoder.tokenize(texts)).examples
    assert ours.labels_S.tolist() == plain.labels_S.tolist()


def test_an_engine_can_be_pickled_and_used_again():
    made = pickle.loads(pickle.dumps(proved(tiny_tokenizer())))
    tokens, _ = made.trial(["the quick brown fox"], True, False)
    assert tokens.ids_S.tolist() == tiny_tokenizer()("the quick brown fox")["input_ids"]


@pytest.mark.slow
def test_fastokens_is_proved_for_tokenizers_of_language_models():
    pytest.importorskip("fastokens")
    from sftkit_plugins.fast_tokens.engine import Fastokens

    for name in ("Llama 3 style", "Qwen style", "Gemma style"):
        assert proved(trained(name), Fastokens()).borders is not None
    for name in REAL:
        assert proved(REAL[name](), Fastokens()).borders is not None


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    tiny_model().save_pretrained(directory)
    tiny_tokenizer(chat_template=CHATML).save_pretrained(directory)
    return directory


@pytest.fixture
def train(tmp_path):
    """5,000 rows; a late one, which no sample has, can be odd."""

    def written(odd=None, whole=False):
        rows = [
            {"prompt": f"what is {number}? ", "completion": f"it is {number} in {tmp_path.name}."}
            for number in range(5000)
        ]
        if odd is not None:
            rows[odd]["completion"] = ODD
        if whole:
            rows = [{"text": "".join(row.values())} for row in rows]
        path = tmp_path / "train.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return path

    return written


def prepared(model, train, *plugins, pool=None, **data):
    data = {"train": str(train), **data}
    pipeline = Pipeline(model=str(model), data=data, plugins=[*plugins], train={"max_steps": 1})
    stages = pipeline.stages()
    vocabulary = stages.load_tokenizer()
    return stages.prepare_data(vocabulary.tokenizer, vocabulary.processor, pool)


def rows_of(data):
    return data.train.data.table


def test_rows_tokenized_by_an_engine_are_those_of_tokenizers(model, train):
    path = train()
    plain = prepared(model, path, "no:fast_tokens", cache=False)
    ours = prepared(model, path, Engines(), cache=False)
    assert plain.tokenizing == {}
    counts = ours.tokenizing["train"]
    assert counts["same indeed"] == 5000
    assert 2000 < counts["compared"] < 2200
    assert rows_of(ours).equals(rows_of(plain))
    workers = prepared(model, path, Engines(), cache=False, pool=Pool(SameThread(), 1))
    assert workers.tokenizing == ours.tokenizing
    assert rows_of(workers).equals(rows_of(plain))


def test_a_stream_is_tokenized_by_an_engine_once_it_is_long(model, train, monkeypatch):
    monkeypatch.setattr(use, "WORTHWHILE", 2000)
    path = train()
    streams = [
        prepared(model, path, *plugins, streaming=True, window=3000).train
        for plugins in ([Engines()], ["no:fast_tokens"])
    ]
    rows = [[row["labels"].tolist() for row, _ in zip(stream, range(4900), strict=False)] for stream in streams]
    assert rows[0] == rows[1]
    assert streams[0].tokenizing["same indeed"] >= 2000
    assert PreparedData({"train": streams[0]}, Counts()).tokenized == {"train": streams[0].tokenizing}


def test_few_rows_are_left_to_tokenizers(model, tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' * 20, encoding="utf-8")
    assert prepared(model, path, Engines(wrong="", required=True), cache=False).tokenizing == {}


def late(monkeypatch):
    """Let the engine be compared at the odd text, after thousands of equal ones, and not in the corpus."""
    monkeypatch.setattr(proven, "_sample", lambda texts: [at for at, text in enumerate(texts) if ODD in text])


def test_a_difference_in_the_data_is_reported(model, train, trusted, monkeypatch, caplog):
    late(monkeypatch)
    path = train(odd=4500)
    plain = prepared(model, path, "no:fast_tokens", cache=False)
    with caplog.at_level(logging.INFO, "sftkit"):
        ours = prepared(model, path, Engines(wrong=ODD))
    assert "does not tokenize this data as tokenizers does" in caplog.text
    assert ODD in caplog.text
    assert ours.tokenizing == {}
    assert rows_of(ours).equals(rows_of(plain))
    caplog.clear()
    with caplog.at_level(logging.INFO, "sftkit"):
        again = prepared(model, train(), Engines(wrong=ODD), cache=False)
    assert "tokenizers tokenizes the text, and not same but 'an odd text': ids" in caplog.text
    assert again.tokenizing == {}


def test_rows_of_an_engine_that_was_found_wrong_later_are_prepared_again(model, train, trusted, monkeypatch):
    monkeypatch.setattr(proven, "_sample", lambda texts: [])
    path = train(odd=4400, whole=True)  # of other rows, the bytes would not add up
    first = prepared(model, path, Engines(wrong="odd text"))
    assert first.tokenizing
    wrong = rows_of(first)
    late(monkeypatch)
    other = path.with_name("other.jsonl")
    other.write_text(path.read_text(encoding="utf-8").replace("what is", "how is"), encoding="utf-8")
    prepared(model, other, Engines(wrong="odd text"))
    again = prepared(model, path, Engines(wrong="odd text"))
    assert not again.cached
    assert again.tokenizing == {}
    assert not rows_of(again).equals(wrong)


def only_the_last_is_compared(monkeypatch):
    monkeypatch.setattr(proven, "_sample", lambda texts: [at for at, text in enumerate(texts) if "the last" in text])


def with_two_odd_rows(train, odd):
    """Rows of which the second odd one is compared."""
    path = train(whole=True)
    rows = path.read_text(encoding="utf-8").splitlines()
    for at, text in ((3000, odd), (4500, f"{odd}, the last")):
        rows[at] = json.dumps({"text": text})
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("odd", "pool"), [("odd here", None), ("odd there", Pool(SameThread(), 1))])
def test_rows_before_a_difference_are_tokenized_again(model, train, monkeypatch, trusted, odd, pool):
    only_the_last_is_compared(monkeypatch)
    path = with_two_odd_rows(train, odd)
    ours = prepared(model, path, Engines(wrong=odd), pool=pool)
    assert not ours.cached
    assert rows_of(ours).equals(rows_of(prepared(model, path, "no:fast_tokens", cache=False)))


def test_a_process_that_waits_does_not_take_rows_of_a_refuted_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.Stamp, "awaited", lambda self, lock: True)
    monkeypatch.setattr(cache, "checksum", lambda path: "")
    with pytest.MonkeyPatch.context() as alone:
        alone.setattr(cache.Stamp, "awaited", lambda self, lock: False)
        cache.get("key", {}, lambda directory: {"good": False})
    built = cache.get("key", {}, lambda directory: {"good": True}, lambda info: info["good"])
    assert built[0].info["good"]
    assert not built[1]


def test_rows_of_an_engine_are_prepared_again_without_it(model, train, trusted):
    path = train()
    assert prepared(model, path, Engines()).tokenizing
    assert prepared(model, path, Engines()).cached
    without = prepared(model, path, "no:fast_tokens")
    assert not without.cached
    assert without.tokenizing == {}
    assert prepared(model, path, Engines()).cached


def test_prepared_data_says_how_it_was_tokenized_and_is_refused_once_that_is_refuted(model, train, trusted, tmp_path):
    data = {"train": str(train())}
    made = Pipeline(model=str(model), data=data, plugins=[Engines(wrong="refuted")], train={"max_steps": 1})
    to = str(tmp_path / "prepared")
    manifest = prepare_to(made, to, 1)
    counts = manifest["tokenizing"]["train"]["tokenizing"]
    assert counts["same but 'refuted'"] == 5000
    assert prepared(model, data["train"], prepared=to).tokenizing["train"] == counts
    store_proof(manifest["tokenizing"]["train"]["proof"], Proof(0, "ids 1 instead of 2"))
    with pytest.raises(ConfigError, match="an engine that does not tokenize as tokenizers does: ids 1 instead of 2"):
        prepared(model, data["train"], prepared=to)


def test_an_engine_that_fails_leaves_the_rest_to_tokenizers(model, train, trusted, caplog):
    path = train(odd=4500)
    plain = prepared(model, path, "no:fast_tokens", cache=False)
    ours = prepared(model, path, Engines(fails=ODD))
    assert f"it fails: OverflowError: {ODD}" in caplog.text
    assert 2000 < ours.tokenizing["train"]["same indeed"] < 5000
    assert rows_of(ours).equals(rows_of(plain))
    assert prepared(model, path, Engines(fails=ODD)).cached
    with pytest.raises(DataError, match="it fails: OverflowError"):
        prepared(model, path, Engines(fails=ODD, required=True), cache=False)


def test_an_engine_that_does_not_load_is_tried_again(monkeypatch):
    tokenizer = tiny_tokenizer()
    definition = tokenizer.backend_tokenizer.to_str()
    with monkeypatch.context() as broken:
        broken.setattr(Same, "load", lambda self, definition: 1 / 0)
        made = prepare_engine(Same("no text"), tokenizer, definition, "")
        assert made == "it does not support the tokenizer: division by zero"
    monkeypatch.setattr(use, "prove", lambda made, backend: Proof(1))
    proved(tokenizer, Same("no text"))


def test_a_difference_late_in_a_long_text_is_shown(trusted):
    tokenizer = tiny_tokenizer()
    made = proved(tokenizer, Same("lazy dogma"))
    text = f"{'the fox ' * 200}and a lazy dogma"
    with pytest.raises(DiffersError, match=r"in the text .*lazy dog"):
        made.tokens([text], tokenizer.backend_tokenizer, True, (np.zeros(0, np.int64),) * 2, True)


def test_one_call_does_not_decide_how_special_tokens_are_read():
    tokenizer = tiny_tokenizer()
    tokenizer("a", split_special_tokens=True)
    assert not backend_of(tokenizer).encode_special_tokens


def test_special_tokens_that_are_read_as_text_have_no_engine_and_other_rows(model, train, trusted):
    path = train()
    read = prepared(model, path, Engines())
    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    text = json.dumps({**settings, "split_special_tokens": True})
    (model / "tokenizer_config.json").write_text(text, encoding="utf-8")
    as_text = prepared(model, path, Engines())
    assert read.tokenizing
    assert as_text.tokenizing == {}
    assert not as_text.cached


def test_data_tokenized_already_needs_no_engine(model, tmp_path, monkeypatch):
    path = tmp_path / "ids.jsonl"
    path.write_text('{"input_ids": [5, 6, 7]}\n' * 4100, encoding="utf-8")
    engine = Engines(wrong="jump over", required=True)
    assert prepared(model, path, engine, cache=False, pool=Pool(SameThread(), 1)).tokenizing == {}


def test_the_sources_of_a_stream_share_one_engine(monkeypatch):
    plugins = plugin_set(Engines())
    engine = EngineOfRun(plugins, tiny_tokenizer(), None)
    both, made = threading.Barrier(2), []
    monkeypatch.setattr(use, "prepare_engine", lambda *args: time.sleep(0.01) or made.append(args))

    def find():
        both.wait()
        return engine.found(5000)

    threads = [threading.Thread(target=find) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_required_engine_that_differs_is_an_error(model, train, monkeypatch):
    late(monkeypatch)
    with pytest.raises(DataError, match=f"same but .* does not tokenize this data.*{ODD}"):
        prepared(model, train(odd=4500), Engines(wrong="an odd", required=True), cache=False)
    with pytest.raises(ConfigError, match=r"same but 'jump over' cannot be used.*: ids .* in the text"):
        prepared(model, train(), Engines(wrong="jump over", required=True), cache=False)
