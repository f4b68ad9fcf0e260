"""`sftkit chat`: prompts as in training, answers as without a cache, commands, and one prompt for scripts."""

from __future__ import annotations

import dataclasses
import json
import signal

import pytest
import torch
from rich.console import Console
from transformers import DynamicCache

from sftkit import Pipeline
from sftkit.api import ConfigError, TrainedModel, end_token_ids, load_trained
from sftkit.testing import CHATML, tiny_model, tiny_tokenizer
from sftkit_commands.chat import opening, speaker as speaking
from sftkit_commands.chat.commands import Chat
from sftkit_commands.chat.forms import ChatForm, TextForm, form_of
from sftkit_commands.chat.opening import Loading, Prompting, open_speakers
from sftkit_commands.chat.settings import Sampling, sampling_of
from sftkit_commands.chat.show import Writer, side_by_side
from sftkit_commands.chat.speaker import Speaker
from sftkit_commands.chat.terminal import make_reader

ROWS = [{"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": "yes"}]} for word in "abcd"]
SHORT = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model directory without a chat template."""
    directory = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """The directory of a run that trained an adapter with new tokens."""
    directory = tmp_path_factory.mktemp("chat") / "runs" / "one"
    train = {"output_dir": str(directory), "max_steps": 1, "learning_rate": 1e-5}
    return Pipeline(str(base), ROWS, plugins=["chatml", "peft:r=2"], train=train).run().directory


@pytest.fixture(scope="module")
def talker(run):
    return open_speakers(str(run), "", Loading(), Prompting())[0]


def trained_on(rows, base, template=None, plugins=(), **data):
    """What a run on these rows leaves, without its weights, and the ids of its first row."""
    tokenizer = tiny_tokenizer(chat_template=template)
    prepared = Pipeline(str(base), rows, tokenizer=tokenizer, plugins=[*plugins], config={"data": data}).prepare()
    manifest = {"config": prepared.config.model_dump(mode="json"), "columns": prepared.data.columns}
    return TrainedModel(str(base), None, prepared.tokenizer, None, manifest), prepared.data.train[0]["input_ids"]


QUESTION = [{"role": "user", "content": "what is it"}]
DATED = "{{ strftime_now('%Y') }} {{ style }}" + CHATML


def prefix_columns(row):
    return [(f"<{row['a']}>", False), (row["b"], True)]


@pytest.mark.parametrize(
    ("row", "template", "plugins", "data"),
    [
        ({"messages": [*QUESTION, {"role": "assistant", "content": "one"}]}, CHATML, [], {}),
        (
            {"messages": [*QUESTION, {"role": "assistant", "content": "one"}]},
            DATED,
            ["formats:date=1999-01-01"],
            {"chat_template_kwargs": {"style": "kind"}},
        ),
        ({"prompt": "what is it", "completion": "\n one"}, None, [], {}),
        ({"prompt": "what is it", "completion": "\n one"}, CHATML, [], {"special_tokens": "none"}),
        ({"instruction": "what is it", "input": "", "output": "one"}, None, ["formats:loss=all"], {}),
        ({"question": "what is it", "answer": "one", "weight": 0.5}, None, [], {"special_tokens": "tokenizer"}),
        ({"a": "what is it", "b": "one"}, None, ["formats:formatting=tests_of_chat:prefix_columns"], {}),
        ({"text": "what is it"}, CHATML, [], {}),
    ],
)
def test_a_prompt_is_what_the_run_trained_on(row, template, plugins, data, base, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tests_of_chat", sys.modules[__name__])
    trained, ids = trained_on([row], base, template, plugins, **data)
    prompt = form_of(trained, "auto", {}).ids(QUESTION)
    assert prompt == list(ids[: len(prompt)])
    assert trained.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip() in ("one", "")


def test_a_template_without_a_prompt_for_the_answer_gets_its_header():
    tokenizer = tiny_tokenizer(chat_template=CHATML.partition("{% if add_generation_prompt")[0])
    assert ChatForm(tokenizer).text(QUESTION).endswith("<|im_start|>assistant\n")
    answer = "{{ '[INST]' ~ m.content ~ '[/INST]' if m.role == 'user' else ' ' ~ m.content }}"
    mistral = f"{{% for m in messages %}}{answer}{{% endfor %}}"
    assert ChatForm(tiny_tokenizer(chat_template=mistral)).text(QUESTION) == "[INST]what is it[/INST]"


def test_a_template_that_reads_parts_gets_them():
    template = "{% for m in messages %}{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endfor %}"
    tokenizer = tiny_tokenizer(chat_template=template + "{% if add_generation_prompt %}>{% endif %}")
    assert ChatForm(tokenizer).text(QUESTION) == "[what is it]>"


def test_a_template_that_rejects_messages_is_an_error():
    tokenizer = tiny_tokenizer(chat_template="{{ raise_exception('no system') }}")
    with pytest.raises(ConfigError, match=r"roles: user.*no system"):
        ChatForm(tokenizer).text(QUESTION)


def test_the_token_after_a_turn_ends_an_answer():
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<pad>{% endfor %}"
    tokenizer = tiny_tokenizer(chat_template=template)
    assert set(end_token_ids(tiny_model(), tokenizer)) == {tokenizer.eos_token_id, tokenizer.pad_token_id}


@pytest.mark.parametrize(("architecture", "cached"), [("llama", True), ("gpt2", True), ("gemma2", False)])
def test_an_answer_with_the_cache_is_that_without(architecture, cached):
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    model = tiny_model(architecture).eval()

    def speaker():
        return Speaker("tiny", TrainedModel("tiny", model, tokenizer), ChatForm(tokenizer))

    kept, messages = speaker(), []
    for question in ("hello", "what is 日本 🙂", "again"):
        messages.append({"role": "user", "content": question})
        pieces = []
        answer = kept.answer(messages, SHORT, pieces.append)
        assert answer.text == "".join(pieces) == speaker().answer(messages, SHORT, pieces.append).text
        assert (kept._cache is not None) is cached
        messages.append({"role": "assistant", "content": answer.text})
    if cached:
        assert kept._fitting_cache(kept._cached).get_seq_length() == len(kept._cached) - 1
        assert isinstance(kept._fitting_cache([5, 6]), DynamicCache)
        assert kept.answer(messages[:1], SHORT, pieces.append).text == messages[1]["content"]


def test_characters_of_several_tokens_arrive_whole():
    tokenizer, pieces = tiny_tokenizer(), []
    ids = tokenizer("日本 🙂 é", add_special_tokens=False)["input_ids"]
    streamer = speaking._Pieces(tokenizer, [1], pieces.append)
    for value in ([[0]], *([number] for number in [*ids, ids[0]])):
        streamer.put(torch.tensor(value))
    assert "".join(pieces) == "日本 🙂 é"
    assert streamer.finish(streamer.ids) == "".join(pieces)
    assert "\ufffd" not in "".join(pieces[:-1])


def test_an_answer_stops_where_it_must(talker, monkeypatch):
    monkeypatch.setattr(speaking, "end_token_ids", lambda *_: [])
    calls = iter([False, False, True])
    stopped = talker.answer(QUESTION, SHORT, print, lambda: next(calls))
    assert (stopped.stopped, stopped.tokens) == ("interrupted", 3)
    assert talker.answer(QUESTION, SHORT, print).stopped == "length"
    room = talker.room - len(talker.form.ids(QUESTION))
    assert (
        talker.answer([{"role": "user", "content": "what is it" + "q" * (room - 5)}], Sampling(), print).stopped
        == "context"
    )
    with pytest.raises(ConfigError, match=r"context window is 256: nothing was cut off"):
        talker.answer([{"role": "user", "content": "a " * 300}], SHORT, print)


def test_sampling_is_that_of_the_model_unless_it_is_set():
    model = tiny_model()
    assert str(sampling_of(model, {})) == "greedy, at most 512 new tokens"
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.8, top_k=None)
    found = sampling_of(model, {})
    assert (found.temperature, found.top_p, found.top_k) == (0.7, 0.8, 0)
    assert "generation_config.json" in str(found)
    assert str(sampling_of(model, {"temperature": 0.0})) == "greedy, at most 512 new tokens"
    assert sampling_of(tiny_model(), {"top_p": 0.5}).temperature == 1


def chat(speakers, *lines, width=80, **options):
    """What a chat shows for some lines."""
    screen = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115
    written = iter(lines)

    def read():
        line = next(written, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    talk = Chat(speakers, dataclasses.replace(SHORT, **options), screen)
    talk.run(read)
    return talk, screen.export_text()


def test_commands_change_the_conversation(talker, tmp_path):
    talk, shown = chat([talker], "hello", "/system be kind", "one", "two", "/undo", "/retry", "/nix", "/undo", "/undo")
    assert talk.conversation.messages() == [{"role": "system", "content": "be kind"}]
    assert "removed: two" in shown
    assert "> one" in shown
    assert "there is no command /nix" in shown
    assert "there is no question to remove" in shown


def test_settings_and_variables_are_set(talker):
    template = CHATML.replace("<|im_start|>{{", "<|im_start|>{{ style }}{{")
    form = ChatForm(tiny_tokenizer(chat_template=template))
    speaker = dataclasses.replace(talker, form=form)
    lines = ("/set max-new-tokens=3", "/set style=kind", "/set styl=x", "/set temperature=hot", "/set", "hello")
    talk, shown = chat([speaker], *lines)
    assert talk.sampling.max_new_tokens == 3
    assert form.variables == {"style": "kind"}
    assert "did you mean 'style'?" in shown
    assert "'hot' is not allowed for temperature" in shown
    assert "stopped after 3 tokens" in shown


def test_a_saved_conversation_can_be_trained_on(talker, tmp_path, base):
    file = tmp_path / "saved.jsonl"
    chat([talker], "/save x", "hello", f"/save {file}", "again", f"/save {file}")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [len(row["messages"]) for row in rows] == [2, 4]
    assert all(message["content"] for message in rows[0]["messages"])
    data = Pipeline(str(base), str(file), plugins=["chatml"]).prepare().data
    assert len(data.train) == 2


def test_a_saved_prompt_has_the_columns_of_the_data(base):
    trained, _ = trained_on([{"question": "what is it", "answer": "one"}], base)
    form = form_of(trained, "auto", {})
    assert form.rows([*QUESTION, {"role": "assistant", "content": "two"}]) == [
        {"question": "what is it", "answer": "two"}
    ]
    assert TextForm(trained.tokenizer, "text").rows([*QUESTION, {"role": "assistant", "content": "?"}]) == [
        {"text": "what is it?"}
    ]


def test_control_c_stops_the_answer_and_not_the_chat(talker, monkeypatch):
    def answer(messages, sampling, emit, stop):
        emit("a start")
        signal.raise_signal(signal.SIGINT)
        assert stop()
        return speaking.Answer("a start", 2, 3, "interrupted", 0.1)

    speaker = dataclasses.replace(talker)
    monkeypatch.setattr(speaker, "answer", answer)
    talk, shown = chat([speaker], "hello", KeyboardInterrupt(), "/help")
    assert "a start" in talk.conversation.messages()[1]["content"]
    assert "stopped by Ctrl-C" in shown
    assert "Ctrl-D or /quit leaves" in shown
    assert "/retry" in shown


def test_compare_base_uses_the_model_without_its_adapter(run, base, monkeypatch):
    loads = []
    monkeypatch.setattr(opening, "load_trained", lambda *a, **k: loads.append(a) or load_trained(*a, **k))
    speakers = open_speakers(str(run), "base", Loading(), Prompting())
    assert len(loads) == 1
    for name, weight in speakers[0].trained.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(weight)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = load_trained(base).model(ids).logits
        assert not torch.allclose(speakers[0].trained.model(ids).logits[..., :320], before)
        with speakers[1].around():
            torch.testing.assert_close(speakers[1].trained.model(ids).logits[..., :320], before)
    _, narrow = chat(speakers, "what is it", width=60)
    _, wide = chat(speakers, "what is it", width=140)
    assert "without its adapter:" in narrow
    assert "┃" in wide


def test_another_model_to_compare_with_gets_the_same_text(run, base):
    first, other = open_speakers(str(run), str(base), Loading(), Prompting())
    assert other.form.text(QUESTION) == first.form.text(QUESTION)
    assert other.form.ids(QUESTION) != first.form.ids(QUESTION)
    with pytest.raises(ConfigError, match="no run trained this model"):
        open_speakers(str(base), "base", Loading(), Prompting(form="text"))


def test_what_does_not_fit_is_an_error(run, base):
    with pytest.raises(ConfigError, match="no chat template"):
        open_speakers(str(base), "", Loading(), Prompting(form="chat"))
    with pytest.raises(ConfigError, match="variables are for a chat template"):
        open_speakers(str(base), "", Loading(), Prompting(variables={"x": 1}))
    with pytest.raises(ConfigError, match="no setting 'enable'"):
        open_speakers(str(run), "", Loading(), Prompting(variables={"enable": 1}))
    with pytest.raises(ConfigError, match="no format 'chta'"):
        open_speakers(str(run), "", Loading(), Prompting(form="chta"))


def test_lines_wrap_at_words_and_control_characters_are_shown():
    screen = Console(width=24, record=True, file=(file := __import__("io").StringIO()))
    writer = Writer(screen)
    for piece in ("one two thr", "ee four five six ", "\x1b[31mred", "\n```\n" + "x" * 30 + "\n```\n", "日本語" * 6):
        writer.write(piece)
    writer.end()
    lines = file.getvalue().splitlines()
    assert lines[:2] == ["one two three four five ", "six \ufffd[31mred"]
    assert "x" * 30 in lines
    assert lines[-2:] == ["日本語" * 4, "日本語" * 2]
    side_by_side(
        Console(width=120, file=file),
        {"a": speaking.Answer("left", 1, 1, "end", 0), "b": speaking.Answer("right", 1, 1, "length", 0)},
    )
    assert "stopped after 1" in file.getvalue()


def test_what_is_written_may_have_several_lines(tmp_path, monkeypatch):
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with create_pipe_input() as keys:
        read = make_reader(input=keys, output=DummyOutput())
        keys.send_text("one\\\rtwo\nthree\x1b\rfour\r")
        assert read() == "one\ntwo\nthree\nfour"
        keys.send_text("\x04")
        with pytest.raises(EOFError):
            read()
    assert "+three" in (tmp_path / "sftkit" / "chat_history").read_text()


def test_a_script_gets_the_answer_alone(run, capsys, monkeypatch):
    import io

    from typer.testing import CliRunner

    from sftkit.cli import app

    monkeypatch.chdir(run.parents[1])
    options = ["--max-new-tokens", "4"]
    (run / "generation_config.json").write_text("{}")
    monkeypatch.setattr("sys.stdin", io.StringIO("what is it\n"))
    piped = CliRunner().invoke(app, ["chat", *options], input="what is it\n")
    assert piped.exit_code == 0, piped.output
    assert "the newest run is runs/one" in piped.stderr
    asked = CliRunner().invoke(app, ["chat", "runs/one", "--prompt", "what is it", "--json", *options])
    found = json.loads(asked.stdout)
    assert piped.stdout == f"{found['answer']}\n"
    assert found["prompt"] == "what is it"
    assert found["answer_tokens"] <= 4
    assert found["prompt_tokens"] > 4


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--prompt", "x", "--top-p", "3", "--top-k", "-1"], "--top-k"),
        (["--prompt", " "], "the prompt is empty"),
        (["no/such/dir", "--prompt", " "], "there is no directory"),
        (["--prompt", "x", "--template-option", "kind"], "not of the form key=value"),
        (["--prompt", "x"], "there is no run with a model in the directory runs"),
    ],
)
def test_a_wrong_call_is_an_error_before_anything_is_loaded(arguments, wrong, in_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed = in_process("chat", *arguments)
    assert code == 2
    assert wrong in printed
