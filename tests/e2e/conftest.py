"""What the scripts of TRL's page name, as local directories: tiny models, tokenizers and data under their hub names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sftkit.memory.unloaded import UnknownMemoryError
from sftkit.testing import tiny_model, tiny_tokenizer

#: The template of zephyr-7b-beta, without marks around what the assistant writes.
ZEPHYR = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def opt() -> tuple[Any, Any]:
    """As facebook/opt-350m: ``</s>`` is both BOS and EOS and begins each text; norms come after the layers."""
    from tokenizers import processors

    tokenizer = tiny_tokenizer(bos=False)
    tokenizer.bos_token = "</s>"
    begins = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = begins
    ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False, "max_position_embeddings": 2048}
    return tiny_model("opt", **sizes, **ids), tokenizer


def gpt_neo() -> tuple[Any, Any]:
    """As EleutherAI/gpt-neo-125m: no pad token, no BOS, layers with local attention."""
    kinds = [[["global", "local"], 1]]
    sizes = {"num_layers": 2, "num_heads": 4, "attention_types": kinds, "max_position_embeddings": 2048}
    return tiny_model("gpt_neo", **sizes, pad_token_id=None), tiny_tokenizer(bos=False, pad=False)


def mistral() -> tuple[Any, Any]:
    """As mistralai/Mistral-7B-v0.1: ``<s>`` begins each text, a sliding window, no pad token."""
    return tiny_model("mistral", max_position_embeddings=4096, pad_token_id=None), tiny_tokenizer(pad=False)


def zephyr() -> tuple[Any, Any]:
    """As HuggingFaceH4/zephyr-7b-beta: a Mistral with a chat template."""
    return mistral()[0], tiny_tokenizer(chat_template=ZEPHYR)


def llama(tokenizer: Path) -> tuple[Any, Any]:
    """As meta-llama/Llama-2-7b-hf, with its real tokenizer."""
    from transformers import AutoTokenizer

    ids = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    return tiny_model("llama", vocab_size=32_000, **ids), AutoTokenizer.from_pretrained(tokenizer)


def reviews() -> Iterator[dict[str, Any]]:
    """Rows as in stanfordnlp/imdb."""
    for number in range(16):
        good = number % 2
        said = "I would watch it again. " if good else "I left before the end. "
        yield {"text": f"Film {number} has a plot and {number + 2} actors. " + said * (1 + number % 3), "label": good}


def code(real_data: Path) -> Iterator[dict[str, Any]]:
    """Rows as in lucasmccabe-lmi/CodeAlpaca-20k: real ones if they are available."""
    file = real_data / "code_alpaca_2k.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    short = [row for row in rows if 0 < len(row["output"]) < 120 and len(row["instruction"]) < 120][:16]
    made = ({"instruction": f"Add 1 to {n}.", "input": "", "output": f"{n} + 1 = {n + 1}"} for n in range(16))
    yield from short or made


def guanaco() -> Iterator[dict[str, Any]]:
    """Rows as in timdettmers/openassistant-guanaco: one or two turns."""
    for number in range(16):
        turns = [f"### Human: What is {number} plus {add}?### Assistant: It is {number + add}." for add in (1, 2)]
        yield {"text": "".join(turns[: 1 + number % 2])}


def dialogues() -> Iterator[dict[str, Any]]:
    """Rows with a dialogue, as TRL's page shows it for Llama 2."""
    for number in range(16):
        yield {"text": f"### User: Hello {number}\n\n### Assistant: Hi, how can I help you?"}


def messages() -> Iterator[dict[str, Any]]:
    """Rows as in philschmid/dolly-15k-oai-style."""
    for number in range(40):
        turns = ("system", "You are helpful"), ("user", f"What is {number} + 1?"), ("assistant", f"It is {number + 1}.")
        yield {"messages": [{"role": role, "content": content} for role, content in turns]}


def questions() -> Iterator[dict[str, Any]]:
    """Rows with a question and an answer."""
    for number in range(40):
        yield {"question": f"What is {number} plus one?", "answer": f"It is {number + 1}."}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


@pytest.fixture
def no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs do not estimate their memory, which takes as long as all else in a run of a tiny model."""

    def unknown(run: object) -> None:
        raise UnknownMemoryError("not estimated in this test")

    monkeypatch.setattr("sftkit_plugins.checks.memory.estimate_run", unknown)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A directory with what the scripts of TRL's page name, under the hub names."""
    directory = tmp_path_factory.mktemp("hub")
    real_data = root.parent / "shared" / "data"
    models = {
        "facebook/opt-350m": opt(),
        "EleutherAI/gpt-neo-125m": gpt_neo(),
        "mistralai/Mistral-7B-v0.1": mistral(),
        "HuggingFaceH4/zephyr-7b-beta": zephyr(),
    }
    if (real_data / "llama2_tokenizer").is_dir():
        models["meta-llama/Llama-2-7b-hf"] = llama(real_data / "llama2_tokenizer")
    for name, parts in models.items():
        for part in parts:
            part.save_pretrained(directory / name)
    data = {
        "stanfordnlp/imdb/train.jsonl": reviews(),
        "lucasmccabe-lmi/CodeAlpaca-20k/train.jsonl": code(real_data),
        "timdettmers/openassistant-guanaco/train.jsonl": guanaco(),
        "philschmid/dolly-15k-oai-style/train.jsonl": messages(),
        "path/to/dataset.jsonl": messages(),
        "questions.jsonl": questions(),
        "dialogues.jsonl": dialogues(),
    }
    for name, rows in data.items():
        write_rows(directory / name, rows)
    return directory


@pytest.fixture
def workplace(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which hub names lead to local directories."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hub / "cache")
    for entry in hub.iterdir():
        if entry.name != "cache":
            os.symlink(entry, tmp_path / entry.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained_texts() -> Callable[[Any], list[str]]:
    """The trained part of each row of a trainer, sorted."""

    def texts(trainer: Any) -> list[str]:
        found = []
        for batch in trainer.get_train_dataloader():
            found += [trainer.tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]]
        return sorted(found)

    return texts


@pytest.fixture
def has_learnt() -> Callable[[Any, str], bool]:
    """Whether a trainer's weights differ from those of the checkpoint it started from."""
    from transformers import AutoModelForCausalLM

    def differs(trainer: Any, name: str) -> bool:
        before = AutoModelForCausalLM.from_pretrained(name).state_dict()
        after = trainer.model.state_dict()
        assert trainer.state.log_history[-1]["train_loss"] > 0
        return any(not value.equal(after[key]) for key, value in before.items() if key in after)

    return differs


@pytest.fixture
def saved_adapter() -> Callable[[Any], dict[str, Any]]:
    """The weights of the adapter that a trainer's ``save_model`` writes."""
    from safetensors.torch import load_file

    def adapter(trainer: Any) -> dict[str, Any]:
        trainer.save_model()
        directory = Path(trainer.args.output_dir)
        assert not (directory / "model.safetensors").exists()
        return load_file(directory / "adapter_model.safetensors")

    return adapter
