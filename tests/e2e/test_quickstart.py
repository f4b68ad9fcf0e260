"""The quickstart works as it is written, from the first run to the exported model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(?<!-->\n)^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_commands_of_the_quickstart_train_and_export_a_model(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, started in {"sftkit": f"{sys.executable} -m sftkit", "python": sys.executable}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {started} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    script = ["set -e"]
    for language, code in BLOCK.findall((ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")):
        script.append(code if language == "sh" else f"python - <<'PYTHON'\n{code}PYTHON")
    variables = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")]),
        "SFTKIT_CACHE": str(tmp_path / "cache"),
    }
    ran = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "1.0 runs/python" in ran.stdout
    assert ran.stdout.rstrip().endswith("Kofi is a judge.")
    assert (tmp_path / "report.html").is_file()
