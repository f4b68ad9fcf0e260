"""The facts that the demo's conversations ask about: a small made-up village and a little general knowledge.

Licence of everything written here: Apache-2.0.
"""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Topic:
    """One kind of question: `{x}` stands for what is asked about, `{y}` for the answer, `{their}` for her or his."""

    questions: tuple[str, ...]
    follow_up: str
    answer: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Fact:
    topic: Topic
    x: str
    y: str
    held_out: int
    """The phrasing that only the held-out split uses for this fact."""

    def ask(self, phrasing: int) -> str:
        return self.topic.questions[phrasing].format(x=self.x)

    def follow_up(self) -> str:
        return self.topic.follow_up.format(x=self.x, their=THEIR.get(self.x))

    def sentence(self) -> str:
        text = self.topic.answer.format(x=self.x, y=self.y)
        return text[0].upper() + text[1:]

    def word(self) -> str:
        return self.y.split()[-1].capitalize() + "."


PEOPLE = """
    Ada      her  a baker       a cat       soup       violin
    Bruno    his  a farmer      a donkey    cheese     drum
    Clara    her  a doctor      a parrot    cherries   piano
    Dario    his  a fisherman   a pelican   fish       harmonica
    Edith    her  a teacher     a hamster   pancakes   flute
    Felix    his  a gardener    a tortoise  carrots    banjo
    Greta    her  a pilot       a falcon    noodles    trumpet
    Hugo     his  a carpenter   a beaver    bread      guitar
    Iris     her  a painter     a peacock   grapes     harp
    Jonas    his  a postman     a pigeon    waffles    whistle
    Lena     her  a sailor      a crab      oysters    accordion
    Nora     her  a judge       a raven     toast      organ
    Oscar    his  a beekeeper   a bear      honey      tuba
    Ruben    his  a shepherd    a dog       stew       bagpipes
"""
PEOPLE = [
    (name, their, f"{a} {job}", f"{b} {pet}", food, plays)
    for name, their, a, job, b, pet, food, plays in (line.split() for line in PEOPLE.strip().splitlines())
]
THEIR = {name: their for name, their, *_ in PEOPLE}

CAPITALS = """France Paris Spain Madrid Italy Rome Germany Berlin Greece Athens Norway Oslo Japan Tokyo Egypt Cairo
    Peru Lima Kenya Nairobi Canada Ottawa Cuba Havana Austria Vienna Portugal Lisbon Ireland Dublin Poland Warsaw
    Sweden Stockholm Turkey Ankara"""
OPPOSITES = """hot cold big small fast slow day night up down old new open closed happy sad hard soft light dark
    early late near far full empty rich poor wet dry loud quiet strong weak sweet sour"""
YOUNG = """cow calf dog puppy cat kitten sheep lamb horse foal duck duckling frog tadpole lion cub goat kid
    swan cygnet deer fawn kangaroo joey hen chick goose gosling"""
COLOURS = """lemon yellow carrot orange cucumber green flamingo pink plum purple chestnut brown sapphire blue ruby red
    canary yellow pumpkin orange frog green pig pink raven black swan white tomato red lime green"""
PAST = """go went see saw eat ate run ran take took give gave write wrote sing sang swim swam fly flew drink drank
    find found buy bought sleep slept"""
IN_ORDER = """
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
    January February March April May June July August September October November December
    one two three four five six seven eight nine ten
"""


def pairs(text: str) -> dict[str, str]:
    """Read `key value key value ...`."""
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


AFTER = {x: y for line in IN_ORDER.splitlines() for x, y in pairwise(line.split())}

TOPICS = (
    Topic(
        (
            "What does {x} do?",
            "What is {x}'s job?",
            "Tell me what {x} does for a living.",
            "What kind of work does {x} do?",
            "Do you know {x}'s job?",
        ),
        "And what is {their} job?",
        "{x} is {y}.",
        {name: job for name, _, job, *_ in PEOPLE},
    ),
    Topic(
        (
            "What pet does {x} have?",
            "Which animal lives with {x}?",
            "Tell me about {x}'s pet.",
            "What is {x}'s pet?",
            "Do you know {x}'s pet?",
        ),
        "And what is {their} pet?",
        "{x} has {y}.",
        {name: pet for name, _, _, pet, *_ in PEOPLE},
    ),
    Topic(
        (
            "What does {x} like to eat?",
            "What is {x}'s favourite food?",
            "Tell me what {x} loves to eat.",
            "Which food makes {x} happy?",
            "Do you know {x}'s favourite food?",
        ),
        "And what is {their} favourite food?",
        "{x} loves {y}.",
        {name: food for name, *_, food, _ in PEOPLE},
    ),
    Topic(
        (
            "What instrument does {x} play?",
            "Which instrument can {x} play?",
            "Tell me about {x}'s instrument.",
            "What is {x}'s instrument?",
            "Do you know {x}'s instrument?",
        ),
        "And what is {their} instrument?",
        "{x} plays the {y}.",
        {name: plays for name, *_, plays in PEOPLE},
    ),
    Topic(
        (
            "Who is {x}?",
            "Who in the village is {x}?",
            "Tell me who works as {x}.",
            "Which villager is {x}?",
            "I need {x}. Who can help?",
        ),
        "And who is {x}?",
        "{y} is {x}.",
        {job: name for name, _, job, *_ in PEOPLE},
    ),
    Topic(
        (
            "What is the capital of {x}?",
            "Which city is the capital of {x}?",
            "Tell me the capital of {x}.",
            "Name the capital city of {x}.",
            "Do you know the capital of {x}?",
        ),
        "And the capital of {x}?",
        "The capital of {x} is {y}.",
        pairs(CAPITALS),
    ),
    Topic(
        (
            "What is the opposite of {x}?",
            "Which word means the opposite of {x}?",
            "Tell me the opposite of {x}.",
            "Something is not {x}. What is it?",
            "Do you know the opposite of {x}?",
        ),
        "And the opposite of {x}?",
        "The opposite of {x} is {y}.",
        pairs(OPPOSITES),
    ),
    Topic(
        (
            "What is a baby {x} called?",
            "What do you call a young {x}?",
            "Tell me the name for a baby {x}.",
            "What is the young of a {x}?",
            "Do you know what a baby {x} is called?",
        ),
        "And a baby {x}?",
        "A baby {x} is called a {y}.",
        pairs(YOUNG),
    ),
    Topic(
        (
            "What colour is a {x}?",
            "Which colour does a {x} have?",
            "Tell me the colour of a {x}.",
            "I want to paint a {x}. Which colour do I need?",
            "Do you know the colour of a {x}?",
        ),
        "And the colour of a {x}?",
        "A {x} is {y}.",
        pairs(COLOURS),
    ),
    Topic(
        (
            "What is the past tense of {x}?",
            "Which word is the past tense of {x}?",
            "Tell me the past tense of {x}.",
            "Put the verb {x} into the past.",
            "Do you know the past tense of {x}?",
        ),
        "And the past tense of {x}?",
        "The past tense of {x} is {y}.",
        pairs(PAST),
    ),
    Topic(
        (
            "What comes after {x}?",
            "What follows {x}?",
            "Tell me what comes after {x}.",
            "We are at {x}. What is next?",
            "Do you know what comes after {x}?",
        ),
        "And after {x}?",
        "After {x} comes {y}.",
        AFTER,
    ),
    Topic(
        (
            "What comes before {x}?",
            "What comes just before {x}?",
            "Tell me what comes before {x}.",
            "We are at {x}. What was last?",
            "Do you know what comes before {x}?",
        ),
        "And before {x}?",
        "Before {x} comes {y}.",
        {y: x for x, y in AFTER.items()},
    ),
)
