"""Shell completion: what may come next on the command line, and the scripts that ask for it.

A script calls the program with the variable `VARIABLE` and the words up to the cursor, and reads a candidate a line,
with its description after a tab. Nothing here imports torch or transformers.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sftkit.errors import ConfigError, Problem

VARIABLE = "_SFTKIT_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
SHOWN = 90  # characters of a description
Found = list[tuple[str, str]]

_BASH = """\
_sftkit_completion() {
    local -a words
    local current head value help
    read -ra words <<< "${COMP_LINE:0:COMP_POINT}"
    [[ "${COMP_LINE:0:COMP_POINT}" == *[[:space:]] ]] && words+=("")
    current="${words[${#words[@]}-1]}"
    head="${current%"${current##*[:=]}"}"  # bash completes only what follows a colon or an equals sign
    COMPREPLY=()
    while IFS=$'\\t' read -r value help; do
        [[ "$value" == *[=/:.] ]] && type compopt &> /dev/null && compopt -o nospace
        COMPREPLY+=("$(printf %q "${value#"$head"}")")
    done < <(VARIABLE=1 "$1" "${words[@]:1}" 2> /dev/null)
}
complete -o bashdefault -o default -F _sftkit_completion sftkit
"""
_ZSH = """\
#compdef sftkit
_sftkit() {
    local line value
    local -a open closed open_shown closed_shown
    for line in "${(@f)$(VARIABLE=1 "${words[1]}" "${(@)words[2,CURRENT-1]}" "$PREFIX" 2> /dev/null)}"; do
        [[ -z "$line" ]] && continue
        value="${line%%$'\\t'*}"
        if [[ "$value" == *[=/:.] ]]; then
            open+=("$value"); open_shown+=("${line/$'\\t'/  -- }")
        else
            closed+=("$value"); closed_shown+=("${line/$'\\t'/  -- }")
        fi
    done
    (( ${#open} )) && compadd -l -S '' -d open_shown -a open
    (( ${#closed} )) && compadd -l -d closed_shown -a closed
    (( ${#open} + ${#closed} )) || _files
}
compdef _sftkit sftkit
"""
_FISH = """\
function __sftkit_complete
    set -l words (commandline -opc)
    set -l found (env VARIABLE=1 $words[1] $words[2..] (commandline -ct) 2> /dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c sftkit -f -a '(__sftkit_complete)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def script(shell: str) -> str:
    """The completion script of a shell."""
    return _SCRIPTS[shell].replace("VARIABLE", VARIABLE)


def answer(command: Any, words: list[str]) -> str:
    """The candidates for the last word, one a line.

    Args:
        command: the whole command line, as `typer.main.get_command` returns it.
        words: those after the name of the program, the unfinished one last.
    """
    found = candidates(command, words[:-1], words[-1] if words else "")
    return "\n".join(f"{value}\t{textwrap.shorten(help, SHOWN)}" if help else value for value, help in found)


def candidates(command: Any, words: list[str], incomplete: str) -> Found:
    """The candidates for an unfinished word, each with its description.

    Args:
        command: the whole command line.
        words: those before it.
        incomplete: the unfinished word.
    """
    from typer._completion_classes import BashComplete  # that of click, which newer versions of Typer have a copy of

    items = BashComplete(command, {}, "sftkit", VARIABLE).get_completions(words, incomplete)
    return [(item.value, item.help or "") for item in items if item.type == "plain"]


def complete_arguments(ctx: Any, words: list[str], incomplete: str) -> list[Any]:
    """The candidates for the last word of a command that is an argument of another.

    Args:
        ctx: the context of the other command.
        words: the command, and its words before the unfinished one.
        incomplete: the unfinished word.
    """
    from typer._completion_classes import BashComplete

    root = ctx.find_root().command
    return list(BashComplete(root, {}, "sftkit", VARIABLE).get_completions(words, incomplete))


def complete_plugins(incomplete: str) -> Found:
    """Names of plugins, ``no:`` and a name, and the options of a plugin after ``NAME:``."""
    from sftkit.plugin.registry import discover

    known = discover()
    name, colon, rest = incomplete.partition(":")
    if colon and name != "no":
        done = rest.rpartition(",")[0]
        before = f"{name}:{done}," if done else f"{name}:"
        options = [(f"{before}{option}=", help) for option, help in _options(name, known)]
        return [item for item in options if item[0].startswith(incomplete)]
    names = [*known, *(f"no:{name}" for name in known if incomplete.startswith("no"))]
    return [(name, "") for name in names if name.startswith(incomplete)]


def complete_names(incomplete: str) -> list[str]:
    """Names of plugins."""
    from sftkit.plugin.registry import discover

    return [name for name in discover() if name.startswith(incomplete)]


def complete_config(incomplete: str) -> Found:
    """YAML files, and keys of the configuration with ``=``; values of keys that have a few."""
    key, equals, _ = incomplete.partition("=")
    if equals:
        return _matching((f"{key}={value}" for value in _values(key)), incomplete)
    if "." not in incomplete or incomplete.startswith((".", "/", "~")) or "/" in incomplete:
        sections = [] if "/" in incomplete else ["model=", "data=", "model.", "data.", "train.", "run.", "plugins."]
        return [*_matching(sections, incomplete), *_paths(incomplete, (".yaml", ".yml"))]
    return [*_keys(incomplete), *_paths(incomplete, (".yaml", ".yml"))]


def complete_runs(incomplete: str) -> Found:
    """Run directories, the newest first, and other directories."""
    from sftkit.run.directories import RUNS, runs_in

    parent = Path(incomplete.rpartition("/")[0] or ".")
    places = dict.fromkeys([*runs_in(Path(RUNS)), *runs_in(parent)])
    runs = [(str(path), "a run") for path in places if str(path).startswith(incomplete.removeprefix("./"))]
    names = {name for name, _ in runs}
    return [*runs, *(item for item in _paths(incomplete, ()) if item[0].rstrip("/") not in names)]


def _matching(values: Iterable[str], incomplete: str) -> Found:
    return [(value, "") for value in values if value.startswith(incomplete)]


def _paths(incomplete: str, suffixes: tuple[str, ...]) -> Found:
    """Directories, with a slash, and files with one of the suffixes."""
    head, _, tail = incomplete.rpartition("/")
    head = f"{head}/" if "/" in incomplete else ""
    try:
        entries = sorted(os.scandir(Path(head or ".").expanduser()), key=lambda entry: entry.name)
    except OSError:
        return []
    found = []
    for entry in entries:
        if entry.name.startswith(tail) and (tail.startswith(".") or not entry.name.startswith(".")):
            if entry.is_dir():
                found.append((f"{head}{entry.name}/", ""))
            elif suffixes and entry.name.endswith(suffixes):
                found.append((f"{head}{entry.name}", ""))
    return found


def _keys(incomplete: str) -> Found:
    """The keys of a section that begin like this."""
    section = incomplete.partition(".")[0]
    if section == "plugins":
        from sftkit.plugin.registry import discover

        known = discover()
        _, name, *option = [*incomplete.split(".", 2)]
        if not option:
            return _matching((f"plugins.{each}." for each in known), incomplete)
        found = [(f"plugins.{name}.{each}=", help) for each, help in _options(name, known)]
    else:
        found = [(f"{section}.{name}=", field[1]) for name, field in _fields(section).items()]
    return [item for item in found if item[0].startswith(incomplete)]


def _fields(section: str) -> dict[str, tuple[Any, str]]:
    """The fields of a section, with their type and description."""
    from sftkit.config.models import RunConfig
    from sftkit.config.train_fields import allowed_fields

    if section == "train":
        return {name: (field.annotation, field.help) for name, field in allowed_fields().items()}
    model = getattr(RunConfig.model_fields.get(section), "annotation", None)
    fields = getattr(model, "model_fields", {})
    return {name: (field.annotation, field.description or "") for name, field in fields.items()}


def _options(name: str, known: Any) -> Found:
    """The options of a plugin; none of one that cannot be imported."""
    from sftkit.plugin.describe import one_plugin

    if name not in known:
        return []
    return [(option["name"], option["description"]) for option in one_plugin(name)["options"]]


def _values(key: str) -> list[str]:
    """The values of a key that has a few: those of a choice, or true and false."""
    import typing

    section, _, name = key.partition(".")
    annotation = _fields(section).get(name, (None, ""))[0]
    values: list[str] = []
    for member in (annotation, *typing.get_args(annotation)):
        if member is bool:
            values += ["true", "false"]
        elif typing.get_origin(member) is typing.Literal:
            values += [str(value) for value in typing.get_args(member)]
    return values


def shell_named(name: str) -> str:
    """The shell of this name, or the one that runs the program if there is none.

    Raises:
        ConfigError: if there is no completion for it.
    """
    if not name:
        import shellingham

        try:
            name = shellingham.detect_shell()[0]
        except shellingham.ShellDetectionFailure:
            name = Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        what = f"there is no completion for the shell {name!r}" if name else "the shell is unknown"
        raise ConfigError(Problem(what, "--install-completion", f"name one of {', '.join(SHELLS)} after the option"))
    return name


def install(shell: str) -> list[Path]:
    """Write the completion script into the user's home, and let the shell read it; returns the files that were changed.

    Raises:
        ConfigError: if a file cannot be written.
    """
    home = Path.home()
    file, startup, line = {
        "bash": (home / ".bash_completions/sftkit.sh", home / ".bashrc", "source ~/.bash_completions/sftkit.sh"),
        "zsh": (home / ".zfunc/_sftkit", home / ".zshrc", "fpath+=~/.zfunc; autoload -Uz compinit; compinit"),
        "fish": (home / ".config/fish/completions/sftkit.fish", None, ""),
    }[shell]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(script(shell), encoding="utf-8")
        if startup is None:
            return [file]
        before = startup.read_text(encoding="utf-8") if startup.is_file() else ""
        if line in before.splitlines():
            return [file]
        with startup.open("a", encoding="utf-8") as end:
            end.write(f"{'' if before.endswith(chr(10)) or not before else chr(10)}{line}\n")
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        fix = "add the output of `sftkit --show-completion` to your shell's startup file"
        raise ConfigError(Problem(what, str(error.filename or file), fix)) from error
    return [file, startup]


def complete_and_exit(command: Any) -> None:
    """Answer a completion script, if it is one that has called the program."""
    if VARIABLE in os.environ:
        if found := answer(command(), sys.argv[1:]):
            sys.stdout.write(f"{found}\n")
        sys.exit(0)
