"""Uploading an export, to a local server with the endpoints of the hub; and what goes wrong."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sftkit.api import ConfigError, RunError
from sftkit_commands.export.hub import check_hub, push


class Hub(BaseHTTPRequestHandler):
    """Makes repositories, and takes commits of small files."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.status != 200:
            return self.answer({"error": "you may not write here"}, self.server.status)
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            return self.answer({"url": f"{self.server.address}/ann/model", "name": "ann/model"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self.answer({"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        lines = [json.loads(line) for line in body.splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        self.server.files |= {f["path"]: base64.b64decode(f["content"]) for f in files}
        return self.answer(
            {"commitUrl": f"{self.server.address}/ann/model/commit/1", "commitOid": "1", "success": True}
        )

    def do_GET(self):
        self.answer({"error": "not found"}, 404)

    def answer(self, values, status=200):
        text = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.status, server.created, server.files, server.tokens = 200, {}, {}, set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    (tmp_path / "out" / "README.md").write_text("---\ntags: [sftkit]\n---\n")
    return tmp_path / "out"


@pytest.mark.parametrize("private", [True, False])
def test_a_directory_is_uploaded_with_the_token(private, hub, directory):
    check_hub("ann/model")
    assert push(directory, "ann/model", private) == f"{hub.address}/ann/model"
    made = hub.created  # older clients send the first key, newer ones the second
    assert made.get("private", made.get("visibility") == "private") is private
    assert hub.files == {path.name: path.read_bytes() for path in directory.iterdir()}
    assert hub.tokens == {"Bearer hf_secretsecretsecret"}


@pytest.mark.parametrize(("status", "fix"), [(403, "a token that may write there"), (401, "hf auth login")])
def test_a_refusal_names_its_status_and_keeps_the_export(status, fix, hub, directory):
    hub.status = status
    with pytest.raises(RunError, match=rf"the hub refuses the upload \({status}\).*is complete -> .*{fix}") as error:
        push(directory, "ann/model", private=True)
    assert error.value.exit_code == 2
    assert "hf_secret" not in str(error.value)
    assert len(list(directory.iterdir())) == 2


def test_a_hub_that_cannot_be_reached_is_an_error(hub, directory, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(RunError, match=r"the hub cannot be reached: .*upload .* `hf upload ann/model /"):
        push(directory, "ann/model", private=True)


def test_what_can_be_known_before_is_checked_before(hub, monkeypatch):
    from huggingface_hub import constants

    with pytest.raises(ConfigError, match="use a name such as owner/name"):
        check_hub("a/b/c")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="there is no token for the hub"):
        check_hub("ann/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="switched off by HF_HUB_OFFLINE"):
        check_hub("ann/model")
