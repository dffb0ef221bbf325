"""Names and descriptions that a user wrote: what they may hold, which are the same, which give a name away."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import combinations

LONGEST_NAME = 60  # characters
LONGEST_DESCRIPTION = 2000
SHORTEST_PART = 3  # letters of a word that, alone, gives its name away
# how chat templates and tokenizers mark turns and pictures: <end_of_turn>, <|im_end|>, </s>, [INST], [IMG]
CONTROL_TOKEN = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{3,}\]")
# Cyrillic and Greek capitals that look like Latin ones
LATIN = str.maketrans("АВЕЅІЈКМНОРСТУХԚԜΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABESIJKMHOPCTYXQWABEZHIKMNOPTYX")


def looks(text: str) -> str:
    """What remains of a text when case, spacing, accents and invisible characters do not count.

    Neither does the alphabet of a letter whose capital looks the same in Latin, Cyrillic and Greek.
    """
    capitals = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold().upper())
    seen = (c for c in capitals if unicodedata.category(c) != "Cf" and not "\u0300" <= c <= "\u036f")
    return " ".join(unicodedata.normalize("NFC", "".join(seen).translate(LATIN)).split())


def words(text: str) -> list[str]:
    """Runs of letters and digits, as they are written."""
    seen = (c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in seen).split()


def check_name(name: str) -> None:
    """Raises ValueError, with the second half of a sentence, for a name that is no plain text."""
    if len(name) > LONGEST_NAME:
        raise ValueError(f"has {len(name):,} characters; expected at most {LONGEST_NAME}")
    if odd := next((c for c in name if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029"), None):
        raise ValueError(f"holds the control or invisible character U+{ord(odd):04X}; take it out")
    if name != " ".join(name.split()):
        raise ValueError("has other spaces than single plain ones between words; take them out")
    if not any(c.isalnum() for c in name):
        raise ValueError("has no letter; expected a name")
    _check_tokens(name)


def check_description(text: str) -> None:
    """Raises ValueError, with the second half of a sentence, for a description that is no plain text or too long."""
    if not text.strip():
        raise ValueError("is blank; leave it empty or write one")
    if len(text) > LONGEST_DESCRIPTION:
        raise ValueError(f"has {len(text):,} characters; expected at most {LONGEST_DESCRIPTION:,}")
    if odd := next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\r\n"), None):
        raise ValueError(f"holds the control character U+{ord(odd):04X}; take it out")
    _check_tokens(text)


def _check_tokens(text: str) -> None:
    if token := CONTROL_TOKEN.search(unicodedata.normalize("NFKC", text)):
        raise ValueError(f"holds {token[0]!r}, which models may read as a control token; write it otherwise")


class Leaks:
    """Finds names in descriptions, word by word.

    A name is given away by all of it, also run together, by two of its words side by side in any order, and by one of
    its words of at least three letters, also with an s behind it, if that stands with a capital: in lower case it may
    be an ordinary word (rose, will). A name of one or two letters needs a capital too. A word that all names share
    gives nobody away. Words of scripts without capitals are also found within longer ones.
    """

    def __init__(self, names: Iterable[str]) -> None:
        parts = {name: [looks(word) for word in words(name)] for name in names}
        shared = set.intersection(*map(set, parts.values()))
        self._together: dict[frozenset[str], str] = {}  # in any case, side by side
        self._capital: dict[str, str] = {}
        self._within: dict[str, str] = {}
        for name, own in parts.items():
            whole, telling = "".join(own), set(own) - shared
            self._together |= {frozenset(pair): name for pair in combinations(own, 2) if set(pair) - shared}
            if len(whole) >= SHORTEST_PART:  # run together, too
                self._together[frozenset((whole,))] = name
            if len(own) == 1:
                self._capital[whole] = name
            self._capital |= {word: name for word in telling if len(word) >= SHORTEST_PART}
            self._within |= {word: name for word in telling if len(word) > 1 and word.lower() == word.upper()}

    def find(self, description: str) -> str | None:
        """A name that the description gives away."""
        written = words(description)
        seen = [looks(word) for word in written]
        for one, two in zip(seen, [*seen[1:], ""], strict=True):
            if name := self._together.get(frozenset((one, two))) or self._together.get(frozenset((one,))):
                return name
        for as_written, word in zip(written, seen, strict=True):
            if not as_written[0].islower():
                for part in (word, word.removesuffix("S")):  # Bertas
                    if part in self._capital:
                        return self._capital[part]
        return next((name for part, name in self._within.items() if any(part in word for word in seen)), None)
