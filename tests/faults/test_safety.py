"""Rows 24 to 26 of the table of faults: hostile files, secrets, and plugins that are broken."""

from __future__ import annotations

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
def test_24_no_module_in_the_working_directory_is_executed(cli, hostile, configure, method, tmp_path):
    (hostile / "my_plugin.py").write_text(PLUGIN, encoding="utf-8")
    (hostile / "helpers.py").write_text("import my_helper\n\ndef passed(batch):\n    return my_helper.same(batch)\n")
    (hostile / "my_helper.py").write_text("def same(batch):\n    print('helped')\n    return batch\n")
    workers = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": method} if method else {}
    config = configure(train={"max_steps": 1, "save_strategy": "no", **workers})
    done = cli("run", config, "-p", "my_plugin:Mine", "-o", tmp_path / "run", cwd=hostile)
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
    given = (configure(), "-p", "remote:Mine:api_key=options3cr3t", "model.options.token=models3cr3t")
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
    assert (tmp_path / "done" / "checkpoint-12" / "trainer_state.json") in files
    assert any(home.rglob("entry.json"))
    assert [str(path) for path in files if b"s3cr3t" in path.read_bytes()] == []


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
