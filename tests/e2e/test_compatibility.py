"""Runs each pair of techniques again, and compares the outcome with docs/compatibility.md."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sftkit.plugin.requirements import has_gpu

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("make_compatibility", ROOT / "scripts" / "make_compatibility.py")
compatibility = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compatibility)

SLOW = (*compatibility.INTERPRETED, "gptq", "optimizer: layer_decay", "muon", "schedule_free", "rope_scaling: yarn")
PAIRS = [
    pytest.param(
        *(technique, column, plugins),
        id=f"{technique} with {column}",
        marks=[] if column == "alone" and technique not in SLOW else [pytest.mark.slow],
    )
    for technique in compatibility.TECHNIQUES
    for column, plugins in compatibility.cells(technique).items()
    if plugins is not None
]


@pytest.fixture(scope="session")
def shared_directory(tmp_path_factory):
    return tmp_path_factory.mktemp("compatibility")


@pytest.mark.parametrize(("technique", "column", "plugins"), PAIRS)
def test_the_outcome_of_each_pair_matches_the_page(shared_directory, technique, column, plugins):
    expected = compatibility.read_page()[technique][column]
    outcome = compatibility.run_cell(technique, plugins, shared_directory)
    if "pip install" in outcome or "is not installed" in outcome:
        pytest.skip(f"a package is missing here: {outcome}")
    if expected == compatibility.GPU and has_gpu():
        assert outcome in (compatibility.YES, compatibility.GPU)
    else:
        assert outcome == expected


def test_the_page_has_every_technique_and_column():
    table = compatibility.read_page()
    assert set(table) == set(compatibility.TECHNIQUES)
    assert all(set(row) == set(compatibility.WITH) for row in table.values())
