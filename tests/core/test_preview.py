"""The preview shows the collator's batch: which tokens are trained, context or padding, and packed documents."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from sftkit.cli import app
from sftkit.run.rows import read_batch
from sftkit.testing import tiny_tokenizer
from sftkit_commands.preview.page import write_html
from sftkit_commands.preview.text import as_text
from sftkit_plugins.pad import PadCollator

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def example(prompt, completion, tokenizer, packed=False):
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tail = tokenizer(completion, add_special_tokens=False)["input_ids"]
    made = {"input_ids": np.array(head + tail), "labels": np.array([-100] * len(head) + tail)}
    return made | ({"position_ids": np.arange(len(head + tail))} if packed else {})


def preview(*examples, collator=None):
    return read_batch(examples, collator or PadCollator(pad_id=2), tiny_tokenizer())


def test_trained_tokens_are_those_with_labels():
    tokenizer = tiny_tokenizer()
    one = example("what is one plus one? ", "it is two", tokenizer)
    (row,) = preview(one)
    trained = [token for piece in row.pieces if piece.kind == "trained" for token in piece.ids]
    assert trained == [label for label in one["labels"].tolist() if label != -100]
    assert row.count("context") == int((one["labels"] == -100).sum())
    assert "".join(piece.text for piece in row.pieces) == "what is one plus one? it is two"


def test_padding_of_shorter_rows_is_counted():
    tokenizer = tiny_tokenizer()
    short, long = example("a ", "b", tokenizer), example("a longer one ", "with more of it", tokenizer)
    rows = preview(short, long)
    assert rows[0].count("padding") == len(long["input_ids"]) - len(short["input_ids"])
    assert rows[1].count("padding") == 0
    assert "padding" in rows[0].title


def test_documents_of_a_packed_row_are_separated():
    tokenizer = tiny_tokenizer()
    parts = [example(f"question {n} ", "answer", tokenizer, packed=True) for n in range(2)]
    packed = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    longer = {name: np.concatenate([packed[name], parts[0][name]]) for name in packed}
    rows = preview(packed, longer)
    assert [row.documents for row in rows] == [2, 3]
    assert rows[0].count("padding") == len(parts[0]["input_ids"])
    first = next(piece for piece in rows[0].pieces if piece.opens)
    assert first.at == len(parts[0]["input_ids"])
    assert as_text(rows[0], ids=False, colour=False).plain.count("next document") == 1


def test_a_label_that_differs_from_its_token_is_shown():
    def shifting(examples):
        batch = PadCollator(pad_id=2)(examples)
        return {**batch, "labels": batch["labels"].roll(-1, dims=1)}

    (row,) = preview(example("a ", "b c d", tiny_tokenizer()), collator=shifting)
    assert row.count("other") > 0
    assert "trained to predict another token" in row.title


def test_characters_of_several_tokens_are_shown_together():
    tokenizer = tiny_tokenizer()
    (row,) = preview(example("snow ☃ and ", "日本 é", tokenizer))
    assert "".join(piece.text for piece in row.pieces) == "snow ☃ and 日本 é"
    assert any(len(piece.ids) > 1 for piece in row.pieces)


def test_marks_show_what_is_trained_without_colour():
    (row,) = preview(example("question? ", "answer", tiny_tokenizer()))
    assert as_text(row, ids=False, colour=False).plain == "question? ⟦answer⟧"
    assert re.search(r"\[\d+\]", as_text(row, ids=True, colour=False).plain)


def weighted(prompt, completion, weight, tokenizer):
    made = example(prompt, completion, tokenizer)
    return {**made, "loss_weights": np.where(made["labels"] != -100, weight, 1).astype(np.float32)}


def test_weights_are_shown_after_their_tokens_and_counted():
    tokenizer = tiny_tokenizer()
    rows = preview(weighted("question? ", "half", 0.5, tokenizer), example("question? ", "whole", tokenizer))
    shown = [as_text(row, ids=False, colour=False).plain for row in rows]
    assert shown[0].startswith("question? ⟦half⟧×0.5")
    assert shown[1].startswith("question? ⟦whole⟧")
    assert "×" not in shown[1]
    trained = rows[0].count("trained")
    assert f" · {trained} weighted" in rows[0].title
    assert "weighted" not in rows[1].title
    assert "half×0.5" in as_text(rows[0], ids=False, colour=True).plain


def test_the_page_explains_weights_only_if_there_are_any(tmp_path):
    tokenizer = tiny_tokenizer()
    texts = []
    for made in (weighted("question? ", "half", 0.5, tokenizer), example("question? ", "whole", tokenizer)):
        write_html(tmp_path / "page.html", preview(made), "title", ids=False)
        texts.append((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [text.count("<b>×0.5</b>") for text in texts] == [2, 0]  # after the tokens, and in the legend


@pytest.fixture
def page(tmp_path):
    rows = preview(example("<script>alert(1)</script>\n", "<b>bold</b> answer", tiny_tokenizer()))
    path = tmp_path / "deep" / "page.html"
    write_html(path, rows, "a & b", ids=True)
    return path, rows


def test_the_page_escapes_the_data_and_is_self_contained(page):
    text = page[0].read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>bold" not in text
    assert "&lt;" in text
    assert "a &amp; b" in text
    assert not re.search(r"(src|href)\s*=|https?://|@import|url\(", text)


def test_the_page_marks_every_trained_piece(page):
    path, (row,) = page
    trained = sum(piece.kind == "trained" for piece in row.pieces)
    assert len(re.findall(r'<span class="trained" title', path.read_text(encoding="utf-8"))) == trained


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_a_browser_shows_the_page(page, tmp_path):
    path, (row,) = page
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu"]
    screenshot = tmp_path / "page.png"
    dump = subprocess.run([CHROMIUM, *flags, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120)
    assert dump.stdout.count('<span class="trained" title') == sum(p.kind == "trained" for p in row.pieces)
    shot = [CHROMIUM, *flags, f"--screenshot={screenshot}", "--window-size=1000,800", path.as_uri()]
    subprocess.run(shot, check=True, capture_output=True, timeout=120)
    assert screenshot.stat().st_size > 10_000


def test_the_command_previews_the_embedded_data(cli, tmp_path):
    shown = cli("preview", "-p", "packing", "data.max_length=64", "--rows", "2", cwd=tmp_path).stdout
    assert "next document" in shown
    assert "⟦" in shown
    assert "row 2 · 64 tokens" in shown
    assert not list(tmp_path.iterdir())


@pytest.fixture
def preview_command(in_process, tmp_path, monkeypatch):
    """Previews five rows, also as the evaluation set, without a process of its own: the exit code and the output."""
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{n}? ", "completion": "b"}}\n' for n in range(5)))
    monkeypatch.chdir(tmp_path)
    options = ("--model", "demo", "data.train=rows.jsonl", "data.eval=rows.jsonl")
    return lambda *arguments: in_process("preview", *options, *arguments)


def test_the_command_previews_a_named_evaluation_set(preview_command):
    code, output = preview_command("--split", "eval", "--row", "5", "--rows", "1")
    assert code == 0
    assert "row 5" in output


@pytest.mark.parametrize(("arguments", "message"), [(("--split", "evil"), "eval"), (("--row", "999999"), "rows")])
def test_an_unknown_split_or_row_is_an_error(preview_command, arguments, message):
    code, output = preview_command(*arguments)
    assert code == 2
    assert message in output


def test_the_command_needs_no_weights(tmp_path, monkeypatch):
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    LlamaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(
        tmp_path / "model"
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a ", "completion": "b"}')
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["preview", "--model", "model", "--data", "rows.jsonl"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "a⟦ b</s>⟧" in shown.output
