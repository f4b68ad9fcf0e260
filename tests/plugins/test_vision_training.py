"""Training with plugin vision: losses, frozen parts, adapters, saved files, and the commands."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from typer.testing import CliRunner
from vision_models import drawn_image, tiny_vision_model

from sftkit import Pipeline
from sftkit.cli import app
from sftkit.models.inspect import parts_of
from sftkit.training.batches import Batch, micro_batches
from sftkit.training.head import LossHead
from sftkit.training.loss import HeadLoss
from sftkit_plugins.vision import Vision

KINDS = ("llava", "qwen2_vl", "idefics3")
COLOURS = ("red", "blue")
#: The first version of transformers that loads the saved processor without torchvision.
RELOADED = {"llava": "5.12", "qwen2_vl": "5.19", "idefics3": "5.18"}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


def row(colour: str, number: int = 1, width: int = 40) -> dict[str, Any]:
    content: list[dict[str, Any]] = [*[{"type": "image"}] * number, {"type": "text", "text": "What?"}]
    answer = [{"type": "text", "text": colour}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"images": [drawn_image(colour, (width + 20 * at, 40)) for at in range(number)], "messages": messages}


def held_out() -> list[dict[str, Any]]:
    """Rows like those that are trained, with images of another size."""
    return [row(colour, width=50) for colour in COLOURS]


def run(kind: str, directory: Path, plugins: Any = (), rows: Any = None, **train: Any) -> Any:
    model, processor = tiny_vision_model(kind)
    settings = {"output_dir": str(directory), "max_steps": 8, "learning_rate": 3e-3, "eval_on_start": True}
    settings |= {"per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
    rows = rows or [row(colour) for colour in COLOURS] * 4
    data = {"model": model, "data": rows, "eval": held_out(), "tokenizer": processor}
    return Pipeline(**data, plugins=["vision", *plugins], train={**settings, **train}).run()


def a_batch(kind: str, numbers: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
    model, processor = tiny_vision_model(kind)
    rows = [row(colour, number) for colour, number in zip(COLOURS * 3, numbers, strict=False)]
    ready = Pipeline(model=model, data=rows, tokenizer=processor, plugins=["vision"]).prepare()
    return model, ready.collator([ready.data.train[at] for at in range(len(rows))])


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_those_of_the_model(kind: str) -> None:
    model, batch = a_batch(kind, (1, 2, 0))
    inputs = {name: value for name, value in batch.items() if name != "row_shares"}
    model.train()
    model(**inputs).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    own = model(**inputs).loss
    model.zero_grad()
    known = Batch.of(dict(batch))
    head = LossHead(model, HeadLoss())
    with head.installed():
        total, _, outputs = head.ask(model, known.inputs, known.targets)
        (total / len(known.targets.tokens_K)).backward()
    assert outputs["logits"] is None  # only computed for trained positions
    torch.testing.assert_close(total / len(known.targets.tokens_K), own)
    for name, parameter in model.named_parameters():
        if expected[name] is not None:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_split_by_rows_with_their_images(kind: str) -> None:
    model, batch = a_batch(kind, (2, 0, 1))
    head = LossHead(model, HeadLoss())
    losses = []
    with head.installed(), torch.no_grad():
        for size in (3, 2, 1):
            parts = [Batch.of(part) for part in micro_batches(dict(batch), size)]
            losses.append(torch.stack([head.ask(model, each.inputs, each.targets)[0] for each in parts]).sum())
    assert len({*map(len, [list(micro_batches(dict(batch), size)) for size in (3, 2, 1)])}) == 3
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


@pytest.mark.parametrize(
    "kind", [kind if kind == "llava" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_the_saved_model_recognises_the_trained_images(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    result = run(kind, tmp_path / "run", dataloader_num_workers=1, max_steps=60, learning_rate=1e-2)
    assert result.metrics["eval_loss"] < 0.2 * result.metrics["eval_loss_before"]
    if Version(transformers.__version__) < Version(RELOADED[kind]) and not find_spec("torchvision"):
        pytest.skip(f"transformers before {RELOADED[kind]} does not load this image processor without torchvision")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    processor = AutoProcessor.from_pretrained(tmp_path / "run")
    answers = []
    for colour in COLOURS:
        prompt = row(colour)["messages"][:1]
        text = processor.apply_chat_template(prompt, add_generation_prompt=True)
        inputs = processor(text=[text], images=[[drawn_image(colour)]], return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        answers.append(processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    assert [answer[: len(colour)] for answer, colour in zip(answers, COLOURS, strict=True)] == list(COLOURS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ({}, {"language", "projector"}),
        ({"freeze_projector": True}, {"language"}),
        ({"freeze_vision": False}, {"language", "projector", "vision"}),
    ],
)
def test_parts_are_frozen_by_the_options(kind: str, options: dict[str, bool], moved: set[str], tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in tiny_vision_model(kind)[0].named_parameters()}
    model, processor = tiny_vision_model(kind)
    train = {"output_dir": str(tmp_path), "max_steps": 2, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
    plugins = [{"vision": options}]
    result = Pipeline(model=model, data=[row("red")], tokenizer=processor, plugins=plugins, train=train).run()
    parts = parts_of(result.model, Vision().projector_modules)
    changed = {
        parts[name.rpartition(".")[0]]
        for name, value in result.model.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert changed == moved


def test_without_names_of_projector_modules_the_whole_tower_is_vision() -> None:
    model, _ = tiny_vision_model("qwen2_vl")
    parts = parts_of(model)
    assert {part for name, part in parts.items() if ".visual." in name} == {"vision"}
    assert set(parts.values()) == {"language", "vision"}


@pytest.mark.parametrize("part", ["language", "vision", "both"])
def test_adapters_are_added_to_the_chosen_part(part: str, tmp_path: Path) -> None:
    result = run("qwen2_vl", tmp_path / "run", [{"peft": {"part": part, "r": 4}}], max_steps=2)
    trained = {name for name, value in result.model.named_parameters() if value.requires_grad}
    assert {"lora" in name for name in trained} == {True}
    found = {"vision" if ".visual." in name else "language" for name in trained}
    assert found == ({"language", "vision"} if part == "both" else {part})
    assert not any(".merger." in name for name in trained)  # which is the projector, though inside the vision tower


@pytest.mark.slow
def test_an_adapter_is_saved_with_the_processor_and_trained_further(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoProcessor

    base, processor = tiny_vision_model()
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    rows = [row(colour) for colour in COLOURS] * 4
    train = {"max_steps": 6, "learning_rate": 3e-3, "report_to": "none", "use_cpu": True, "save_strategy": "steps"}
    train |= {"eval_on_start": True, "save_steps": 6, "per_device_train_batch_size": 4}
    data = {"data": rows, "eval": held_out()}
    first = Pipeline(
        str(tmp_path / "base"),
        **data,
        plugins=["vision", {"peft": {"r": 4}}],
        train={**train, "output_dir": str(tmp_path / "one")},
    ).run()
    assert type(AutoProcessor.from_pretrained(tmp_path / "one")).__name__ == "LlavaProcessor"
    assert (tmp_path / "one" / "checkpoint-6" / "processor_config.json").is_file()
    assert isinstance(PeftModel.from_pretrained(base, tmp_path / "one"), PeftModel)
    again = Pipeline(
        str(tmp_path / "one"), **data, plugins=["vision"], train={**train, "output_dir": str(tmp_path / "two")}
    ).run()
    assert again.metrics["eval_loss_before"] == pytest.approx(first.metrics["eval_loss"], rel=1e-4)
    assert again.metrics["eval_loss"] < first.metrics["eval_loss"]


def files(directory: Path, number: int = 8) -> list[str]:
    """Arguments of the command for a saved model and a file of rows with images in a folder."""
    model, processor = tiny_vision_model()
    model.save_pretrained(directory / "model")
    processor.save_pretrained(directory / "model")
    (directory / "images").mkdir()
    lines = []
    for at in range(number):
        colour = COLOURS[at % 2]
        drawn_image(colour, (40 + at, 40)).save(directory / "images" / f"{at}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": colour}]
        lines.append(json.dumps({"image": f"{at}.png", "conversations": turns}))
    (directory / "train.jsonl").write_text("\n".join(lines), "utf-8")
    plugin = f"vision:image_folder={directory / 'images'}"
    names = ["-m", str(directory / "model"), "-d", str(directory / "train.jsonl"), "-p", plugin]
    return [*names, "train.use_cpu=true", "train.report_to=none", "data.eval=0.25"]


def test_the_command_trains_on_files_and_saves_model_and_processor(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    arguments = [*files(tmp_path), "-o", str(tmp_path / "out"), "train.max_steps=30", "train.learning_rate=0.01"]
    result = CliRunner().invoke(app, ["run", *arguments])
    assert result.exit_code == 0, result.output
    assert "8 images" not in result.output  # two of the rows are held out
    metrics = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))["metrics"]
    assert metrics["train_loss"] < 5
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out").config.model_type == "llava"
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_processor.crop_size["height"] == 28


def test_the_preview_shows_an_image_as_a_token_count(tmp_path: Path) -> None:
    arguments = ["preview", *files(tmp_path), "-n", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "<image> x 4" in result.output
    ids = CliRunner().invoke(app, [*arguments, "--ids"]).output
    assert ids.count("[320]") == 1


def test_the_check_distinguishes_rows_by_their_images(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", "--json", *files(tmp_path)])
    report = json.loads(result.output)
    found = {verdict["name"]: verdict for verdict in report["verdicts"] if verdict["status"] != "ok"}
    assert not {"duplicates", "held out"} & set(found), found
    memory = next(verdict for verdict in report["verdicts"] if verdict["name"] == "memory")
    assert "is not known before the model is loaded" in memory["what"]


def test_rows_can_be_grouped_by_length(tmp_path: Path) -> None:
    result = run("llava", tmp_path, max_steps=2, train_sampling_strategy="group_by_length")
    assert result.metrics["train_loss"] > 0


def test_a_stream_keeps_its_images(tmp_path: Path) -> None:
    rows = [row(colour) for colour in COLOURS] * 4
    model, processor = tiny_vision_model()
    data = {"streaming": True, "window": 8}
    train = {"output_dir": str(tmp_path), "max_steps": 2, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
    stream = Dataset.from_list(rows).to_iterable_dataset()
    inputs: dict[str, Any] = {"model": model, "data": stream, "tokenizer": processor, "plugins": ["vision"]}
    ready = Pipeline(**inputs, train=train, config={"data": data}).prepare()
    batch = ready.collator([next(iter(ready.data.train)) for _ in range(2)])
    assert batch["pixel_values"].shape[0] == 2
    assert Pipeline(**inputs, train=train, config={"data": data}).run().metrics["train_loss"] > 0
