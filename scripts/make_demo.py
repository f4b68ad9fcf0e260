"""Make the demo that ships inside sftkit: a tiny model's configuration, its tokenizer and its conversations.

    python scripts/make_demo.py            # write sftkit/demo/model and sftkit/demo/data
    python scripts/make_demo.py --check    # exit 1 if a file on disk is not what this script would write

The conversations ask about a small made-up village and a little general knowledge. Each fact can be asked in several
ways; one way per fact is kept out of training, and the held-out split asks in just that way. A right answer there
therefore combines a fact and a phrasing that training showed only apart.

Licence of everything written here: Apache-2.0.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from demo_facts import THEIR, TOPICS, Fact

DEMO = Path(__file__).resolve().parent.parent / "sftkit" / "demo"
SEED = 7
PHRASINGS_IN_TRAIN = 3  # per fact, of the four that are not held out
TRAIN_ONE_WORD, TRAIN_TWO_TURNS = 270, 230
EVAL_ONE_TURN, EVAL_ONE_WORD, EVAL_TWO_TURNS = 90, 20, 40
VOCAB_SIZE = 1024
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
ONE_WORD = "Answer in one word."


def shuffled(items, rng: random.Random) -> list:
    """A shuffle that rests on `rng.random()` alone, the one method whose stream Python promises to keep."""
    return sorted(items, key=lambda _: rng.random())


def conversation(*turns: tuple[str, str], system: str | None = None) -> dict:
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def second_fact(first: Fact, facts: list[Fact], rng: random.Random) -> Fact:
    """What a follow-up may ask: another topic about the same villager, or the same topic about something else."""
    about = [f for f in facts if f.x == first.x] if first.x in THEIR else [f for f in facts if f.topic is first.topic]
    return shuffled((f for f in about if f is not first), rng)[0]


def make_conversations() -> tuple[list[dict], list[dict]]:
    """The train and the held-out conversations; no prompt of the second occurs in the first."""
    rng = random.Random(SEED)
    facts = [
        Fact(topic, x, y, held_out=(i + t) % len(topic.questions))
        for t, topic in enumerate(TOPICS)
        for i, (x, y) in enumerate(shuffled(topic.facts.items(), rng))
    ]
    shown = [(f, p) for f in facts for p in shuffled(set(range(len(f.topic.questions))) - {f.held_out}, rng)]
    hidden = shuffled(((f, f.held_out) for f in facts), rng)

    def one_turn(fact: Fact, phrasing: int) -> dict:
        return conversation((fact.ask(phrasing), fact.sentence()))

    def one_word(fact: Fact, phrasing: int) -> dict:
        return conversation((fact.ask(phrasing), fact.word()), system=ONE_WORD)

    def two_turns(fact: Fact, phrasing: int) -> dict:
        other = second_fact(fact, facts, rng)
        return conversation((fact.ask(phrasing), fact.sentence()), (other.follow_up(), other.sentence()))

    train = [one_turn(*ask) for i, ask in enumerate(shown) if i % 4 < PHRASINGS_IN_TRAIN]
    train += [one_word(*ask) for ask in shuffled(shown, rng)[:TRAIN_ONE_WORD]]
    train += [two_turns(*ask) for ask in shuffled(shown, rng)[:TRAIN_TWO_TURNS]]
    held_out = [one_turn(*hidden.pop()) for _ in range(EVAL_ONE_TURN)]
    held_out += [one_word(*hidden.pop()) for _ in range(EVAL_ONE_WORD)]
    held_out += [two_turns(*hidden.pop()) for _ in range(EVAL_TWO_TURNS)]
    both = prompts(train) & prompts(held_out)
    assert not both, f"held-out prompts occur in train: {sorted(both)[:3]}"
    return shuffled(train, rng), shuffled(held_out, rng)


def prompts(conversations: list[dict]) -> set[str]:
    """All that comes before each answer, without the system message: a new style alone makes no new prompt."""
    found = set()
    for row in conversations:
        spoken = [m for m in row["messages"] if m["role"] != "system"]
        found |= {json.dumps(spoken[:i]) for i, m in enumerate(spoken) if m["role"] == "assistant"}
    return found


# --- The model -------------------------------------------------------------------------------------------------------

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def make_tokenizer(conversations: list[dict]) -> str:
    """Train a byte-level BPE on the conversations; returns the text of tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [f"{m['role']}\n{m['content']}" for row in conversations for m in row["messages"]]
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise SystemExit(f"the texts give only {tokenizer.get_vocab_size()} tokens; lower VOCAB_SIZE")
    return tokenizer.to_str(pretty=True) + "\n"


# Written by hand, not by save_pretrained: that adds the version of transformers, and the bytes would depend on it.
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": END,
    "pad_token": PAD,
    "model_max_length": 512,
    "clean_up_tokenization_spaces": False,
}
SPECIAL_IDS = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
GENERATION_CONFIG = {"do_sample": False, **SPECIAL_IDS}
MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 48,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-05,
    "initializer_range": 0.07,  # about 1/sqrt(hidden_size); from 0.02 so small a model hardly learns in 1000 steps
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "use_cache": True,
    **SPECIAL_IDS,
}


# --- The files -------------------------------------------------------------------------------------------------------


def make_files() -> dict[str, str]:
    """Every generated file: its path below sftkit/demo, and its text."""
    train, held_out = make_conversations()

    def as_json(value: dict) -> str:
        return json.dumps(value, indent=2) + "\n"

    def as_jsonl(rows: list[dict]) -> str:
        return "".join(json.dumps(row) + "\n" for row in rows)

    return {
        "data/train.jsonl": as_jsonl(train),
        "data/eval.jsonl": as_jsonl(held_out),
        "model/tokenizer.json": make_tokenizer(train),
        "model/tokenizer_config.json": as_json(TOKENIZER_CONFIG),
        "model/chat_template.jinja": CHAT_TEMPLATE,
        "model/config.json": as_json(MODEL_CONFIG),
        "model/generation_config.json": as_json(GENERATION_CONFIG),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    check = parser.parse_args().check
    files = {DEMO / name: text.encode() for name, text in make_files().items()}
    if check:
        stale = [path for path, data in files.items() if not path.is_file() or path.read_bytes() != data]
        for path in stale:
            print(f"{path} is not what this script writes; run it without --check", file=sys.stderr)
        return 1 if stale else 0
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"{path.relative_to(DEMO)}: {len(data):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
