"""What the tests of `launch` share: the command as a function, and executables that stand in for Slurm."""

from __future__ import annotations

import os
import sys

import pytest

# As Slurm does, this srun leaves signals to the processes of its tasks, which it starts on this machine.
_SRUN = """\
import os, signal, subprocess, sys

signal.signal(signal.SIGTERM, signal.SIG_IGN)
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
nodes = int(os.environ["SLURM_NNODES"])
tasks = []
for node in range(nodes):
    variables = {"SLURM_NODEID": str(node), "SLURM_PROCID": str(node), "SLURM_NTASKS": str(nodes)}
    tasks.append(subprocess.Popen(command, env={**os.environ, **variables}, start_new_session=True))
with open(os.environ["CLUSTER"] + "/tasks", "w") as file:
    file.write(" ".join(str(task.pid) for task in tasks))
sys.exit(max(task.wait() for task in tasks))
"""
_SCONTROL = """\
import os, sys

if sys.argv[1:2] == ["show"]:
    print("localhost", "localhost", sep="\\n")
else:
    with open(os.environ["CLUSTER"] + "/requeued", "a") as file:
        print(*sys.argv[2:], file=file)
"""
_SBATCH = """\
import os, sys

with open(os.environ["CLUSTER"] + "/submitted", "a") as file:
    print(*sys.argv[1:], file=file)
sys.exit(int(os.environ.get("SBATCH_CODE", "0")))
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A directory where stand-ins for Slurm's programs leave traces: ``tasks``, ``requeued`` and ``submitted``."""
    place = tmp_path / "cluster"
    (place / "bin").mkdir(parents=True)
    for name, text in {"srun": _SRUN, "scontrol": _SCONTROL, "sbatch": _SBATCH}.items():
        (place / "bin" / name).write_text(f"#!{sys.executable}\n{text}")
        (place / "bin" / name).chmod(0o755)
    monkeypatch.setenv("CLUSTER", str(place))
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return place


@pytest.fixture
def launch(in_process, monkeypatch, tmp_path):
    """Calls ``sftkit launch`` in an empty directory with a configuration; returns exit code and what was printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.yaml").write_text("model: demo\n")
    for name in ("OMP_NUM_THREADS", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: in_process("launch", *arguments)
