"""GPU figures in the documentation come from the results of a run, or there are none."""

from __future__ import annotations

import importlib
import json
import re

import pytest

QUOTED = re.compile(r"\d[\d,.]* (?:tokens/s|TFLOPs?)\b|\d ?% MFU", re.IGNORECASE)


@pytest.fixture
def script(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "scripts"))
    return importlib.import_module("gpu_figures")


def result(when, rate, card="NVIDIA H100"):
    packages = {"sftkit": "0.1.0", "torch": "2.11.0", "numpy": "2.5.2"}
    runs = [{"when": when, "environment": {"packages": packages}}]
    rates = {"sftkit": 900.0, "sftkit + liger": rate, "trl": 100.0, "trl, liger": 200.0}
    entry = {"status": "done", "mfu": 0.45, "attention": "sdpa"}
    step = {f"8B full packed: {name}": {**entry, "tokens_per_second": value} for name, value in rates.items()}
    step["0.6B full packed: trl"] = {"status": "not reached", "reason": "no time was left"}
    return json.dumps({"card": card, "runs": runs, "step": step})


def test_the_readme_has_the_figures_of_the_results(script):
    text = script.README.read_text(encoding="utf-8")
    assert script.filled(text, script.RESULTS) == text


def test_without_results_the_readme_says_that_nothing_was_measured(script, tmp_path):
    assert "Nothing was measured on a GPU" in script.filled(f"{script.START}\nold\n{script.END}", tmp_path)


def test_figures_are_the_newest_of_each_card_with_versions(script, tmp_path):
    (tmp_path / "gpu-h100-2026-01-02.json").write_text(result("2026-01-02T10:00", 5000.0))
    (tmp_path / "gpu-h100-2026-01-01.json").write_text(result("2026-01-01T10:00", 4000.0))
    (tmp_path / "gpu-toy-cpu-2026-01-03.json").write_text(result("2026-01-03T10:00", 6000.0, "toy-cpu"))
    text = script.block(tmp_path)
    assert text.startswith(
        "Tokens per second on one NVIDIA H100 (sftkit 0.1.0, torch 2.11.0; 2026-01-02; TRL's attention"
    )
    assert "(benchmarks/results/gpu-h100-2026-01-02.md)" in text
    assert "| 8B, full, packed | 5,000 (`sftkit + liger`) | 45.0% | 100 | 200 (`trl, liger`) |" in text
    assert "4,000" not in text
    assert "6,000" not in text
    assert "0.6B" not in text


def test_figures_of_a_gpu_are_quoted_nowhere_else(root, script):
    readme = script.README.read_text(encoding="utf-8")
    outside = readme[: readme.index(script.START)] + readme[readme.index(script.END) :]
    pages = {"README.md": outside}
    pages |= {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in root.glob("docs/**/*.md")}
    assert {name: found for name, text in pages.items() if (found := QUOTED.findall(text))} == {}


def test_the_page_on_scaling_has_what_its_script_computes(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "scripts"))
    page = importlib.import_module("scaling_page")
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, page.RESULTS) == text
    assert page.communication(16, page.SLOW) > page.communication(16, page.FAST)
