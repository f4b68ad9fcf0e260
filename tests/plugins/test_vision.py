"""Plugin vision: conversations with images, for tiny models of three kinds and their processors."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from PIL import Image
from transformers import AutoTokenizer
from vision_models import IN_PLACE, drawn_image, image_processor, tiny_vision_model

from sftkit import Pipeline
from sftkit.errors import ConfigError, DataError
from sftkit.testing import tiny_tokenizer

KINDS = ("llava", "qwen2_vl", "idefics3")
TRANSFORMERS = Version(transformers.__version__)
#: The version of transformers from which on each processor loads without torchvision; some do before it, too.
WITHOUT_TORCHVISION = {"llava": "5.12", "qwen2_vl": "5.19", "idefics3": "5.18"}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


def asked(*parts: Any, answer: str = "Red.") -> list[dict[str, Any]]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


def prepared(kind: str, rows: list[dict[str, Any]], **sections: Any) -> Any:
    model, processor = tiny_vision_model(kind)
    options = sections.pop("vision", {})
    plugins = [{"vision": options}, {"formats": sections.pop("formats", {})}]
    pipeline = Pipeline(model=model, data=rows, tokenizer=processor, plugins=plugins, config=sections)
    return pipeline.prepare()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_that_of_the_processor(kind: str) -> None:
    one, two, three = drawn_image("red"), drawn_image("blue", (60, 90)), drawn_image("green", (33, 31))
    rows = [
        {"images": [one], "messages": asked(one, "What?")},
        {"images": [two, three], "messages": asked("First", two, "then", three, "which?", answer="Blue, green.")},
    ]
    assert_as_the_processor(prepared(kind, rows), rows)


def assert_as_the_processor(ready: Any, rows: list[dict[str, Any]]) -> None:
    batch = ready.collator([ready.data.train[0], ready.data.train[1]])
    processor = ready.vocabulary.processor
    texts = [processor.apply_chat_template(row["messages"]) for row in rows]
    expected = processor(text=texts, images=[row["images"] for row in rows], return_tensors="pt", padding=True)
    assert set(expected) == set(batch) - {"labels", "row_shares"}
    for name, value in expected.items():
        assert torch.equal(batch[name], value), name


def trained_text(ready: Any, row: int = 0) -> str:
    labels = ready.data.train[row]["labels"]
    return str(ready.tokenizer.decode(labels[labels != -100]))


@pytest.mark.parametrize("kind", KINDS)
def test_only_answers_are_trained(kind: str) -> None:
    rows = [
        {
            "images": [drawn_image("red"), drawn_image("blue")],
            "messages": asked(1, "What?", 1) + asked("And?", answer="Blue!"),
        }
    ]
    end = {"llava": "</s>"}.get(kind, "<|im_end|>")
    assert trained_text(prepared(kind, rows)).replace(" ", "") == f"Red.{end}Blue!{end}"


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_not_trained_even_if_all_text_is(kind: str) -> None:
    rows = [{"images": [drawn_image("red")], "messages": asked(1, "What?")}]
    ready = prepared(kind, rows, formats={"loss": "all"})
    example, ids = ready.data.train[0], torch.tensor(ready.collator.collator.tokens.ids)
    images = torch.isin(torch.as_tensor(example["input_ids"]), ids)
    assert images.any()
    assert (torch.as_tensor(example["labels"])[images] == -100).all()
    assert "What?" in trained_text(ready)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_images_can_share_a_batch_with_others(kind: str) -> None:
    rows = [
        {"images": [], "messages": asked("Hello?", answer="Hi.")},
        {"images": [drawn_image("red"), drawn_image("blue")], "messages": asked(1, 1, "What?")},
        {"images": [drawn_image("red")], "messages": asked(1, "What?")},
    ]
    model, _ = tiny_vision_model(kind)
    ready = prepared(kind, rows)
    mixed = ready.collator([ready.data.train[at] for at in range(3)])
    alone = ready.collator([ready.data.train[0]])
    assert not {"pixel_values", "row_shares"} & set(alone)
    for batch in (mixed, alone):
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "row_shares")}
        with torch.no_grad():
            logits = model(**inputs)["logits"]
        length = int(alone["attention_mask"].sum())
        if batch is mixed:
            first = logits[0, :length]
    torch.testing.assert_close(first, logits[0], atol=1e-5, rtol=1e-5)


def png(colour: str, **options: Any) -> bytes:
    file = io.BytesIO()
    drawn_image(colour).save(file, format="PNG", **options)
    return file.getvalue()


def test_images_can_be_paths_bytes_urls_and_objects(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    encoded = base64.b64encode(png("red")).decode()
    places: list[dict[str, Any]] = [
        {"type": "image", "path": str(tmp_path / "red.png")},
        {"type": "image", "image": "red.png"},
        {"type": "image", "url": (tmp_path / "red.png").as_uri()},
        {"type": "image", "base64": f"data:image/png;base64,{encoded}"},
        {"type": "image", "base64": encoded},
        {"type": "image", "bytes": png("red")},
        {"type": "image", "image": drawn_image("red")},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
    ]
    text = {"type": "text", "text": "What?"}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Red."}]}
    expected = prepared("llava", [{"image": drawn_image("red"), "messages": asked(1, "What?")}])
    wanted = expected.collator([expected.data.train[0]])
    for place in places:
        rows = [{"messages": [{"role": "user", "content": [place, text]}, answer]}]
        ready = prepared("llava", rows, vision={"image_folder": str(tmp_path)})
        batch = ready.collator([ready.data.train[0]])
        assert torch.equal(batch["pixel_values"], wanted["pixel_values"]), place
        assert torch.equal(batch["input_ids"], wanted["input_ids"]), place


def test_paths_stay_paths_and_other_images_are_stored_as_encoded(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    rows = [{"image": str(tmp_path / "red.png"), "messages": asked(1, "What?")}]
    (stored,) = prepared("llava", rows).data.train[0]["attached"]
    assert (stored["path"], stored["bytes"]) == (str(tmp_path / "red.png"), None)
    (stored,) = prepared("llava", [{**rows[0], "image": png("red")}]).data.train[0]["attached"]
    assert (stored["path"], stored["bytes"]) == (None, png("red"))


@pytest.mark.parametrize("inside", [False, True])
def test_changes_to_an_opened_image_are_kept(inside: bool, tmp_path: Path) -> None:
    drawn_image("red", (400, 400)).save(tmp_path / "large.jpg")
    image = Image.open(tmp_path / "large.jpg")
    image.thumbnail((84, 84))
    image.paste("blue", (0, 0, 40, 40))
    messages = asked(1, "What?")
    column = {} if inside else {"images": [image]}
    if inside:
        messages[0]["content"][0]["image"] = image
    ready = prepared("qwen2_vl", [{**column, "messages": messages}])
    expected = ready.vocabulary.processor.image_processor(images=[image], return_tensors="pt")
    batch = ready.collator([ready.data.train[0]])
    assert torch.equal(batch["image_grid_thw"], expected["image_grid_thw"])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_equal_those_of_the_processor(kind: str, mode: str) -> None:
    image = drawn_image("red").convert("RGBA")
    image.putalpha(drawn_image("black").convert("L"))
    image = image.convert(mode) if mode != "P" else image.quantize(8)
    if mode == "P":
        image.info["transparency"] = 0
    ready = prepared(kind, [{"images": [image], "messages": asked(1, "What?")}])
    if Version("5.21") > TRANSFORMERS:  # whose processors drop the transparency
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    expected = ready.vocabulary.processor.image_processor(images=[[image]], return_tensors="pt")
    assert torch.equal(ready.collator([ready.data.train[0]])["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize(
    "conversation",
    [
        [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}],
        [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red."}],
    ],
)
def test_plain_text_has_images_at_image_tags_or_first(conversation: list[dict[str, Any]]) -> None:
    ready = prepared("qwen2_vl", [{"image": drawn_image("red"), "conversations": conversation}])
    text = ready.tokenizer.decode(ready.data.train[0]["input_ids"])
    start, end = "<|vision_start|>", "<|vision_end|>"
    assert text.startswith(f"<|im_start|>user\n{start}<|image_pad|>")
    assert f"{end}What?<|im_end|>" in text
    assert trained_text(ready) == "Red.<|im_end|>"


def test_prompts_and_completions_can_have_images() -> None:
    question, answer = asked(1, "What?")
    ready = prepared("llava", [{"images": [drawn_image("red")], "prompt": [question], "completion": [answer]}])
    assert trained_text(ready) == " Red.</s>"
    assert "pixel_values" in ready.collator([ready.data.train[0]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"image": drawn_image("red"), "messages": [{**asked(1, "What?")[0], "train": True}, asked("")[1]]},
            "a user message with an image cannot be trained",
        ),
        (
            {"image": "https://example.com/red.png", "messages": asked(1, "What?")},
            "is a URL; images are not downloaded",
        ),
        ({"image": "nowhere.png", "messages": asked(1, "What?")}, "there is no image"),
        ({"image": "far " * 1000, "messages": asked(1, "What?")}, "there is no image"),
        ({"image": {"base64": "é"}, "messages": asked(1, "What?")}, "not valid base64"),
        ({"image": b"no image", "messages": asked(1, "What?")}, "cannot be read as an image"),
        ({"images": [], "messages": asked(1, "What?")}, "shows more images than the 0 of the row"),
        ({"images": [drawn_image("red")] * 2, "messages": asked(1, "What?")}, "2 images, but only 1 places for them"),
        ({"image": drawn_image("red"), "messages": asked(1, "<image>?")}, "contains '<image>'"),
        ({"image": drawn_image("red"), "messages": asked(1, "<|image_pad|>?")}, "contains '<|image_pad|>'"),
        ({"photo": drawn_image("red"), "messages": [{"role": "user", "content": "<image>"}]}, "but the row has none"),
        ({"image": None, "messages": asked("<image> What?")}, "but the row has none"),
    ],
)
def test_rows_with_unusable_images_are_reported(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        prepared("qwen2_vl" if "<image>" not in message else "llava", [row])
    assert "row 1" in str(caught.value)


def test_rows_with_unusable_images_can_be_skipped() -> None:
    rows = [{"image": image, "messages": asked(1, "What?")} for image in (b"no image", png("red"))]
    ready = prepared("llava", rows, data={"on_bad_row": "skip"})
    assert ready.data.counts.by_split["train"]["bad rows skipped"] == 1
    assert len(ready.data.train) == 1


def test_truncating_an_image_is_an_error_that_names_the_row() -> None:
    rows = [
        {"images": [drawn_image("red")], "messages": asked(1, "What?")},
        {"images": [drawn_image("red")] * 3, "messages": asked("A long text before the images", 1, 1, 1, "What?")},
    ]
    length = len(prepared("qwen2_vl", rows[:1]).data.train[0]["input_ids"])
    with pytest.raises(DataError, match=r"row 2: data\.max_length=\d+ would") as caught:
        prepared("qwen2_vl", rows, data={"max_length": length - 2})
    assert "data.truncation=drop" in str(caught.value)
    ready = prepared("qwen2_vl", rows, data={"max_length": length, "truncation": "drop"})
    assert len(ready.data.train) == 1
    cut = prepared("qwen2_vl", rows[:1], data={"max_length": length - 2})  # the end of an answer may be cut
    assert len(cut.data.train[0]["input_ids"]) == length - 2


def test_images_and_their_tokens_are_counted() -> None:
    rows = [
        {"images": [drawn_image("red")] * number, "messages": asked(*[1] * number, "What?")} for number in (0, 1, 2)
    ]
    counts = prepared("llava", rows).data.counts.by_split["train"]
    assert (counts["images"], counts["image tokens"]) == (3, 12)
    assert counts["rows without images"] == 1


def test_the_cache_depends_on_the_options_of_the_processor() -> None:
    rows = Dataset.from_list([{"images": [drawn_image("red")], "messages": asked(1, "What?")}])
    model, processor = tiny_vision_model("qwen2_vl")
    for longest, cached in ((16, False), (16, True), (4, False)):
        processor.image_processor.size = {"shortest_edge": 784, "longest_edge": longest * 784}
        ready = Pipeline(model=model, data=rows, tokenizer=processor, plugins=["vision"]).prepare()
        assert ("train" in ready.data.cached) is cached


@pytest.mark.parametrize("options", [{}, {"image_folder": "photos"}])
def test_the_cache_depends_on_the_folder_of_relative_images(
    options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image": "0.png", "messages": asked(1, "What?")}]
    for name in ("one", "two"):
        folder = tmp_path / name / options.get("image_folder", "")
        folder.mkdir(parents=True)
        drawn_image("red").save(folder / "0.png")
        monkeypatch.chdir(tmp_path / name)
        ready = prepared("llava", rows, vision=options)
        assert ready.data.train[0]["attached"][0]["path"] == str(folder / "0.png")


def test_an_image_that_changed_its_size_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    drawn_image("red").save(path)
    ready = prepared("qwen2_vl", [{"image": str(path), "messages": asked(1, "What?")}])
    drawn_image("red", (90, 90)).save(path)
    with pytest.raises(DataError, match="the size of the file has changed"):
        ready.collator([ready.data.train[0]])


def test_rotated_photographs_are_turned_upright(tmp_path: Path) -> None:
    side = drawn_image("red", (90, 30))
    exif = side.getexif()
    exif[0x0112] = 6
    side.save(tmp_path / "side.jpg", exif=exif)
    ready = prepared("qwen2_vl", [{"image": str(tmp_path / "side.jpg"), "messages": asked(1, "What?")}])
    _, height, width = ready.collator([ready.data.train[0]])["image_grid_thw"][0].tolist()
    assert height > width


def test_the_collator_works_in_data_workers() -> None:
    ready = prepared("idefics3", [{"images": [drawn_image("red")], "messages": asked(1, "What?")}] * 4)
    copied = pickle.loads(pickle.dumps(ready.collator))
    one, other = (make([ready.data.train[0]])["pixel_values"] for make in (copied, ready.collator))
    assert torch.equal(one, other)
    loader = torch.utils.data.DataLoader(ready.data.train, batch_size=2, num_workers=1, collate_fn=ready.collator)
    assert [len(batch["pixel_values"]) for batch in loader] == [2, 2]


@pytest.mark.parametrize("plugin", ["packing", "samples", "flash_attn"])
def test_plugins_that_do_not_support_images_are_refused(plugin: str) -> None:
    model, processor = tiny_vision_model()
    rows = [{"images": [drawn_image("red")], "messages": asked(1, "What?")}]
    pipeline = Pipeline(model=model, data=rows, eval=rows, tokenizer=processor, plugins=["vision", plugin])
    assert any("image" in problem.what for problem in pipeline.check())


def test_metrics_of_completions_are_refused_with_images() -> None:
    model, processor = tiny_vision_model()
    rows = [{"images": [drawn_image("red")], "messages": asked(1, "What?")}]
    inputs = {"model": model, "data": rows, "eval": rows, "tokenizer": processor, "plugins": ["vision"]}
    (problem,) = Pipeline(**inputs, evaluate={"metrics": ["exact_match"]}).check()
    assert (problem.where, problem.what) == (
        "Pipeline(), evaluate.metrics",
        "rows are completed from their tokens alone, without images",
    )


def test_a_template_without_images_is_refused() -> None:
    model, processor = tiny_vision_model()
    rows = [{"images": [drawn_image("red")], "messages": asked(1, "What?")}]
    with pytest.raises(ConfigError, match="does not support images"):
        Pipeline(model=model, data=rows, tokenizer=processor, plugins=["vision", "chatml"]).prepare()
    with pytest.raises(ConfigError, match="without the processor"):
        Pipeline(model=model, data=rows, tokenizer=processor.tokenizer, plugins=["vision"]).prepare()


def test_bos_is_added_as_by_the_processor() -> None:
    model, processor = tiny_vision_model()
    processor.tokenizer = tiny_tokenizer()
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image = drawn_image("red")
    rows = [{"images": [image], "messages": asked(1, "What?")}]
    ready = Pipeline(model=model, data=rows, tokenizer=processor, plugins=["vision"]).prepare()
    expected = processor(text=[processor.apply_chat_template(rows[0]["messages"])], images=[[image]])
    assert ready.data.train[0]["input_ids"].tolist() == expected["input_ids"][0]
    assert expected["input_ids"][0][0] == processor.tokenizer.bos_token_id


@pytest.mark.parametrize("front", ["", "{{ bos_token }}"])
def test_the_first_word_is_tokenized_as_by_the_processor(front: str, real_data: Path) -> None:
    # This tokenizer adds a space before a text, but not after special tokens inside it.
    model, processor = tiny_vision_model()
    tokenizer: Any = AutoTokenizer.from_pretrained(real_data / "llama2_tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<unk>"})
    options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    template = front + processor.chat_template
    processor = type(processor)(processor.image_processor, tokenizer, chat_template=template, **options)
    image = drawn_image("red")
    rows = [{"images": [image], "messages": asked(1, "What?") + asked("And?", answer="Blue.")}] * 2
    ready = Pipeline(model=model, data=rows, tokenizer=processor, plugins=["vision"]).prepare()
    own = processor.apply_chat_template(
        [{**each, "content": [{**part, "image": image} for part in each["content"]]} for each in rows[0]["messages"]],
        tokenize=True,
        return_dict=True,
    )
    assert ready.data.train[1]["input_ids"].tolist() == own["input_ids"][0]
    assert trained_text(ready, 1).split() == ["Red.</s>", "Blue.</s>"]


def other_processor(name: str) -> Any:
    """A processor without a model of its own."""
    import transformers

    tokenizer: Any = tiny_tokenizer(bos=False)
    special = ["<|im_start|>", "<|im_end|>", "<image>", "<|image|>", "<|python_tag|>", "<soft>", "<start>", "<end>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    for key, token in (("image_token", "<soft>"), ("boi_token", "<start>"), ("eoi_token", "<end>")):
        if name == "Gemma3Processor":
            setattr(tokenizer, key, token)
            setattr(tokenizer, f"{key}_id", tokenizer.convert_tokens_to_ids(token))
    small = {"height": 28, "width": 28}
    kind, settings, more, placeholder = {
        "Gemma3Processor": ("gemma3", {"size": small}, {"image_seq_length": 4}, "<start>"),
        "LlavaNextProcessor": (
            "llava_next",
            {"size": {"shortest_edge": 28}, "crop_size": small, "image_grid_pinpoints": [[28, 56], [56, 28]]},
            {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
            "<image>",
        ),
        "Idefics2Processor": (
            "idefics2",
            {"size": {"shortest_edge": 28, "longest_edge": 56}, "do_image_splitting": False},
            {"image_seq_len": 4},
            "<image>",
        ),
        "MllamaProcessor": ("mllama", {"size": small}, {}, "<|image|>"),
    }[name]
    template = IN_PLACE.replace("IMAGE", placeholder)
    images = image_processor(kind, **settings)
    return getattr(transformers, name)(images, tokenizer, chat_template=template, **more)


@pytest.mark.parametrize("name", ["Gemma3Processor", "LlavaNextProcessor", "Idefics2Processor"])
def test_batches_equal_those_of_other_processors(name: str) -> None:
    one, two, three = drawn_image("red"), drawn_image("blue", (60, 90)), drawn_image("green", (33, 131))
    rows = [
        {"images": [one], "messages": asked(one, "What?")},
        {"images": [two, three], "messages": asked("First", two, "then", three, "which?", answer="Blue, green.")},
    ]
    model, _ = tiny_vision_model()
    ready = Pipeline(model=model, data=rows, tokenizer=other_processor(name), plugins=["vision"]).prepare()
    assert_as_the_processor(ready, rows)


def test_a_processor_with_unknown_tensors_is_refused() -> None:
    model, _ = tiny_vision_model()
    rows = [{"images": [drawn_image("red")], "messages": asked(1, "What?")}]
    with pytest.raises(ConfigError, match="cross_attention_mask, which plugin vision does not support"):
        Pipeline(model=model, data=rows, tokenizer=other_processor("MllamaProcessor"), plugins=["vision"]).prepare()


def asks(row: dict[str, Any]) -> str:
    """A formatting function."""
    return f"<image> {row['question']} Red."


def test_a_formatting_function_can_write_the_placeholder() -> None:
    model, processor = tiny_vision_model()
    rows = [{"image": drawn_image("red"), "question": "What?", "messages": asked(1, "no matter")}]
    inputs = {"model": model, "tokenizer": processor, "data": rows}
    ready = Pipeline(**inputs, plugins=["vision", {"formats": {"formatting": asks}}]).prepare()
    assert ready.tokenizer.decode(ready.data.train[0]["input_ids"]).startswith("<image><image><image><image> What?")
    assert "pixel_values" in ready.collator([ready.data.train[0]])


@pytest.mark.parametrize("order", [0, 1])
def test_images_are_kept_with_completion_only(order: int) -> None:
    model, processor = tiny_vision_model()
    rows = [{"image": drawn_image("red"), "text": "<image> ### Question: What? ### Answer: Red."}]
    plugins = [["vision"], [{"completion_only": {"response_template": "### Answer:"}}]]
    inputs = {"model": model, "tokenizer": processor, "data": rows}
    ready = Pipeline(**inputs, plugins=[*plugins[order], *plugins[1 - order]]).prepare()
    assert trained_text(ready) == " Red.</s>"
    assert "pixel_values" in ready.collator([ready.data.train[0]])


def test_a_part_can_name_its_image_by_index() -> None:
    images = [drawn_image("red", (28, 28)), drawn_image("blue", (28, 84))]
    content = [{"type": "image", "index": 1}, {"type": "text", "text": "Which?"}, {"type": "image", "index": 0}]
    rows = [{"images": images, "messages": [{"role": "user", "content": content}, *asked("?")[1:]]}]
    ready = prepared("qwen2_vl", rows)
    heights = ready.collator([ready.data.train[0]])["image_grid_thw"][:, 1].tolist()
    assert heights[0] > heights[1]


def test_a_conversation_can_mix_plain_text_and_parts(tmp_path: Path) -> None:
    drawn_image("red").save(tmp_path / "red.png")
    messages = [
        {"role": "system", "content": "Be brief."},
        *asked(1, "What?")[:1],
        {"role": "assistant", "content": "Red."},
    ]
    rows = [json.dumps({"image": str(tmp_path / "red.png"), "messages": messages})] * 2
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), "utf-8")
    model, processor = tiny_vision_model("qwen2_vl")
    inputs = {"model": model, "tokenizer": processor, "data": str(tmp_path / "rows.jsonl")}
    ready = Pipeline(**inputs, plugins=["vision"]).prepare()
    assert trained_text(ready) == "Red.<|im_end|>"
    assert ready.tokenizer.decode(ready.data.train[0]["input_ids"]).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sise": {"shortest_edge": 56}}, "did you mean 'size'"), ({"size": {"shortest_edge": 56}}, "another size")],
)
def test_unsuitable_processor_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(
            "llava",
            [{"image": drawn_image("red"), "messages": asked(1, "What?")}],
            vision={"processor_options": options},
        )


@pytest.mark.parametrize("kind", KINDS)
def test_processor_options_reach_a_processor_loaded_by_name(kind: str, tmp_path: Path) -> None:
    model, processor = tiny_vision_model(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    size = {
        "llava": {"shortest_edge": 56},
        "qwen2_vl": {"shortest_edge": 784, "longest_edge": 4 * 784},
        "idefics3": {"longest_edge": 28},
    }[kind]
    plugins = [{"vision": {"processor_options": {"size": size, "padding_side": "left"}}}]
    rows = [{"image": drawn_image("red"), "messages": asked(1, "What?")}]
    pipeline = Pipeline(str(tmp_path), data=rows, plugins=plugins)
    loaded, refused = None, ""
    try:
        loaded = pipeline.prepare().vocabulary.processor
    except ConfigError as error:
        refused = str(error)
    if loaded is None:
        assert Version(WITHOUT_TORCHVISION[kind]) > TRANSFORMERS, refused
        assert "install torchvision" in refused
        return
    assert {name: loaded.image_processor.size[name] for name in size} == size
    assert loaded.tokenizer.padding_side == "left"


def test_plain_text_with_images_equals_text_in_parts() -> None:
    conversation = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]
    rows = [{"image": drawn_image("red"), "conversations": conversation}]
    parts = [{"image": drawn_image("red"), "messages": asked(1, "What?")}]
    assert prepared("llava", rows).data.train[0]["input_ids"].tolist() == (
        prepared("llava", parts).data.train[0]["input_ids"].tolist()
    )


def test_truncated_image_files_are_found_with_verify() -> None:
    rows = [{"image": png("red")[:-40], "messages": asked(1, "What?")}, {"image": png("red"), "messages": asked(1)}]
    ready = prepared("llava", rows, vision={"verify": True}, data={"on_bad_row": "skip"})
    assert ready.data.counts.by_split["train"]["bad rows skipped"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_needs_no_pad_token(kind: str) -> None:
    model, processor = tiny_vision_model(kind)
    processor.tokenizer.pad_token = None
    rows = [{"images": [drawn_image("red")] * number, "messages": asked(*[1] * number, "What?")} for number in (1, 2)]
    ready = Pipeline(model=model, data=rows, tokenizer=processor, plugins=["vision"]).prepare()
    assert "pixel_values" in ready.collator([ready.data.train[0], ready.data.train[1]])
