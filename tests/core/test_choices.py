"""What plugins choose from the weights of a model is chosen once in the life of a run."""

from __future__ import annotations

import json

from sftkit.models.choices import Choices


def never():
    raise AssertionError("it chose again")


def test_a_choice_is_made_once():
    choices = Choices()
    assert choices.once("a", lambda: {"layers": [1, 2]}) == {"layers": [1, 2]}
    assert choices.once("a", never) == {"layers": [1, 2]}
    assert choices.made == {"a": {"layers": [1, 2]}}


def test_a_resumed_run_takes_the_choice_of_its_manifest_and_makes_those_of_other_names():
    made = {"a 0.5": [1]}
    choices = Choices(made)
    assert choices.once("a 0.5", never) == [1]
    assert choices.once("a 0.25", lambda: [2]) == [2]
    assert choices.made == {"a 0.5": [1], "a 0.25": [2]}
    assert made == {"a 0.5": [1]}


def test_the_main_process_chooses_for_all():
    sent: dict[str, str] = {}

    def from_main(name, text):
        return sent.setdefault(name, text)

    assert Choices(from_main=from_main).once("a", lambda: [3]) == [3]
    assert Choices(from_main=from_main, main=False).once("a", never) == [3]
    assert [json.loads(text) for text in sent.values()] == [[3]]
