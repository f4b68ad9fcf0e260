"""The names of a new plugin: its own, and those of its distribution, its package and its class."""

from __future__ import annotations

import importlib.util
import keyword
import re
from dataclasses import dataclass
from importlib import metadata

from sftkit.api import ConfigError, Problem

LONGEST = 40
WHERE = "NAME"
#: Commands of sftkit itself, which no other can have.
CORE_COMMANDS = ("cache", "plugins", "run", "schema")


@dataclass(frozen=True)
class Names:
    """The names of a plugin, all of them from one.

    Attributes:
        words: its words, in small letters.
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, text: str, command: bool) -> Names:
        """The names that a text such as ``word-noise`` stands for; a prefix ``sftkit-`` is dropped.

        Args:
            text: the text.
            command: whether it names a command.

        Raises:
            ConfigError: if it cannot be a name, or is taken.
        """
        plain = re.sub("^sftkit-", "", text.replace("_", "-"))
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", plain):
            better = "-".join(re.findall("[a-z0-9]+", re.sub("([a-z0-9])([A-Z])", r"\1-\2", text).lower()))
            better = re.sub("^(sftkit-)?[0-9-]*", "", better)
            fix = "use small letters, digits and hyphens, and begin with a letter"
            fix += f", as in {better[:LONGEST].strip('-')}" if better else ", as in word-noise"
            raise ConfigError(Problem(f"{text!r} cannot be the name of a plugin", WHERE, fix))
        if len(plain) > LONGEST:
            raise ConfigError(Problem(f"the name has {len(plain)} letters", WHERE, f"use at most {LONGEST}"))
        names = cls(tuple(plain.split("-")))
        names._refuse_taken(command)
        return names

    @property
    def plugin(self) -> str:
        """The name by which it is selected."""
        return "_".join(self.words)

    @property
    def command(self) -> str:
        """The name by which a command is called."""
        return "-".join(self.words)

    @property
    def distribution(self) -> str:
        """The name on the package index."""
        return f"sftkit-{self.command}"

    @property
    def package(self) -> str:
        """The name by which it is imported."""
        return f"sftkit_{self.plugin}"

    def class_name(self, code: str) -> str:
        """The name of its class, which is none of the names in the code of its template."""
        return _free("".join(word.capitalize() for word in self.words), code, "Plugin")

    def function_name(self, code: str) -> str:
        """The name of a command's function, which is none of the names in the code of its template."""
        return _free(self.plugin, code, "_command")

    def _refuse_taken(self, command: bool) -> None:
        """Raises:
        ConfigError: if there is a plugin, a command, a distribution or a package of this name.
        """
        if self.plugin == "no":
            raise ConfigError(
                Problem("-p no:NAME drops a plugin, so none can be named no", WHERE, "choose another name")
            )
        what = "command" if command else "plugin"
        taken = {point.name: point for point in metadata.entry_points(group="sftkit.commands" if command else "sftkit")}
        known = {name.replace("-", "_").lower(): name for name in [*taken, *(CORE_COMMANDS if command else ())]}
        if (name := known.get(self.plugin)) is not None:
            dist = taken[name].dist if name in taken else None
            owner = f" by {dist.name}" if dist else ""
            raise ConfigError(Problem(f"the {what} {name} is installed already{owner}", WHERE, "choose another name"))
        if self.distribution == "sftkit-train" or importlib.util.find_spec(self.package) is not None:
            what = f"{self.package} is installed already" if self.words != ("train",) else "sftkit-train is sftkit"
            raise ConfigError(Problem(what, WHERE, "choose another name"))


def _free(name: str, code: str, suffix: str) -> str:
    while keyword.iskeyword(name) or re.search(rf"\b{name}\b", code):
        name += suffix
    return name
