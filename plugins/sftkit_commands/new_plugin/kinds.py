"""The kinds of plugins, with what each one's template does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sftkit.api import ConfigError, Problem, nearest

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Kind:
    """One kind of plugin.

    Attributes:
        name: its name, which is also that of the directory with its templates.
        hooks: the hooks that it fills; a command fills none.
        summary: what its template does, as the first line of a docstring.
        option: an option of the template with a value, as after ``-p NAME:``.
        arguments: what `sftkit run` needs besides the plugin to show what it does.
        rows: the file of the project with rows that the plugin reads, if it reads no common format.
    """

    name: str
    hooks: tuple[str, ...]
    summary: str
    option: str = ""
    arguments: str = ""
    rows: str = ""

    @property
    def is_command(self) -> bool:
        """Whether it is a command of the command line rather than a plugin of a run."""
        return not self.hooks


_KINDS = (
    Kind(
        "check",
        ("check_run", "check_prepared"),
        "Refuses runs with very long rows, or with data of which too little is trained",
        "least_trained=0.1",
    ),
    Kind("engine", ("make_engine",), "Averages gradients in few, large messages, for slow networks", "megabytes=100"),
    Kind(
        "loader",
        ("load_tokenizer", "load_model"),
        "Loads models by short names from one directory",
        "root=/models",
    ),
    Kind("filter", ("filter_rows",), "Drops rows with little text", "least=100"),
    Kind(
        "formatter",
        ("make_formatter",),
        "Formats data with the columns question and answer; the answer is trained",
        "marker=Answer",
        "model.name=demo model.init=random --data example.jsonl",
        "example.jsonl",
    ),
    Kind("packer", ("make_packer", "training_context"), "Packs documents in the order in which they come", "eval=true"),
    Kind("collator", ("make_collator",), "Pads each batch to a power of two", "shortest=64"),
    Kind("kernel", ("patch_kernels",), "Computes RMS norms with torch's own function", "classes=[LlamaRMSNorm]"),
    Kind("adapter", ("adapt_model",), "Trains only the last layers of a model", "layers=2"),
    Kind("loss", ("make_loss",), "Trains more on tokens that the model does not expect yet (focal loss)", "gamma=1"),
    Kind("optimizer", ("make_optimizer",), "Trains with the optimizer Lion", "beta1=0.95"),
    Kind("noise", ("inject_noise",), "Adds uniform noise to the input embeddings while training", "scale=0.05"),
    Kind("callback", ("trainer_callbacks",), "Writes the time of each step into steps.jsonl", "every=10"),
    Kind(
        "metric",
        ("metrics",),
        "Measures how much of the reference a completion begins with",
        "case=false",
        "'evaluate.metrics=[NAME]'",
    ),
    Kind("export", ("export_model",), "Exports the embeddings of all tokens after training", "normalized=true"),
    Kind("command", (), "Show how long the rows of a run are"),
)
#: The kinds by name, in the order in which a run comes to them.
KINDS = {kind.name: kind for kind in _KINDS}


def chosen_kind(name: str) -> Kind:
    """The kind of this name.

    Raises:
        ConfigError: if there is none.
    """
    if name not in KINDS:
        fix = nearest(name, KINDS) or f"the kinds are: {', '.join(KINDS)}"
        raise ConfigError(Problem(f"there is no kind {name!r}", "--kind", fix))
    return KINDS[name]
