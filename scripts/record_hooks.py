"""Record the hooks and their arguments as those of a version of the plugin API, after `API_VERSION` was raised.

    python scripts/record_hooks.py                # after the version was raised as docs/api.md says
    python scripts/record_hooks.py --unreleased   # the version is in no release, so that it may still change

`tests/core/test_hook_api.py` compares the hooks with the record, `tests/core/hooks.txt`.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from sftkit.plugin.calls import hook_names, is_slot  # noqa: E402
from sftkit.plugin.hookspecs import Hooks  # noqa: E402
from sftkit.plugin.versions import API_VERSION  # noqa: E402

RECORD = ROOT / "tests" / "core" / "hooks.txt"


def present() -> list[str]:
    """A line for each hook: slot or broadcast, its name, and its arguments in any order."""
    lines = []
    for name in hook_names():
        arguments = sorted(list(inspect.signature(getattr(Hooks, name)).parameters)[1:])
        lines.append(" ".join(["slot" if is_slot(name) else "broadcast", name, *arguments]))
    return sorted(lines)


def least_version(version: str, before: list[str], after: list[str]) -> str:
    """The lowest version that these hooks may have.

    Args:
        version: the recorded version.
        before: the recorded lines.
        after: the lines of the present hooks.
    """
    first, second = map(int, version.split("."))
    if sorted(before) == sorted(after):
        return version
    later = {tuple(line.split()[:2]): set(line.split()[2:]) for line in after}
    for line in before:
        kind, name, *arguments = line.split()
        if (kind, name) not in later or not later[kind, name] >= set(arguments):
            return f"{first + 1}.0"
    return f"{first}.{second + 1}"


def main() -> None:
    """Write the record, or say why the version does not allow it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unreleased", action="store_true", help="this version is in no release yet")
    unreleased = parser.parse_args().unreleased
    version, *before = RECORD.read_text(encoding="utf-8").splitlines()
    after = present()
    least = least_version(version, before, after)
    numbers = [tuple(map(int, text.split("."))) for text in (API_VERSION, least)]
    if numbers[0] < numbers[1] and not unreleased:
        changes = "\n".join(f"  {line}" for line in sorted({*before} ^ {*after}))
        sys.exit(f"these hooks have changed:\n{changes}\nset API_VERSION in sftkit/plugin/versions.py to {least}")
    RECORD.write_text("\n".join([API_VERSION, *after, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
