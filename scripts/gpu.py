"""Check and measure sftkit on a GPU: correctness, the step beside TRL, the loss head, a profile.

    python scripts/gpu.py [--budget 330] [--only failed] [--all] [--out DIR] [--toy]

The parts run in this order, each within its share of the budget. Whatever is known is in the output directory at once,
as JSON and as a Markdown page, so a run that is killed keeps everything measured so far. Exit code 0: all of it ran and
is correct; 1: something failed or was not reached; 2: nothing can be run here. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from importlib import metadata
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=330, metavar="SECONDS", help="for everything (default: 330)")
    only = "run again what failed or was not reached in the card's newest results, and merge"
    parser.add_argument("--only", choices=["failed"], help=only)
    parser.add_argument("--all", action="store_true", help="measure 1B and unpacked rows, too")
    where = "for the results (default: benchmarks/results; with --toy, a temporary directory)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=where)
    parser.add_argument("--toy", action="store_true", help="tiny sizes on the CPU: tries the code, measures nothing")
    return parser.parse_args()


def unusable(toy: bool) -> str:
    """Why nothing can be run here; empty if it can."""
    try:
        metadata.version("sftkit-train")
    except metadata.PackageNotFoundError:
        return "sftkit is not installed; run `pip install .`, or put the directory of its wheel on PYTHONPATH"
    from sftkit.plugin.requirements import has_gpu

    if not toy and not has_gpu():
        return "no CUDA GPU is visible here; --toy tries the code on the CPU"
    return ""


def set_variables(scratch: Path) -> None:
    """Variables of the tests and of all children."""
    # Children start in other directories.
    paths = [BENCHMARKS, *(Path(path).resolve() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    one = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]  # a Trainer would use all that it sees
    os.environ |= {
        "CUDA_VISIBLE_DEVICES": one,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONSAFEPATH": "1",  # or `python -m` would put the checkout's sftkit before the installed one
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "SFTKIT_CACHE": str(scratch / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
    }


def main() -> int:
    options = flags()
    if problem := unusable(options.toy):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    sys.path.insert(0, str(BENCHMARKS))
    from gpu.jobs import Jobs
    from gpu.run import Run

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="sftkit-gpu-", ignore_cleanup_errors=True) as directory:
        set_variables(Path(directory))
        run = Run(options, Path(directory), Jobs(Path(directory)))
        run.everything()
        return run.finish()


if __name__ == "__main__":
    sys.exit(main())
