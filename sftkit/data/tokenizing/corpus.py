"""Texts that tell tokenizers apart: all planes of Unicode, its normal forms, white space, digits, code, added tokens.

The texts are drawn with a fixed seed, and are the same on each machine with one version of Unicode.
"""

from __future__ import annotations

import random
import sys
import unicodedata
from collections.abc import Iterator, Sequence

SEED = 20
WHITE = " \t\n\r\v\f\x1c\x85\u00a0\u1680\u2003\u2009\u2028\u2029\u202f\u3000\u200b\u200d\u2060\ufeff"
PROSE = [
    "The quick brown fox can't jump over the lazy dog's back; it's 3.14159 o'clock, isn't it? We'LL SEE, y'all'd've.",
    "Straße, naïve façade, Ångström, crème brûlée, ﬁne ﬂuid ½ ² ™ № ㎏ Ⅷ ｆｕｌｌ　ｗｉｄｔｈ",
    "日本語のトークナイザーは難しい。中文分詞也不容易，對吧？한국어 형태소 분석도 쉽지 않다.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "أبجد هوز حطي كلمن ١٢٣٤٥ نص عربي مع تَشْكِيل، עברית עם נִקּוּד.",
    "हिन्दी में क्षत्रिय १२३४५, ภาษาไทยไม่มีช่องว่าง, Tiếng Việt có dấu, ไทยๆ, বাংলা ভাষা, தமிழ்",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪🇯🇵 ❤️‍🔥 1️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 😀😃 x😀y \U0001f469\U0001f3fd\u200d\U0001f4bb",
    "def f(x: int) -> str:\n\tif x == 0:\n\t\treturn f'{x!r:>10}'\n    # 4 spaces\n\n\n        return None  \n",
    '{"key": [1, 2.5e-10, true, null], "path": "C:\\\\dir\\\\file.txt", "url": "https://a.b/c?d=e&f=%20#g"}\r\n',
    "<div class='a'>&nbsp;&lt;b&gt;</div><!-- x --><|im_start|>user\nHi<|im_end|>\n[INST] <<SYS>> [/INST] </s><s>",
    "SELECT * FROM t WHERE a<>b AND c>=10;-- comment\n#include <stdio.h>\nint main(void){return 0;}\n\\frac{a}{b}$$",
    "aaaaAAAAaaaa __init__ snake_case camelCase PascalCase kebab-case ALLCAPS miXeD 0x1F4A9 1_000_000 v2.10.3-rc1+b5",
]


def corpus(vocabulary: Sequence[str], added: Sequence[str]) -> list[str]:
    """The texts, from which a tokenizer's own tokens are not missing.

    Args:
        vocabulary: texts of tokens, to be put together.
        added: texts of added and special tokens, to be put inside of other text.
    """
    chance = random.Random(SEED)
    texts = ["", *PROSE, *_unicode(chance), *_white(chance), *_digits(chance), *_words(chance)]
    texts += _added(chance, added) if added else ()
    texts += _tokens(chance, vocabulary) if vocabulary else ()
    return texts


def _unicode(chance: random.Random) -> Iterator[str]:
    """Characters of each plane and block, and the normal forms of those that have several."""
    for plane in range(17):
        for _ in range(24 if plane < 4 else 6):
            start = (plane << 16) + (chance.randrange(0x10000 - 64))
            yield "".join(chr(code) for code in range(start, start + 24) if not 0xD800 <= code < 0xE000)
            drawn = [(plane << 16) + chance.randrange(0x10000) for _ in range(16)]
            yield " ".join(chr(code) for code in drawn if not 0xD800 <= code < 0xE000)
    for block in range(0, 0x3400, 0x40):
        yield "".join(map(chr, range(block, block + 0x40)))
    kinds: dict[str, list[str]] = {}
    composed = []
    for code in range(min(sys.maxunicode, 0x30000)):
        char = chr(code)
        if 0xD800 <= code < 0xE000:
            continue
        kinds.setdefault(unicodedata.category(char), []).append(char)
        if unicodedata.decomposition(char):
            composed.append(char)
    for chars in kinds.values():
        for _ in range(4):
            yield "".join(chance.choices(chars, k=10))
            yield "a".join(chance.choices(chars, k=8))
            yield " ".join(chance.choices(chars, k=8))
    for _ in range(40):
        text = "x".join(chance.choices(composed, k=6))
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            yield unicodedata.normalize(form, text)  # type: ignore[arg-type]
    for text in PROSE:
        yield unicodedata.normalize("NFD", text)
        yield unicodedata.normalize("NFKC", text)


def _white(chance: random.Random) -> Iterator[str]:
    """White space in runs, alone, at both ends, and between words."""
    for char in WHITE:
        yield from (char, char * 3, f"a{char}b", f"{char}a", f"a{char}", f"a{char}{char}b {char} c", f"{char}1{char}.")
    for length in range(1, 40):
        yield f"x{' ' * length}y"
        yield f"{' ' * length}if:\n{chr(9) * (length % 7)}z{chr(10) * (length % 9)}"
    for _ in range(120):
        spaces = ["".join(chance.choices(WHITE[:12], k=chance.randrange(1, 5))) for _ in range(5)]
        yield "".join(space + chance.choice("aZ1.é日") for space in spaces)


def _digits(chance: random.Random) -> Iterator[str]:
    """Numbers of all lengths, in several scripts, with signs and separators."""
    scripts = ["0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "０１２３４５６７８９", "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗"]
    for length in range(1, 30):
        for script in scripts:
            yield "".join(chance.choices(script, k=length))
        yield "".join(chance.choices("0123456789.,-+ eE/:%$€", k=length))


def _words(chance: random.Random) -> Iterator[str]:
    """Long words, repeated characters, mixtures of all, contractions, and code points one byte apart."""
    letters = "etaoinshrdlucmfwypvbgkjqxzETAOIN'’-_éüßøñ日本語😀"
    for length in (1, 2, 3, 5, 8, 13, 21, 64, 255, 256, 257, 1000, 3000):
        yield "".join(chance.choices(letters[:26], k=length))
        yield chance.choice(letters) * length
        yield "".join(chance.choices(letters, k=length))
    for char in map(chr, range(128)):
        yield f"{char}{char}a{char} {char}A1{char}\n{char}"
    for word in ("s", "t", "re", "ve", "m", "ll", "d", "S", "T", "RE", "VE", "M", "LL", "D", "ſ", "x"):
        yield f"it'{word} it’{word} '{word}'{word} {word}' I'{word}1"
    for _ in range(300):
        parts = [chance.choice(PROSE) for _ in range(3)]
        yield "".join(part[(at := chance.randrange(len(part))) : at + chance.randrange(1, 30)] for part in parts)


def _added(chance: random.Random, added: Sequence[str]) -> Iterator[str]:
    """Added tokens alone, beside each other, with white space, inside words, and incomplete."""
    some = [*added[:24], *chance.sample(added[24:], min(24, len(added[24:])))]
    for token in some:
        yield from (token, f"{token}{token}", f" {token} ", f"  {token}\n\n{token}\t", f"a{token}b", f"é{token}日")
        yield from (
            token[:-1],
            token[1:],
            token.upper(),
            token.lower(),
            f"{token[:1]} {token[1:]}",
            f"{token[0]}{token}",
        )
        yield f"{chance.choice(PROSE)}{token}{chance.choice(PROSE)} {chance.choice(some)}\n{chance.choice(some)}"
    for _ in range(100):
        yield "".join(chance.choice(some) + chance.choice(["", " ", "\n", "x", " y", "é ", "1"]) for _ in range(5))


def _tokens(chance: random.Random, vocabulary: Sequence[str]) -> Iterator[str]:
    """Tokens of the vocabulary in sequences, with and without spaces."""
    for _ in range(1500):
        between = chance.choice(["", "", " ", "\n"])
        yield between.join(chance.choices(vocabulary, k=chance.randrange(1, 12)))
