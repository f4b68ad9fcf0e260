"""Plugin vision: conversations with pictures, on tiny models of three kinds with the processors of their kind."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from PIL import Image
from transformers import AutoTokenizer

from sftkit import Pipeline
from sftkit.errors import ConfigError, DataError
from sftkit.testing import check_plugin, tiny_tokenizer
from sftkit.testing.pictures import IN_PLACE, drawn, image_processor, tiny_vision_model
from sftkit_plugins.vision import Vision

KINDS = ("llava", "qwen2_vl", "idefics3")
TRANSFORMERS = Version(transformers.__version__)
#: The first version of transformers that loads the processor without torchvision.
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
    pipeline = Pipeline(model=model, data=rows, tokenizer=processor, plugins=[{"vision": options}], config=sections)
    return pipeline.prepare()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_what_the_processor_itself_makes(kind: str) -> None:
    one, two, three = drawn("red"), drawn("blue", (60, 90)), drawn("green", (33, 31))
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
    rows = [{"images": [drawn("red"), drawn("blue")], "messages": asked(1, "What?", 1) + asked("And?", answer="Blue!")}]
    end = {"llava": "</s>"}.get(kind, "<|im_end|>")
    assert trained_text(prepared(kind, rows)).replace(" ", "") == f"Red.{end}Blue!{end}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_not_trained_where_all_of_the_text_is(kind: str) -> None:
    ready = prepared(kind, [{"images": [drawn("red")], "messages": asked(1, "What?")}], data={"loss": "all"})
    example, ids = ready.data.train[0], torch.tensor(ready.collator.tokens.ids)
    pictures = torch.isin(torch.as_tensor(example["input_ids"]), ids)
    assert pictures.any()
    assert (torch.as_tensor(example["labels"])[pictures] == -100).all()
    assert "What?" in trained_text(ready)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_pictures_stand_beside_others(kind: str) -> None:
    rows = [
        {"images": [], "messages": asked("Hello?", answer="Hi.")},
        {"images": [drawn("red"), drawn("blue")], "messages": asked(1, 1, "What?")},
        {"images": [drawn("red")], "messages": asked(1, "What?")},
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
    drawn(colour).save(file, format="PNG", **options)
    return file.getvalue()


def test_pictures_are_given_as_paths_bytes_urls_and_objects(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    encoded = base64.b64encode(png("red")).decode()
    places: list[dict[str, Any]] = [
        {"type": "image", "path": str(tmp_path / "red.png")},
        {"type": "image", "image": "red.png"},
        {"type": "image", "url": (tmp_path / "red.png").as_uri()},
        {"type": "image", "base64": f"data:image/png;base64,{encoded}"},
        {"type": "image", "base64": encoded},
        {"type": "image", "bytes": png("red")},
        {"type": "image", "image": drawn("red")},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
    ]
    text = {"type": "text", "text": "What?"}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Red."}]}
    expected = prepared("llava", [{"image": drawn("red"), "messages": asked(1, "What?")}])
    wanted = expected.collator([expected.data.train[0]])
    for place in places:
        rows = [{"messages": [{"role": "user", "content": [place, text]}, answer]}]
        ready = prepared("llava", rows, vision={"image_folder": str(tmp_path)})
        batch = ready.collator([ready.data.train[0]])
        assert torch.equal(batch["pixel_values"], wanted["pixel_values"]), place
        assert torch.equal(batch["input_ids"], wanted["input_ids"]), place


def test_a_path_stays_a_path_and_anything_else_is_stored_as_it_was_encoded(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    rows = [{"image": str(tmp_path / "red.png"), "messages": asked(1, "What?")}]
    (stored,) = prepared("llava", rows).data.train[0]["attached"]
    assert (stored["path"], stored["bytes"]) == (str(tmp_path / "red.png"), None)
    (stored,) = prepared("llava", [{**rows[0], "image": png("red")}]).data.train[0]["attached"]
    assert (stored["path"], stored["bytes"]) == (None, png("red"))


@pytest.mark.parametrize("inside", [False, True])
def test_an_opened_picture_that_was_changed_is_trained_as_it_is_now(inside: bool, tmp_path: Path) -> None:
    drawn("red", (400, 400)).save(tmp_path / "large.jpg")
    picture = Image.open(tmp_path / "large.jpg")
    picture.thumbnail((84, 84))
    picture.paste("blue", (0, 0, 40, 40))
    messages = asked(1, "What?")
    column = {} if inside else {"images": [picture]}
    if inside:
        messages[0]["content"][0]["image"] = picture
    ready = prepared("qwen2_vl", [{**column, "messages": messages}])
    expected = ready.vocabulary.processor.image_processor(images=[picture], return_tensors="pt")
    batch = ready.collator([ready.data.train[0]])
    assert torch.equal(batch["image_grid_thw"], expected["image_grid_thw"])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_transparent_ground_is_what_the_processor_makes_of_it(kind: str, mode: str) -> None:
    picture = drawn("red").convert("RGBA")
    picture.putalpha(drawn("black").convert("L"))
    picture = picture.convert(mode) if mode != "P" else picture.quantize(8)
    if mode == "P":
        picture.info["transparency"] = 0
    ready = prepared(kind, [{"images": [picture], "messages": asked(1, "What?")}])
    if Version("5.21") > TRANSFORMERS:  # whose processors drop the transparency
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    expected = ready.vocabulary.processor.image_processor(images=[[picture]], return_tensors="pt")
    assert torch.equal(ready.collator([ready.data.train[0]])["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize(
    "conversation",
    [
        [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}],
        [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red."}],
    ],
)
def test_pictures_of_plain_text_stand_where_it_says_so_or_in_front(conversation: list[dict[str, Any]]) -> None:
    ready = prepared("qwen2_vl", [{"image": drawn("red"), "conversations": conversation}])
    text = ready.tokenizer.decode(ready.data.train[0]["input_ids"])
    start, end = "<|vision_start|>", "<|vision_end|>"
    assert text.startswith(f"<|im_start|>user\n{start}<|image_pad|>")
    assert f"{end}What?<|im_end|>" in text
    assert trained_text(ready) == "Red.<|im_end|>"


def test_pictures_go_with_prompts_and_completions() -> None:
    question, answer = asked(1, "What?")
    ready = prepared("llava", [{"images": [drawn("red")], "prompt": [question], "completion": [answer]}])
    assert trained_text(ready) == " Red.</s>"
    assert "pixel_values" in ready.collator([ready.data.train[0]])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"image": drawn("red"), "messages": [{**asked(1, "What?")[0], "train": True}, asked("")[1]]},
            "a user's message with a picture is to be trained",
        ),
        (
            {"image": "https://example.com/red.png", "messages": asked(1, "What?")},
            "is a URL, and pictures are not",
        ),
        ({"image": "nowhere.png", "messages": asked(1, "What?")}, "there is no picture"),
        ({"image": "far " * 1000, "messages": asked(1, "What?")}, "there is no picture"),
        ({"image": {"base64": "é"}, "messages": asked(1, "What?")}, "no valid base64"),
        ({"image": b"no picture", "messages": asked(1, "What?")}, "cannot be read as a picture"),
        ({"images": [], "messages": asked(1, "What?")}, "shows more pictures than the 0 of the row"),
        ({"images": [drawn("red")] * 2, "messages": asked(1, "What?")}, "2 pictures, and 1 places for them"),
        ({"image": drawn("red"), "messages": asked(1, "<image>?")}, "holds '<image>'"),
        ({"image": drawn("red"), "messages": asked(1, "<|image_pad|>?")}, "holds '<|image_pad|>'"),
        ({"picture": drawn("red"), "messages": [{"role": "user", "content": "<image>"}]}, "and the row has none"),
        ({"image": None, "messages": asked("<image> What?")}, "and the row has none"),
    ],
)
def test_a_row_whose_pictures_cannot_be_had_is_told(row: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=re.escape(told)) as caught:
        prepared("qwen2_vl" if "<image>" not in told else "llava", [row])
    assert "row 1" in str(caught.value)


def test_a_row_whose_picture_cannot_be_had_may_be_skipped() -> None:
    rows = [{"image": image, "messages": asked(1, "What?")} for image in (b"no picture", png("red"))]
    ready = prepared("llava", rows, data={"on_bad_row": "skip"})
    assert ready.data.tally.counts["train"]["bad rows skipped"] == 1
    assert len(ready.data.train) == 1


def test_cutting_into_a_picture_is_an_error_that_says_so_and_where() -> None:
    rows = [
        {"images": [drawn("red")], "messages": asked(1, "What?")},
        {"images": [drawn("red")] * 3, "messages": asked("A long text in front of them", 1, 1, 1, "What?")},
    ]
    length = len(prepared("qwen2_vl", rows[:1]).data.train[0]["input_ids"])
    with pytest.raises(DataError, match="would cut into what may not be cut, as a picture") as caught:
        prepared("qwen2_vl", rows, data={"max_length": length - 2})
    assert "row 2" in str(caught.value)
    assert "data.truncation=drop" in str(caught.value)
    ready = prepared("qwen2_vl", rows, data={"max_length": length, "truncation": "drop"})
    assert len(ready.data.train) == 1
    cut = prepared("qwen2_vl", rows[:1], data={"max_length": length - 2})  # the end of an answer may be cut
    assert len(cut.data.train[0]["input_ids"]) == length - 2


def test_what_is_read_is_counted() -> None:
    rows = [{"images": [drawn("red")] * number, "messages": asked(*[1] * number, "What?")} for number in (0, 1, 2)]
    counts = prepared("llava", rows).data.tally.counts["train"]
    assert (counts["pictures"], counts["picture tokens"]) == (3, 12)
    assert counts["rows without pictures"] == 1


def test_a_prepared_data_set_is_found_again_and_not_with_another_processor() -> None:
    rows = Dataset.from_list([{"images": [drawn("red")], "messages": asked(1, "What?")}])
    model, processor = tiny_vision_model("qwen2_vl")
    for longest, cached in ((16, False), (16, True), (4, False)):
        processor.image_processor.size = {"shortest_edge": 784, "longest_edge": longest * 784}
        ready = Pipeline(model=model, data=rows, tokenizer=processor, plugins=["vision"]).prepare()
        assert ("train" in ready.data.cached) is cached


@pytest.mark.parametrize("options", [{}, {"image_folder": "pictures"}])
def test_relative_pictures_of_another_directory_are_not_taken_from_the_cache(
    options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image": "0.png", "messages": asked(1, "What?")}]
    for name in ("one", "two"):
        folder = tmp_path / name / options.get("image_folder", "")
        folder.mkdir(parents=True)
        drawn("red").save(folder / "0.png")
        monkeypatch.chdir(tmp_path / name)
        ready = prepared("llava", rows, vision=options)
        assert ready.data.train[0]["attached"][0]["path"] == str(folder / "0.png")


def test_a_picture_that_has_changed_its_size_is_told(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    drawn("red").save(path)
    ready = prepared("qwen2_vl", [{"image": str(path), "messages": asked(1, "What?")}])
    drawn("red", (90, 90)).save(path)
    with pytest.raises(DataError, match="a file of another size stands there now"):
        ready.collator([ready.data.train[0]])


def test_a_photograph_on_its_side_is_seen_upright(tmp_path: Path) -> None:
    side = drawn("red", (90, 30))
    exif = side.getexif()
    exif[0x0112] = 6
    side.save(tmp_path / "side.jpg", exif=exif)
    ready = prepared("qwen2_vl", [{"image": str(tmp_path / "side.jpg"), "messages": asked(1, "What?")}])
    _, height, width = ready.collator([ready.data.train[0]])["image_grid_thw"][0].tolist()
    assert height > width


def test_a_collator_goes_to_data_workers() -> None:
    ready = prepared("idefics3", [{"images": [drawn("red")], "messages": asked(1, "What?")}] * 4)
    copied = pickle.loads(pickle.dumps(ready.collator))
    one, other = (make([ready.data.train[0]])["pixel_values"] for make in (copied, ready.collator))
    assert torch.equal(one, other)
    loader = torch.utils.data.DataLoader(ready.data.train, batch_size=2, num_workers=1, collate_fn=ready.collator)
    assert [len(batch["pixel_values"]) for batch in loader] == [2, 2]


@pytest.mark.parametrize("plugin", ["packing", "samples", "flash_attn"])
def test_what_cannot_work_with_pictures_is_told_before(plugin: str) -> None:
    model, processor = tiny_vision_model()
    rows = [{"images": [drawn("red")], "messages": asked(1, "What?")}]
    pipeline = Pipeline(model=model, data=rows, eval=rows, tokenizer=processor, plugins=["vision", plugin])
    assert any("pictures" in problem.what for problem in pipeline.check())


def test_a_template_that_writes_no_pictures_is_refused() -> None:
    model, processor = tiny_vision_model()
    rows = [{"images": [drawn("red")], "messages": asked(1, "What?")}]
    with pytest.raises(ConfigError, match="not made for pictures"):
        Pipeline(model=model, data=rows, tokenizer=processor, plugins=["vision", "chatml"]).prepare()
    with pytest.raises(ConfigError, match="without the processor"):
        Pipeline(model=model, data=rows, tokenizer=processor.tokenizer, plugins=["vision"]).prepare()


def test_bos_is_put_in_front_as_the_processor_does() -> None:
    model, processor = tiny_vision_model()
    processor.tokenizer = tiny_tokenizer()
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    picture = drawn("red")
    rows = [{"images": [picture], "messages": asked(1, "What?")}]
    ready = Pipeline(model=model, data=rows, tokenizer=processor, plugins=["vision"]).prepare()
    expected = processor(text=[processor.apply_chat_template(rows[0]["messages"])], images=[[picture]])
    assert ready.data.train[0]["input_ids"].tolist() == expected["input_ids"][0]
    assert expected["input_ids"][0][0] == processor.tokenizer.bos_token_id


@pytest.mark.parametrize("front", ["", "{{ bos_token }}"])
def test_the_first_word_is_cut_into_tokens_as_the_processor_does(front: str, real_data: Path) -> None:
    # This tokenizer writes a space in front of a text, and not behind special tokens inside it.
    model, processor = tiny_vision_model()
    tokenizer: Any = AutoTokenizer.from_pretrained(real_data / "llama2_tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<unk>"})
    options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    template = front + processor.chat_template
    processor = type(processor)(processor.image_processor, tokenizer, chat_template=template, **options)
    picture = drawn("red")
    rows = [{"images": [picture], "messages": asked(1, "What?") + asked("And?", answer="Blue.")}] * 2
    ready = Pipeline(model=model, data=rows, tokenizer=processor, plugins=["vision"]).prepare()
    own = processor.apply_chat_template(
        [{**each, "content": [{**part, "image": picture} for part in each["content"]]} for each in rows[0]["messages"]],
        tokenize=True,
        return_dict=True,
    )
    assert ready.data.train[1]["input_ids"].tolist() == own["input_ids"][0]
    assert trained_text(ready, 1).split() == ["Red.</s>", "Blue.</s>"]


def other_processor(name: str) -> Any:
    """A processor of another kind, without a model."""
    import transformers

    tokenizer: Any = tiny_tokenizer(bos=False)
    special = ["<|im_start|>", "<|im_end|>", "<image>", "<|image|>", "<|python_tag|>", "<soft>", "<start>", "<end>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    for key, token in (("image_token", "<soft>"), ("boi_token", "<start>"), ("eoi_token", "<end>")):
        if name == "Gemma3Processor":
            setattr(tokenizer, key, token)
            setattr(tokenizer, f"{key}_id", tokenizer.convert_tokens_to_ids(token))
    small = {"height": 28, "width": 28}
    kind, pictures, more, placeholder = {
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
    template = IN_PLACE.replace("PICTURE", placeholder)
    images = image_processor(kind, **pictures)
    return getattr(transformers, name)(images, tokenizer, chat_template=template, **more)


@pytest.mark.parametrize("name", ["Gemma3Processor", "LlavaNextProcessor", "Idefics2Processor"])
def test_batches_of_other_processors_are_theirs_too(name: str) -> None:
    one, two, three = drawn("red"), drawn("blue", (60, 90)), drawn("green", (33, 131))
    rows = [
        {"images": [one], "messages": asked(one, "What?")},
        {"images": [two, three], "messages": asked("First", two, "then", three, "which?", answer="Blue, green.")},
    ]
    model, _ = tiny_vision_model()
    ready = Pipeline(model=model, data=rows, tokenizer=other_processor(name), plugins=["vision"]).prepare()
    assert_as_the_processor(ready, rows)


def test_a_processor_that_says_more_than_is_known_is_refused() -> None:
    model, _ = tiny_vision_model()
    rows = [{"images": [drawn("red")], "messages": asked(1, "What?")}]
    with pytest.raises(ConfigError, match="cross_attention_mask, which plugin vision does not know"):
        Pipeline(model=model, data=rows, tokenizer=other_processor("MllamaProcessor"), plugins=["vision"]).prepare()


def asks(row: dict[str, Any]) -> str:
    """A formatting function of the user's."""
    return f"<image> {row['question']} Red."


def test_a_function_of_ones_own_writes_the_placeholder() -> None:
    model, processor = tiny_vision_model()
    rows = [{"image": drawn("red"), "question": "What?", "messages": asked(1, "no matter")}]
    given = {"model": model, "tokenizer": processor, "data": rows, "plugins": ["vision"]}
    ready = Pipeline(**given, formatting=asks).prepare()
    assert ready.tokenizer.decode(ready.data.train[0]["input_ids"]).startswith("<image><image><image><image> What?")
    assert "pixel_values" in ready.collator([ready.data.train[0]])


@pytest.mark.parametrize("order", [0, 1])
def test_pictures_are_kept_by_a_plugin_that_chooses_what_is_trained(order: int) -> None:
    model, processor = tiny_vision_model()
    rows = [{"image": drawn("red"), "text": "<image> ### Question: What? ### Answer: Red."}]
    plugins = [["vision"], [{"completion_only": {"response_template": "### Answer:"}}]]
    given = {"model": model, "tokenizer": processor, "data": rows}
    ready = Pipeline(**given, plugins=[*plugins[order], *plugins[1 - order]]).prepare()
    assert trained_text(ready) == " Red.</s>"
    assert "pixel_values" in ready.collator([ready.data.train[0]])


def test_a_part_may_say_which_picture_it_shows() -> None:
    pictures = [drawn("red", (28, 28)), drawn("blue", (28, 84))]
    content = [{"type": "image", "index": 1}, {"type": "text", "text": "Which?"}, {"type": "image", "index": 0}]
    rows = [{"images": pictures, "messages": [{"role": "user", "content": content}, *asked("?")[1:]]}]
    ready = prepared("qwen2_vl", rows)
    heights = ready.collator([ready.data.train[0]])["image_grid_thw"][:, 1].tolist()
    assert heights[0] > heights[1]


def test_contents_as_text_and_in_parts_stand_in_one_conversation(tmp_path: Path) -> None:
    drawn("red").save(tmp_path / "red.png")
    messages = [
        {"role": "system", "content": "Be brief."},
        *asked(1, "What?")[:1],
        {"role": "assistant", "content": "Red."},
    ]
    rows = [json.dumps({"image": str(tmp_path / "red.png"), "messages": messages})] * 2
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), "utf-8")
    model, processor = tiny_vision_model("qwen2_vl")
    given = {"model": model, "tokenizer": processor, "data": str(tmp_path / "rows.jsonl")}
    ready = Pipeline(**given, plugins=["vision"]).prepare()
    assert trained_text(ready) == "Red.<|im_end|>"
    assert ready.tokenizer.decode(ready.data.train[0]["input_ids"]).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>"
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [({"sise": {"shortest_edge": 56}}, "did you mean 'size'"), ({"size": {"shortest_edge": 56}}, "another size")],
)
def test_an_option_that_the_processor_does_not_have_is_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        prepared(
            "llava", [{"image": drawn("red"), "messages": asked(1, "What?")}], vision={"processor_options": options}
        )


@pytest.mark.parametrize("kind", KINDS)
def test_options_go_to_a_processor_that_is_loaded_by_name(kind: str, tmp_path: Path) -> None:
    model, processor = tiny_vision_model(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    size = {
        "llava": {"shortest_edge": 56},
        "qwen2_vl": {"shortest_edge": 784, "longest_edge": 4 * 784},
        "idefics3": {"longest_edge": 28},
    }[kind]
    plugins = [{"vision": {"processor_options": {"size": size, "padding_side": "left"}}}]
    rows = [{"image": drawn("red"), "messages": asked(1, "What?")}]
    pipeline = Pipeline(str(tmp_path), data=rows, plugins=plugins)
    if Version(WITHOUT_TORCHVISION[kind]) > TRANSFORMERS and not find_spec("torchvision"):
        with pytest.raises(ConfigError, match="torchvision"):
            pipeline.prepare()
        return
    loaded = pipeline.prepare().vocabulary.processor
    assert {name: loaded.image_processor.size[name] for name in size} == size
    assert loaded.tokenizer.padding_side == "left"


def test_text_with_a_picture_is_what_the_template_writes_of_parts() -> None:
    conversation = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]
    rows = [{"image": drawn("red"), "conversations": conversation}]
    parts = [{"image": drawn("red"), "messages": asked(1, "What?")}]
    assert prepared("llava", rows).data.train[0]["input_ids"].tolist() == (
        prepared("llava", parts).data.train[0]["input_ids"].tolist()
    )


def test_a_picture_that_is_cut_off_is_found_when_it_is_asked_for() -> None:
    rows = [{"image": png("red")[:-40], "messages": asked(1, "What?")}, {"image": png("red"), "messages": asked(1)}]
    ready = prepared("llava", rows, vision={"verify": True}, data={"on_bad_row": "skip"})
    assert ready.data.tally.counts["train"]["bad rows skipped"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_needs_no_pad_token(kind: str) -> None:
    model, processor = tiny_vision_model(kind)
    processor.tokenizer.pad_token = None
    rows = [{"images": [drawn("red")] * number, "messages": asked(*[1] * number, "What?")} for number in (1, 2)]
    ready = Pipeline(model=model, data=rows, tokenizer=processor, plugins=["vision"]).prepare()
    assert "pixel_values" in ready.collator([ready.data.train[0], ready.data.train[1]])


def test_the_plugin_is_sound() -> None:
    check_plugin(Vision())
