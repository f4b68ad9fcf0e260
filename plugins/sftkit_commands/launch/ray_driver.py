"""The process that launches a run on Ray: it starts Ray Train, and shows what the first worker prints."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ray

from sftkit.api import ConfigError, Interrupted, Problem, RunError, TrainingError, run_command
from sftkit_commands.launch.ray import WHERE, Launch
from sftkit_commands.launch.ray_channel import Channel, Restarts, first_line, train

CONNECT_SECONDS = 5.0
READ_SECONDS = 0.2  # between two looks at what the workers print
COLLECTIVE_SECONDS = 24 * 3600  # a process that stalls is noticed before: run.timeout
SAY_SECONDS = 60.0  # between two lines about what a launch waits for
#: Variables that Ray Train reads in this process, and passes to its own.
VARIABLES = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints are those of the command
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",  # it would take the place of the command's log lines
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths begin where the launch does
    "RAY_USAGE_STATS_ENABLED": "0",  # of a cluster that is started for the run
}


def drive(launch: Launch, address: str) -> int:
    """Run a launch, and wait for its end.

    Args:
        launch: what to run.
        address: of the cluster; empty for that of this node, or a new one.

    Returns:
        The exit code: 0, or 1 after a bug, whose traceback is printed.

    Raises:
        ConfigError: if there is no such cluster, or not enough resources on this machine.
        SftkitError: if the run fails.
        Interrupted: if a signal ends it.
    """
    own = _connect(address, launch.environment)
    try:
        return _Drive(launch, own).run()
    finally:
        ray.shutdown()


def prepare(arguments: list[str], address: str, cpus: float, environment: Mapping[str, str]) -> int:
    """Do what ``sftkit prepare`` does, with the examples made by Ray tasks.

    Args:
        arguments: those of ``sftkit``.
        address: of the cluster; empty for that of this node, or a new one.
        cpus: that each task takes.
        environment: variables of the tasks.

    Returns:
        The exit code: 0.

    Raises:
        SftkitError: if it fails.
    """
    from sftkit_commands.launch.ray_tasks import RayExecutor

    threads = max(int(cpus), 1)
    pinned = {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": str(threads > 1).lower()}
    _connect(address, {**pinned, **environment})
    executor = RayExecutor(cpus)
    try:
        run_command(arguments, executor=executor, size=max(int(_total("CPU") / cpus), 1))
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        ray.shutdown()
    return 0


def _connect(address: str, environment: Mapping[str, str]) -> bool:
    """Connect to the cluster; returns whether it was started for the run.

    Raises:
        ConfigError: if there is none at the address.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    if ":" in address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            fix = "check the address, and that the head node runs (`ray status` there)"
            raise ConfigError(Problem(f"no Ray cluster at {address}: {error}", WHERE, fix)) from error
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if environment:
        options["runtime_env"] = {"env_vars": dict(environment)}
    try:
        ray.init(address=address or "auto", **options)
        return False
    except ConnectionError as error:
        if address not in ("", "local"):
            fix = "start one with `ray start --head`, or give its address"
            what = "no Ray cluster runs on this node" if address == "auto" else f"no Ray cluster at {address}"
            raise ConfigError(Problem(what, WHERE, fix)) from error
    except (RuntimeError, ValueError) as error:  # such as another version of Ray or Python
        what = f"cannot join the Ray cluster: {first_line(error)}"
        raise ConfigError(Problem(what, WHERE, "use the versions of Ray and Python that the cluster has")) from error
    ray.init(address="local", include_dashboard=False, **options)
    return True


class _Drive:
    """One launch.

    Args:
        launch: what to run.
        own: whether the cluster was started for it, so that it does not grow.
    """

    def __init__(self, launch: Launch, own: bool) -> None:
        self._launch, self._own = launch, own
        self._signals: list[int] = []
        self._asked = False
        self._began = self._said = time.monotonic()
        self._error: BaseException | None = None

    def run(self) -> int:
        """As of `drive`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._gpu = self._launch.gpu is not False and bool(self._launch.gpu or _total("GPU"))
        if self._own and (lack := self._lack()):
            raise ConfigError(Problem(lack, WHERE, "start fewer processes, or give the address of a cluster"))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._channel = ray.remote(num_cpus=0)(Channel).options(scheduling_strategy=here).remote()
        trainer = self._trainer()
        fitting = threading.Thread(target=self._fit, args=(trainer,), name="sftkit-ray", daemon=True)
        with self._signals_kept():
            fitting.start()
            while fitting.is_alive():
                self._look()
                fitting.join(READ_SECONDS)
            self._look()
        return self._outcome()

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except BaseException as error:
            self._error = error

    def _trainer(self) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        launch, output = self._launch, Path(self._launch.output)
        resources = {"CPU": launch.cpus} | ({"GPU": 1.0} if self._gpu else {})
        tries = launch.restarts + 1
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(max(launch.wait / tries, 1.0))
        config = {"first": launch.first, "again": launch.again, "overwrites": launch.overwrites}
        config |= {"output": launch.output, "channel": self._channel, "cwd": "" if _uploaded() else os.getcwd()}
        return TorchTrainer(
            train,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if self._gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
            scaling_config=ScalingConfig(
                num_workers=launch.workers,
                use_gpu=self._gpu,
                resources_per_worker=resources,
                placement_strategy=launch.placement,
            ),
            run_config=RunConfig(
                name=f"{output.name}-{time.strftime('%Y%m%d-%H%M%S')}",
                storage_path=str(output.parent / ".ray"),
                failure_config=FailureConfig(max_failures=launch.restarts, controller_failure_limit=launch.restarts),
                callbacks=[Restarts(self._channel, launch.restarts)],
            ),
        )

    def _look(self) -> None:
        """Show what was printed, pass a signal on, and say what the launch waits for.

        Raises:
            Interrupted: by a signal before the training, or a second one.
        """
        printed, starts, begun, training = ray.get(self._channel.read.remote())
        for name, text in printed:
            stream = sys.stdout if name == "stdout" else sys.stderr
            stream.write(text)
            stream.flush()
        if self._signals:
            self._stop(begun, training)
        now = time.monotonic()
        if not starts and now - self._began > CONNECT_SECONDS and now - self._said > CONNECT_SECONDS:
            self._say(f"waiting for the cluster: {self._lack() or 'the workers are starting'}")
            self._said = now + SAY_SECONDS - CONNECT_SECONDS

    def _stop(self, begun: bool, training: bool) -> None:
        number = self._signals[-1]
        name = signal.Signals(number).name
        if not training or len(self._signals) > 1:
            when = "without saving" if training else "while the workers start again" if begun else "before the training"
            raise Interrupted(f"{name}, {when}", 128 + number, Path(self._launch.output) if begun else None)
        if not self._asked:
            self._asked = True
            ray.get(self._channel.stop.remote(number))
            self._say(f"{name}: saving after this step; a second one stops at once")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    @contextmanager
    def _signals_kept(self) -> Iterator[None]:
        """Context in which SIGINT and SIGTERM are kept for the next look."""

        def keep(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)

        before = {number: signal.signal(number, keep) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _lack(self) -> str:
        """What the cluster lacks for the launch, whether it is in use or not; empty if it lacks nothing."""
        launch = self._launch
        needs = {"CPU": launch.workers * launch.cpus} | ({"GPU": float(launch.workers)} if self._gpu else {})
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        lacks = [f"{have:g} {name}s of {need:g}" for name, need in needs.items() if (have := _total(name)) < need]
        lacks += [f"{nodes} nodes of {launch.nnodes}"] if nodes < launch.nnodes else []
        if not lacks and all(ray.available_resources().get(name, 0) < need for name, need in needs.items()):
            return "its resources are in use"
        return f"it has {' and '.join(lacks)}" if lacks else ""

    def _outcome(self) -> int:
        """The exit code.

        Raises:
            SftkitError: the error of the worker that failed first.
            Interrupted: if the run was interrupted.
        """
        if self._error is None:
            return 0
        for _, _, error in ray.get(self._channel.errors.remote()):
            if isinstance(error, BaseException):
                raise error
            self._say(error)
            return 1
        return self._failed(self._error)

    def _failed(self, error: BaseException) -> int:
        """Raises:
        RunError: if the workers could not be started.
        TrainingError: if they died.
        """
        starts = ray.get(self._channel.read.remote())[1]
        if not starts:
            what = self._lack() or first_line(getattr(error, "controller_failure", error))
            fix = "start fewer processes, free resources or add nodes; wait=SECONDS waits longer"
            raise RunError(Problem(f"the workers did not start on the cluster: {what}", WHERE, fix)) from error
        failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
        lines = [f"process {number} died: {first_line(each)}" for number, each in sorted(failures.items())]
        fix = f"Ray's logs have more; continue with --resume, or allow more than {self._launch.restarts} restarts"
        problems = [Problem(line, "training", fix) for line in lines or [first_line(error)]]
        raise TrainingError(problems) from error


def _total(resource: str) -> float:
    return float(ray.cluster_resources().get(resource, 0))


def _uploaded() -> bool:
    """Whether Ray brings the working directory to the workers, as in a submitted job."""
    return bool(ray.get_runtime_context().runtime_env.get("working_dir"))
