"""A launch on a Ray cluster that this machine can only submit jobs to."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sftkit.api import ConfigError, Interrupted, Problem, RunError
from sftkit_commands.launch.job import Job
from sftkit_commands.launch.ray import WHERE, Options

LOOK_SECONDS = 1.0  # between two looks at the job's lines
#: Not uploaded from the working directory, besides what .gitignore names.
EXCLUDED = ["runs/", ".git/", ".venv/", "__pycache__/"]


def entry_point(job: Job, options: Options) -> list[str]:
    """The command that the job runs on the cluster: the same launch, for the cluster that it is in."""
    chosen = [f"cpus={options.cpus:g}", f"wait={options.wait}"]
    chosen += [] if options.gpu is None else [f"gpu={str(options.gpu).lower()}"]
    command = ["sftkit", "launch", "--on", f"ray:{','.join(chosen)}", "--nnodes", str(job.nnodes)]
    command += ["--nproc", str(job.nproc)] if job.nproc else []
    command += ["--max-restarts", str(job.max_restarts)] if job.max_restarts is not None else []
    for name, value in job.environment.items():
        command += ["--env", f"{name}={value}"]
    return [*command, *job.arguments]


def submit(job: Job, options: Options) -> int:
    """Submit a job, show its lines, and wait for its end.

    The working directory is uploaded, except what is large or not needed: runs, ``.git`` and what ``.gitignore`` names.

    Returns:
        The exit code of the run.

    Raises:
        ConfigError: if the cluster does not answer, or the directory is too large.
        RunError: if the job could not be started.
        Interrupted: by a signal; the job is stopped, and saves.
    """
    import shlex

    logging.getLogger("ray").setLevel(logging.ERROR)
    client = _client(options.cluster)
    # The time between the request to stop and the end is read by the process that supervises the job.
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(options.grace), "PYTHONUNBUFFERED": "1"}
    environment = {"working_dir": os.getcwd(), "excludes": EXCLUDED, "env_vars": variables}
    try:
        number = client.submit_job(entrypoint=shlex.join(entry_point(job, options)), runtime_env=environment)
    except (RuntimeError, ValueError) as error:
        what = f"the job cannot be submitted: {' '.join(str(error).split())[:500]}"
        fix = "launch from a directory with the configuration and your modules alone; put data on shared storage"
        raise ConfigError(Problem(what, os.getcwd(), fix)) from error
    _say(f"job {number} on {options.cluster}")
    return _follow(client, number)


def _client(address: str) -> Any:
    """Raises:
    ConfigError: if nothing answers at the address.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        what = f"no Ray cluster at {address}: {' '.join(str(error).split())[:200]}"
        fix = "check the address, and that the head node runs with its dashboard (ray[default])"
        raise ConfigError(Problem(what, WHERE, fix)) from error


def _follow(client: Any, number: str) -> int:
    """Show the lines of a job until it ends; returns its exit code.

    Raises:
        Interrupted: by a signal, once the job has ended.
        RunError: if the job could not be started.
    """
    shown, stopped = 0, 0
    with _signals() as signals:
        while True:
            ended = client.get_job_status(number).is_terminal()
            text = client.get_job_logs(number)
            sys.stdout.write(text[shown:])
            sys.stdout.flush()
            shown = len(text)
            if len(signals) > 1:
                raise Interrupted(f"the job {number} goes on until it has saved", 128 + signals[-1])
            if ended:
                break
            if signals and not stopped:
                stopped = signals[0]
                client.stop_job(number)
                _say(f"{signal.Signals(stopped).name}: the run saves after this step, and the job ends")
            time.sleep(LOOK_SECONDS)
    info = client.get_job_info(number)
    if stopped:
        raise Interrupted(f"{signal.Signals(stopped).name}: the job {number} has ended", 128 + stopped)
    if info.driver_exit_code is None:
        what = f"the job {number} did not run: {' '.join(str(info.message).split())[:500]}"
        raise RunError(Problem(what, WHERE, "read `ray job logs`, and install sftkit-train[ray] on the cluster"))
    return int(info.driver_exit_code)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Context in which SIGINT and SIGTERM are kept in a list."""
    kept: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        kept.append(number)

    before = {number: signal.signal(number, keep) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield kept
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
