"""A stream gives the rows of a prepared data set, in another order that is the same each time."""

from __future__ import annotations

import gzip
import json
from itertools import islice

import pytest

from sftkit import Pipeline
from sftkit.data.build import ExampleBuilder
from sftkit.data.stream_rows import FileRows
from sftkit.errors import ConfigError, DataError, RunError
from sftkit.testing import tiny_model, tiny_tokenizer

TRAIN = {"max_steps": 6, "per_device_train_batch_size": 2, "logging_steps": 1, "use_cpu": True, "save_steps": 3}
TRAIN["lr_scheduler_type"] = "constant"  # the same learning rate for any number of steps


def rows(number, name="row"):
    return [{"prompt": f"{name} {n}: ", "completion": f"it is {n}"} for n in range(number)]


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return str(path)


def pipeline(tmp_path, data, *, train=None, output="run", **options):
    data = {"max_length": 64, "streaming": True, "window": 8, **data}
    train = {**TRAIN, "output_dir": str(tmp_path / output), **(train or {})}
    return Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data=data, train=train, **options)


def texts(stream, number):
    return [tiny_tokenizer().decode(row["input_ids"]) for row in islice(stream, number)]


def as_tuples(examples):
    return sorted((tuple(row["input_ids"].tolist()), tuple(row["labels"].tolist())) for row in examples)


def test_one_pass_of_a_stream_gives_the_examples_of_prepared_data(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(20))
    stream = pipeline(tmp_path, {"train": path, "window": 20}).prepare().data.train
    prepared = pipeline(tmp_path, {"train": path, "streaming": False}).prepare().data.train
    assert as_tuples(islice(stream, 20)) == as_tuples(prepared)


def test_iterations_are_equal_and_each_pass_has_another_order(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(20))
    stream = pipeline(tmp_path, {"train": path, "window": 20}).prepare().data.train
    first = texts(stream, 40)
    assert first == texts(stream, 40)
    assert sorted(first[:20]) == sorted(first[20:])
    assert first[:20] != first[20:]
    assert stream.counts.by_split["train"]["times data.train began again"] >= 1


def test_the_order_depends_on_the_seed(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(20))
    one, two = (pipeline(tmp_path, {"train": path}, train={"seed": seed}).prepare().data.train for seed in (1, 2))
    assert texts(one, 16) != texts(two, 16)


def test_a_data_seed_of_zero_is_used(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(20))
    seeds = [{"seed": 1}, {"seed": 1, "data_seed": 0}, {"data_seed": 0}]
    first, zero, other = (pipeline(tmp_path, {"train": path}, train=seed).prepare().data.train for seed in seeds)
    assert texts(first, 16) != texts(zero, 16)
    assert texts(zero, 16) == texts(other, 16)


def test_sources_are_mixed_by_their_weights(tmp_path):
    mix = {write(tmp_path / "a.jsonl", rows(40, "left")): 3.0, write(tmp_path / "b.jsonl", rows(40, "right")): 1.0}
    stream = pipeline(tmp_path, {"mix": mix, "window": 400}).prepare().data.train
    share = sum("left" in text for text in texts(stream, 400)) / 400
    assert 0.68 < share < 0.82


def test_packing_a_window_keeps_every_document(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(16))
    stream = pipeline(tmp_path, {"train": path, "window": 16}, plugins=["packing"]).prepare().data.train
    packed = []
    for row in stream:
        packed += row["input_ids"].tolist()
        if len(row["input_ids"]) and packed.count(tiny_tokenizer().eos_token_id) >= 16:
            break
    assert packed.count(tiny_tokenizer().eos_token_id) == 16
    assert all(f"row {n}: it is {n}" in tiny_tokenizer().decode(packed) for n in range(16))


def test_each_process_reads_its_own_share(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", rows(20))
    seen = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        stream = pipeline(tmp_path, {"train": path, "window": 10}).prepare().data.train
        seen.append(set(texts(stream, 10)))
    assert len(seen[0]) == len(seen[1]) == 10
    assert not seen[0] & seen[1]


def write_as(kind, directory, values):
    """The same rows in two files of a kind, or in one saved data set."""
    import pyarrow as pa
    from datasets import Dataset

    directory.mkdir()
    half = len(values) // 2
    if kind == "saved":
        Dataset.from_list(values).save_to_disk(directory)
        return str(directory)
    for name, some in (("a", values[:half]), ("b", values[half:])):
        path = directory / f"{name}.{kind}"
        if kind == "parquet":
            Dataset.from_list(some).to_parquet(path, batch_size=100)
        elif kind == "arrow":
            table = Dataset.from_list(some).data.table
            with (pa.ipc.new_file if name == "a" else pa.ipc.new_stream)(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=70)
        elif kind == "csv":
            Dataset.from_list(some).to_csv(path, index=False)
        elif kind == "json":
            path.write_text(json.dumps(some), encoding="utf-8")
        elif kind == "txt":
            path.write_text("".join(f"{row['completion']}\n" for row in some), encoding="utf-8")
        elif kind == "jsonl.zst":
            packed = pytest.importorskip("zstandard").ZstdCompressor().compress
            path.write_bytes(packed("".join(json.dumps(row) + "\n" for row in some).encode()))
        elif kind == "jsonl.gz":
            with gzip.open(path, "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in some)
        else:
            write(path, some)
    return str(directory / f"*.{kind}")


def equal(one, two):
    return one.keys() == two.keys() and all(one[name].tolist() == two[name].tolist() for name in one)


KINDS = ["jsonl", "jsonl.gz", "jsonl.zst", "csv", "json", "txt", "parquet", "arrow", "saved"]


@pytest.mark.parametrize(("kind", "buffer"), [("jsonl", 0), *((kind, 90) for kind in KINDS)])
def test_a_sought_stream_gives_the_same_rows_and_prepares_no_earlier_ones(tmp_path, monkeypatch, kind, buffer):
    monkeypatch.setattr("sftkit.data.feed.BATCH", 60)
    monkeypatch.setattr("sftkit.data.regions.PIECE", 700)  # several pieces for each batch
    values = [{"prompt": f"row\n{n}: ", "completion": f"it is {n}"} for n in range(600)]
    data = {"train": write_as(kind, tmp_path / "data", values), "shuffle_buffer": buffer, "window": 45}
    stream = pipeline(tmp_path, data).prepare().data.train
    whole = list(islice(stream, 1400))
    encoded = ExampleBuilder.encoded
    for given in (0, 550, 599, 1350):
        list(islice(stream, given + 1))
        position = json.loads(json.dumps(stream.position(given)))
        formatted = []

        def count(self, batches, *arguments, formatted=formatted, **options):
            return encoded(self, (formatted.append(len(batch[0])) or batch for batch in batches), *arguments, **options)

        monkeypatch.setattr(ExampleBuilder, "encoded", count)
        stream.seek(position)
        again = list(islice(stream, 50))
        monkeypatch.setattr(ExampleBuilder, "encoded", encoded)
        assert all(equal(*pair) for pair in zip(whole[given : given + 50], again, strict=True))
        # the batch at the window, the rows that were asked for, and those that are read ahead
        assert sum(formatted) < 450


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_sought_stream_reads_no_earlier_rows(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("sftkit.data.feed.BATCH", 100)
    data = {"train": write_as(kind, tmp_path / "data", rows(2000)), "shuffle_buffer": 50, "window": 100}
    stream = pipeline(tmp_path, data).prepare().data.train
    list(islice(stream, 1950))
    position, read = stream.position(1900), []
    monkeypatch.setattr(FileRows, "rows", counting(FileRows.rows, read))
    stream.seek(position)
    list(islice(stream, 10))
    first = [number for number in read if number == 0]  # of the first pass; more passes may be read ahead
    assert 0 < len(first) < 700


def counting(rows, read):
    def counted(self, this, *arguments):
        for row in rows(self, this, *arguments):
            read.append(this.number)
            yield row

    return counted


@pytest.mark.parametrize("names", ["*.jsonl", "a.jsonl"])  # whole files for each process, or every second row
def test_each_process_continues_in_its_own_share(tmp_path, monkeypatch, names):
    monkeypatch.setattr("sftkit.data.feed.BATCH", 10)
    write_as("jsonl", tmp_path / "data", rows(60))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        data = {"train": str(tmp_path / "data" / names), "window": 7, "shuffle_buffer": 4}
        stream = pipeline(tmp_path, data).prepare().data.train
        whole = list(islice(stream, 90))
        stream.seek(stream.position(52))
        assert all(equal(*pair) for pair in zip(whole[52:], islice(stream, 38), strict=True))


@pytest.mark.parametrize("named", [True, False])
def test_a_loaded_stream_continues_at_the_same_row(tmp_path, monkeypatch, named):
    from datasets import Dataset, IterableDataset

    monkeypatch.setattr("sftkit.data.feed.BATCH", 10)
    values = rows(60)
    loaded = (
        Dataset.from_list(values).to_iterable_dataset(3) if named else IterableDataset.from_generator(lambda: values)
    )
    config = {"data": {"window": 7, "shuffle_buffer": 8, "streaming": True, "max_length": 64}}
    train = {**TRAIN, "output_dir": str(tmp_path / "run")}
    run = Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data=loaded, config=config, train=train)
    stream = run.prepare().data.train
    whole = list(islice(stream, 90))
    stream.seek(stream.position(73))
    assert all(equal(*pair) for pair in zip(whole[73:], islice(stream, 17), strict=True))


def test_lines_that_were_skipped_before_a_position_count_towards_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("sftkit.data.feed.BATCH", 10)
    path = tmp_path / "a.jsonl"
    good = [json.dumps(row) + "\n" for row in rows(60)]
    path.write_text("".join([*good[:5], "broken\n", *good[5:50], "broken\n", *good[50:]]), encoding="utf-8")
    data = {"train": str(path), "window": 10, "shuffle_buffer": 0, "on_bad_row": "skip", "max_bad_rows": 2}
    stream = pipeline(tmp_path, data).prepare().data.train
    list(islice(stream, 30))
    position = stream.position(29)
    assert position["feeds"][0][1][-1] == 1
    stream.seek(position)
    assert len(list(islice(stream, 30))) == 30
    position["feeds"][0][1][-1] = 0
    stream.seek(position)
    with pytest.raises(DataError, match="more than 0 lines cannot be read"):
        list(islice(stream, 40))


def test_resuming_a_stream_of_other_data_is_refused(tmp_path):
    for number in (20, 21):
        data = {"train": write(tmp_path / "a.jsonl", rows(number))}
        run = pipeline(tmp_path, data, resume=number == 21)
        if number == 20:
            run.run()
    with pytest.raises(RunError, match=r"data\.train: changed since the run began: the data has other contents"):
        run.run()


def test_the_manifest_counts_what_happened_to_a_stream(tmp_path):
    data = {"train": write(tmp_path / "a.jsonl", rows(20)), "max_length": 8}
    pipeline(tmp_path, data).run()
    counts = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]["train"]
    assert counts["streaming"]
    assert counts["rows truncated"] > 0


@pytest.mark.parametrize(
    ("data", "train", "message"),
    [
        ({}, {"max_steps": -1}, "a stream has no end, and train.max_steps is not set"),
        ({"eval": 0.1}, {}, "a fraction of a stream cannot be held out"),
        ({}, {"dataloader_num_workers": 2}, "not by data workers"),
    ],
)
def test_unsupported_options_are_configuration_errors(tmp_path, data, train, message):
    run = pipeline(tmp_path, {"train": write(tmp_path / "a.jsonl", rows(3)), **data}, train=train)
    with pytest.raises(ConfigError, match=message):
        run.prepare()


def test_a_stream_without_trained_tokens_is_an_error(tmp_path):
    empty = [{"prompt": "a question", "completion": ""}] * 3
    path = write(tmp_path / "a.jsonl", empty)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    run = Pipeline(
        model=tiny_model(),
        tokenizer=tokenizer,
        data={"train": path, "streaming": True},
        train={**TRAIN, "output_dir": str(tmp_path / "run")},
    )
    with pytest.raises(DataError, match="every label is masked"):
        run.prepare()


def test_a_bad_row_is_an_error_or_is_skipped(tmp_path):
    path = write(tmp_path / "a.jsonl", [*rows(5), {"prompt": "x", "completion": None}])
    with pytest.raises(DataError, match="column 'completion' is null"):
        pipeline(tmp_path, {"train": path}).prepare()
    stream = pipeline(tmp_path, {"train": path, "on_bad_row": "skip", "window": 5}).prepare().data.train
    texts(stream, 5)
    assert stream.counts.by_split["train"]["bad rows skipped"] >= 1


def test_a_column_that_appears_late_is_an_error():
    from datasets import IterableDataset

    def generate():
        yield from ({"text": f"text {at}", **({"weight": 0.5} if at == 150 else {})} for at in range(200))

    rows = IterableDataset.from_generator(generate)
    config = {"data": {"streaming": True, "shuffle_buffer": 0}, "train": {"max_steps": 1, "output_dir": "unused"}}
    run = Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data=rows, config=config)
    with pytest.raises(DataError, match="column 'weight', which none of the first 100 rows has"):
        run.prepare()


def test_unreadable_lines_are_reported_by_file_or_skipped_and_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", [*rows(4), {"prompt": "half \ud83d", "completion": "x"}, *rows(4)])
    with pytest.raises(DataError, match=r"a\.jsonl:5: column 'prompt' has half of a surrogate pair"):
        pipeline(tmp_path, {"train": path}).prepare()
    stream = pipeline(tmp_path, {"train": path, "on_bad_row": "skip", "shuffle_buffer": 0}).prepare().data.train
    assert "half" not in "".join(texts(stream, 8))
    assert stream.first.counts["unreadable lines skipped"] == 1


def test_a_stream_reads_the_split_of_a_directory_and_counts_other_files(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.jsonl", rows(4, split))
    stream = pipeline(tmp_path, {"train": str(tmp_path), "window": 4}).prepare().data.train
    assert all("train" in text for text in texts(stream, 8))
    assert stream.counts.by_split["train"]["files not read: split test"] == 1


def test_saved_data_can_be_streamed(tmp_path):
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(rows(4)), test=Dataset.from_list(rows(4, "test"))).save_to_disk(tmp_path / "a")
    stream = pipeline(tmp_path, {"train": str(tmp_path / "a"), "window": 4}).prepare().data.train
    assert all("row" in text for text in texts(stream, 8))


def test_streamed_values_are_exactly_as_written(tmp_path):
    template = (
        "{% for m in messages %}{{ m['role'] }}:{% generation %}{{ m['content'] }}{% for call in m['tool_calls'] %}"
        "{{ call['function']['name'] }}:{{ call['function']['arguments'] | tojson }}{% endfor %}</s>{% endgeneration %}"
        "{% endfor %}"
    )
    given = [{"z": 3, "a": 3.0}, {"time": "2025-08-01"}, {"time": 1690876800}]
    conversations = [
        {
            "messages": [
                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": one}}]}
            ]
        }
        for one in given
    ]
    data = {"train": write(tmp_path / "a.jsonl", conversations), "streaming": True, "window": 3}
    tokenizer = tiny_tokenizer(chat_template=template)
    train = {**TRAIN, "output_dir": str(tmp_path / "run")}
    stream = Pipeline(model=tiny_model(), tokenizer=tokenizer, data=data, train=train).prepare().data.train
    found = [text.partition(":f:")[2].removesuffix("</s>") for text in texts(stream, 3)]
    assert sorted(found) == sorted(map(json.dumps, given))


def test_closing_a_generator_does_not_wait_for_its_thread():
    import threading

    from sftkit.data.threads import thread_ahead

    going, asked = threading.Event(), threading.Event()

    def numbers():
        with thread_ahead() as pool:
            while True:
                waiting = pool.submit(lambda: (asked.set(), going.wait()))
                yield 1
                waiting.result()

    generator = numbers()
    next(generator)
    asked.wait()
    generator.close()  # as the garbage collector does; with the pool's own context this would wait for `going`
    assert not going.is_set()
    going.set()
