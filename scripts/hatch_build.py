"""Put the pages of ``docs/`` into the wheel, where ``sftkit docs`` finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Pages(BuildHookInterface):
    """Adds every Markdown file of ``docs/``. An editable install reads them from the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Choose the files, as hatchling asks before it builds."""
        root = Path(self.root) / "docs"
        if version == "standard":
            for path in root.rglob("*.md"):
                target = Path("sftkit_commands/docs/pages") / path.relative_to(root)
                build_data["force_include"][str(path)] = target.as_posix()
