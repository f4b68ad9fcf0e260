"""Rows 24 to 26 of the table of faults: hostile files, secrets, and plugins that are broken."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sftkit import Pipeline
from sftkit.errors import SftkitError

SECRET = "s3cr3t"
PLUGIN = """
from sftkit.api import Plugin, dataclass, hookimpl

class Collate:
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, rows):
        import helpers

        return helpers.passed(self.inner(rows))

@dataclass(frozen=True, kw_only=True)
class Mine(Plugin):
    \"\"\"The user's own.\"\"\"

    api_key: str = ""

    @hookimpl(wrapper=True)
    def make_collator(self):
        return Collate((yield))
"""


class Canary:
    """An object whose pickle writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def errors_of(*arguments, **options) -> str:
    """The problems of a run that is prepared in this process."""
    with pytest.raises(SftkitError) as raised:
        Pipeline(*arguments, **options).prepare()
    return str(raised.value)


@pytest.fixture
def hostile(tmp_path):
    """A directory with a file named like each module that a run imports, which leaves a trace if it is executed."""
    directory = tmp_path / "hostile"
    directory.mkdir()
    names = {name.partition(".")[0] for name in sys.modules} | {"wandb", "kernels", "flash_attn", "winreg", "jax"}
    names |= {"yaml", "datasets", "tokenizers", "peft", "pandas", "multiprocess", "dill", "fsspec", "git"}
    for name in filter(str.isidentifier, names - {"__main__", "__mp_main__", "sftkit", "sftkit_plugins"}):
        trace = f"import os\nos.makedirs({str(tmp_path / 'executed' / name)!r})\nraise ImportError('hostile')\n"
        (directory / f"{name}.py").write_text(trace, encoding="utf-8")
    return directory


def executed(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "executed").glob("*"))


@pytest.mark.parametrize("method", ["", pytest.param("spawn", marks=pytest.mark.slow)])
def test_24_no_module_in_the_working_directory_is_executed(fresh_cli, hostile, configure, method, tmp_path):
    (hostile / "my_plugin.py").write_text(PLUGIN, encoding="utf-8")
    (hostile / "helpers.py").write_text("import my_helper\n\ndef passed(batch):\n    return my_helper.same(batch)\n")
    (hostile / "my_helper.py").write_text("def same(batch):\n    print('helped')\n    return batch\n")
    workers = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": method} if method else {}
    config = configure(train={"max_steps": 1, "save_steps": 9, **workers})
    done = fresh_cli("run", config, "-p", "my_plugin:Mine", "-o", tmp_path / "run", cwd=hostile)
    assert "helped" in done.stdout
    assert not executed(tmp_path)


def test_24_the_module_of_python_m_does_not_look_into_the_working_directory(hostile, tmp_path):
    for name in sys.stdlib_module_names:  # Python itself imports some of them before sftkit begins
        (hostile / f"{name}.py").unlink(missing_ok=True)
    command = [sys.executable, "-m", "sftkit", "run", "train.learning_rat=1", "-o", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=hostile, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert "learning_rate" in done.stderr
    assert not executed(tmp_path)


def test_24_an_installed_module_wins_over_one_in_the_working_directory(hostile, monkeypatch, tmp_path):
    monkeypatch.chdir(hostile)
    assert "has no 'shout'" in errors_of("demo", "demo", plugins=[{"formats": {"formatting": "yaml:shout"}}])
    assert "is broken" in errors_of("demo", "demo", plugins=["tokenizers:Mine"])
    assert not executed(tmp_path)


def test_24_pickles_are_refused_and_not_read(saved_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(saved_model, model)
    (model / "model.safetensors").unlink()
    canary = pickle.dumps(Canary(tmp_path / "canary"))
    (model / "pytorch_model.bin").write_bytes(canary)
    assert "are pickles, which can run code" in errors_of(model, "demo")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(saved_model), "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (adapter / "adapter_model.bin").write_bytes(canary)
    assert "are a pickle, which can run code" in errors_of(adapter, "demo")
    for name in ("rows.pkl", "rows.pt", "rows.npy"):
        (tmp_path / name).write_bytes(canary)
        assert "unsupported file type" in errors_of("demo", tmp_path / name)
    for name in ("rows.jsonl", "rows.parquet", "rows.arrow", "rows.csv", "rows.txt"):
        (tmp_path / name).write_bytes(canary)
        assert str(tmp_path / name) in errors_of("demo", tmp_path / name)
    assert not (tmp_path / "canary").exists()


def test_24_yaml_tags_are_refused(tmp_path):
    for tag in (f"!!python/object/apply:os.mkdir ['{tmp_path / 'canary'}']", "!!python/name:os.system", "!mine x"):
        config = tmp_path / "run.yaml"
        config.write_text(f"model: demo\ndata: {tag}\n", encoding="utf-8")
        assert f"{config}:2: not valid YAML: could not determine a constructor" in errors_of(config=config)
    assert not (tmp_path / "canary").exists()


def test_24_names_like_paths_are_refused(tmp_path):
    for name in ("../x", "a/b", "a\\b", "..", ".x", "", "a\nb", "/etc/x"):
        assert f"an evaluation set cannot be named {name!r}"[:40] in errors_of("demo", "demo", eval={name: "demo"})
    loaded = {"../x": [{"prompt": "a", "completion": "b"}]}
    assert "an evaluation set cannot be named '../x'" in errors_of("demo", "demo", eval=loaded)
    for name in ("../x", "../x:Y", "/etc/passwd"):
        assert "no plugin is named" in errors_of("demo", "demo", plugins=[name])


def test_24_remote_code_runs_only_if_it_is_trusted(saved_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(saved_model, model)
    code = f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\n"
    (model / "remote.py").write_text(code, encoding="utf-8")
    for file, changed in (
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["remote.Its", "remote.Its"]}}),
        (
            "config.json",
            {"model_type": "its", "auto_map": {"AutoConfig": "remote.Its", "AutoModelForCausalLM": "remote.M"}},
        ),
    ):
        values = json.loads((model / file).read_text(encoding="utf-8"))
        (model / file).write_text(json.dumps({**values, **changed}), encoding="utf-8")
    with pytest.raises(SftkitError) as raised:
        Pipeline(model, [{"prompt": "a", "completion": "b"}], train={"output_dir": str(tmp_path / "run")}).run()
    assert "set model.trust_remote_code=true if you trust the code" in str(raised.value)
    assert not (tmp_path / "canary").exists()


REMOTE = """
import io, json
import fsspec
import pyarrow as pa
from pyarrow import parquet
import my_plugin

ROWS = [{"prompt": f"What is {n}?", "completion": f" {n}"} for n in range(24)]
system = fsspec.filesystem("memory")
system.pipe("/ada:urls3cr3t@bucket/rows.jsonl", "".join(json.dumps(row) + "\\n" for row in ROWS).encode())
for name, rows in (("rows", ROWS), ("eval", [{"prompt": "Why?", "completion": " So."}])):
    table = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), table)
    system.pipe(f"/ada:urls3cr3t@bucket/{name}.parquet", table.getvalue())

class Mine(my_plugin.Mine):
    @my_plugin.hookimpl
    def adapt_model(self, model):
        import logging
        logging.getLogger("transformers").warning("reading %s with %s", "s3://a:urls3cr3t@bucket/x", "envs3cr3t-token")
        if self.api_key == "options3cr3t-fails":
            raise ValueError("cannot open https://ada:urls3cr3t@host/x?sig=urls3cr3t&x=1 with envs3cr3t-token")
        return model
"""


def test_25_secrets_are_in_no_output_and_in_no_file(start, configure, tmp_path):
    (tmp_path / "my_plugin.py").write_text(PLUGIN, encoding="utf-8")
    (tmp_path / "helpers.py").write_text("def passed(batch):\n    return batch\n", encoding="utf-8")
    remote = REMOTE.replace("class Mine", "@my_plugin.dataclass(frozen=True, kw_only=True)\nclass Mine")
    (tmp_path / "remote.py").write_text(remote, encoding="utf-8")
    home = tmp_path / "home"
    env = {
        **{"HOME": str(home), "SFTKIT_CACHE": str(home / "cache"), "TENSORBOARD_LOGGING_DIR": str(home / "board")},
        **{"HF_TOKEN": "hf_envs3cr3t-token", "WANDB_API_KEY": "envs3cr3t-token", "AWS_SECRET_ACCESS_KEY": "s3cr3t/a+b"},
    }
    url = "memory://ada:urls3cr3t@bucket"
    given = (
        configure(train={"max_steps": 4}),
        "-p",
        "remote:Mine:api_key=options3cr3t",
        "model.options.token=models3cr3t",
    )
    written = {}
    for name, code, command, *more in (
        ("done", 0, "run", f"data.train={url}/rows.jsonl", f"data.eval={url}/eval.parquet"),
        (
            "stream",
            0,
            "run",
            f"data.train={url}/rows.jsonl",
            "data.streaming=true",
            "data.window=24",
            "train.save_strategy=no",
            "train.save_steps=null",
        ),
        ("fails", 1, "run", f"data.train={url}/rows.jsonl", "-p", "remote:Mine:api_key=options3cr3t-fails"),
        ("check", 0, "check", f"data.train={url}/rows.jsonl", "--json"),
        ("listed", 0, "cache", "list"),
    ):
        arguments = [command, *(() if command == "cache" else (*given, "-o", tmp_path / name)), *more]
        done = start(*arguments, env=env)
        assert done.wait() == code, done.output
        written[name] = done.output
        assert SECRET not in done.output, name
    assert "token" in json.loads((tmp_path / "done" / "manifest.json").read_text())["config"]["model"]["options"]
    assert "memory://***@bucket/rows.jsonl" in written["listed"]
    assert "reading s3://***@bucket/x with ***" in written["done"]
    assert "https://***@host/x?sig=***&x=***" in written["fails"]
    sources = {tmp_path / "remote.py"}
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path not in sources]
    assert (tmp_path / "done" / "checkpoint-4" / "trainer_state.json") in files
    assert any(home.rglob("entry.json"))
    assert [str(path) for path in files if b"s3cr3t" in path.read_bytes()] == []


@pytest.mark.slow
def test_25_a_resumed_run_may_have_another_token(start, configure, tmp_path):
    config = configure(train={"max_steps": 4})
    assert start("run", config, "model.options.token=one", "-o", "run").wait() == 0
    assert start("run", config, "model.options.token=two", "train.max_steps=6", "-o", "run", "--resume").wait() == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["config"]["model"]["options"] == {"token": "***"}


def test_25_errors_do_not_show_secrets():
    for url in ("memory://ada:s3cr3t@host/none.jsonl", "nothing://ada:s3cr3t@host/x.jsonl?sig=s3cr3t&se=1"):
        assert SECRET not in (problems := errors_of("demo", url))
        assert url.partition("ada")[0] + "***@host/" in problems
    problems = errors_of(
        "demo",
        ["https://ada:s3cr3t@host/a.jsonl?sig=s3cr3t", 3],
        train={"hub_token": "s3cr3t", "push_to_hub": "s3://ada:s3cr3t@host/"},
        config={"model": {"options": "{'token': 's3cr3t'}"}},
    )
    assert SECRET not in problems
    assert "train.hub_token: cannot be set here" in problems


@pytest.mark.slow
def test_24_paths_with_brackets_spaces_and_other_scripts_work(start, configure, saved_model, tmp_path):
    odd = tmp_path / "run [1] *x* é 数据"
    odd.mkdir()
    shutil.copytree(saved_model, odd / "model [2]")
    config = configure(train={"max_steps": 4}, model={"name": str(odd / "model [2]")})
    data = (tmp_path / "rows.jsonl").rename(odd / "rows [3].jsonl")
    held_out = odd / "eval [4].jsonl"
    held_out.write_text('{"prompt": "Why?", "completion": " So."}\n', encoding="utf-8")
    config = config.rename(odd / "config [5].yaml")
    given = ("run", config, f"data.train={data}", f"data.eval={held_out}", "-o", odd / "out [6]")
    run = start(*given)
    assert run.wait() == 0, run.output
    assert (odd / "out [6]" / "model.safetensors").is_file()
    resumed = start(*given, "train.max_steps=6", "--resume")
    assert resumed.wait() == 0, resumed.output


def test_24_a_cache_or_home_that_cannot_be_written_is_an_error(start, configure):
    config = configure(train={"max_steps": 1, "save_steps": 9})
    for variables in ({"SFTKIT_CACHE": "/dev/null/x"}, {"SFTKIT_CACHE": "", "HOME": "/dev/null"}):
        run = start("run", config, "-o", "run", env=variables)
        assert run.wait() == 2, run.output
        assert "nothing can be written into the cache" in run.output
        assert "set SFTKIT_CACHE to a directory" in run.output


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_24_commands_work_with_any_code_page(encoding, monkeypatch, tmp_path):
    from sftkit.cli import main

    monkeypatch.chdir(tmp_path)
    data = tmp_path / "数据.jsonl"
    data.write_text('{"prompt": "数据 \\ud83d\\ude00 ≤", "completion": " é█"}\n' * 2, encoding="utf-8")
    given = ("-m", "demo", "-d", str(data), "-p", "no:checks")
    commands = {"--help": 0, "plugins": 0, "plugins packing": 0, "cache list": 0, "preview": 0, "check": 0, "run": 2}
    for command, code in commands.items():
        written = io.BytesIO()
        streams = [io.TextIOWrapper(written, encoding=encoding, write_through=True) for _ in range(2)]
        for name, stream in zip(("stdout", "stderr"), streams, strict=True):
            monkeypatch.setattr(sys, name, stream)
        more = given if command in ("preview", "check") else ("数据.yaml",) if command == "run" else ()
        monkeypatch.setattr(sys, "argv", ["sftkit", *command.split(), *more])
        with pytest.raises(SystemExit) as ended:
            main()
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        text = written.getvalue().decode(encoding)
        assert int(ended.value.code or 0) == code, f"{command}: {text}"
        assert "Traceback" not in text


def test_24_a_run_does_not_replace_the_model_that_it_reads(start, configure, saved_model, tmp_path):
    assert start("run", configure(train={"max_steps": 4}), "-o", "first").wait() == 0
    before = (tmp_path / "first" / "model.safetensors").read_bytes()
    for name in ("first", "first/checkpoint-4", tmp_path / "first" / ".." / "first"):
        second = start("run", configure(model={"name": str(name)}), "-o", "first", "--overwrite")
        assert second.wait() == 2
        assert "the model is in the output directory" in second.output
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == before


def test_26_each_broken_plugin_is_named_with_its_fix_and_harms_no_other(start, configure, tmp_path):
    head = "from typing import Annotated\nfrom sftkit.api import Plugin, dataclass, hookimpl\n"
    mark = "@dataclass(frozen=True, kw_only=True)\n"

    def plugin(name: str, body: str) -> str:
        return f'{head}{mark}class {name}(Plugin):\n    """Test."""\n{body}\n'

    adapts = "    @hookimpl\n    def adapt_model(self, model):\n        return model\n"
    modules = {
        "raises": "raise RuntimeError('boo')",
        "needs": "import no_such_package_here",
        "missing": plugin("P", "    requires = ('no-such-package>=1',)\n"),
        "version": plugin("P", "    requires = ('torch>=99',)\n"),
        "first": plugin("P", adapts),
        "second": plugin("P", adapts),
        "hook": plugin("P", "    @hookimpl\n    def adapt_modle(self, model):\n        return model\n"),
        "argument": plugin("P", "    @hookimpl\n    def adapt_model(self, modle):\n        return modle\n"),
        "option": plugin("P", "    strength: float = 1.0\n"),
        "fine": plugin("P", ""),
    }
    for name, code in modules.items():
        (tmp_path / f"p_{name}.py").write_text(code, encoding="utf-8")
    config = configure(train={"max_steps": 1, "save_steps": 9})
    selected = [item for name in modules if name != "option" for item in ("-p", f"p_{name}:P")]
    done = start("run", config, *selected, "-p", "p_option:P:strenght=2", "-p", "pakcing", "-o", "run")
    assert done.wait() == 2
    for expected in (
        "plugin 'p_raises:P' is broken: RuntimeError: boo -> fix, uninstall or deselect the plugin",
        "plugin 'p_needs:P' is broken: ModuleNotFoundError: No module named 'no_such_package_here'",
        "plugin p_missing:P: needs the package no-such-package, which is not installed -> pip install",
        "plugin p_version:P: needs torch>=99, but",
        'pip install "torch>=99"',
        "plugins p_first:P and p_second:P both fill the slot adapt_model -> keep one of",
        "adapt_modle",
        "did you mean 'adapt_model'?",
        "modle",
        "option strenght: no such option -> did you mean 'strength'?",
        "no plugin is named 'pakcing' -> did you mean 'packing'?",
    ):
        assert expected in done.output
    assert not (tmp_path / "run").exists()
    works = start("run", config, "-p", "p_fine:P", "-o", "run")
    assert works.wait() == 0, works.output
