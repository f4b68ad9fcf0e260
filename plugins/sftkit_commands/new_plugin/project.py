"""The files of a new plugin's project, rendered from templates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from sftkit.api import API_VERSION, ConfigError, Problem
from sftkit_commands.new_plugin.kinds import TEMPLATES, Kind
from sftkit_commands.new_plugin.names import Names

#: Templates of every project, and the files that they make.
COMMON = {
    "pyproject.toml.jinja": "pyproject.toml",
    "README.md.jinja": "README.md",
    "gitignore.jinja": ".gitignore",
    "tests.yml.jinja": ".github/workflows/tests.yml",
}


@dataclass(frozen=True)
class Project:
    """A project that is to be written.

    Attributes:
        names: those of the plugin.
        kind: what it does.
        directory: where it is written.
    """

    names: Names
    kind: Kind
    directory: Path

    def write(self) -> list[str]:
        """Write the files; returns their paths in the directory.

        Raises:
            ConfigError: if the directory is not empty, or cannot be written.
        """
        where = str(self.directory)
        if self.directory.exists() and (not self.directory.is_dir() or any(self.directory.iterdir())):
            what = "the directory is not empty" if self.directory.is_dir() else "the file exists"
            raise ConfigError(Problem(what, where, "choose another directory with --to"))
        files = self._files()
        try:
            for name, text in files.items():
                path = self.directory / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                Problem(error.strerror or str(error), where, "choose another directory with --to")
            ) from error
        return sorted(files)

    def next_commands(self) -> dict[str, str]:
        """The commands to call next in the directory, with what each does."""
        name = self.names.plugin
        commands = {'pip install -e ".[dev]"': "install it, and what its tests need", "pytest": "test it"}
        if self.kind.is_command:
            return {**commands, f"sftkit {self.names.command}": "use it"}
        rows = f" --rows {self.kind.rows}" if self.kind.rows else ""
        return {
            **commands,
            f"sftkit check-plugin {name}{rows}": "what a run expects of it",
            self.run_command: "train with it",
        }

    @property
    def run_command(self) -> str:
        """A run that shows what the plugin does, on the embedded model."""
        name = self.names.plugin
        return " ".join(filter(None, [f"sftkit run -p {name}", self.kind.arguments.replace("NAME", name)]))

    def _files(self) -> dict[str, str]:
        """The text of each file by its path."""
        package, kinds = f"src/{self.names.package}", TEMPLATES / "kinds" / self.kind.name
        files = {target: self._rendered(f"project/{template}") for template, target in COMMON.items()}
        files[f"{package}/py.typed"] = ""
        for path in sorted(kinds.iterdir()):
            name = path.name.removesuffix(".jinja")
            target = {"plugin.py": f"{package}/__init__.py", "test.py": f"tests/test_{self.names.plugin}.py"}.get(name)
            target = target or (f"{package}/{name}" if name.endswith(".py") else name)
            files[target] = self._rendered(f"kinds/{self.kind.name}/{path.name}")
        return files

    def _rendered(self, template: str) -> str:
        return str(self._environment.get_template(template).render(self._values))

    @cached_property
    def _environment(self) -> Any:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        loader = FileSystemLoader(TEMPLATES)
        return Environment(
            loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
        )

    @cached_property
    def _values(self) -> dict[str, Any]:
        names, kind = self.names, self.kind
        code = "\n".join(
            path.read_text(encoding="utf-8") for path in (TEMPLATES / "kinds" / kind.name).glob("*.py.jinja")
        )
        return {
            "api": API_VERSION,
            "cls": names.class_name(code),
            "command": names.command,
            "distribution": names.distribution,
            "function": names.function_name(code),
            "kind": kind,
            "name": names.plugin,
            "next": self.next_commands(),
            "option": kind.option,
            "package": names.package,
            "run": self.run_command,
            "summary": kind.summary,
            "version": metadata.version("sftkit-train"),
        }
