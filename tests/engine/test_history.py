"""The log of a run: read back as it was, whole rows of every seed and round, or a sentence that names the line."""

import io
import json

import numpy as np
import pandas as pd
import pytest

from jaxfl.engine.history import DamagedError, Recorder, read_rows, unused

LABELS = [{"lr": 0.1, "seed": 0}, {"lr": 0.1, "seed": 1}]
ODD = [np.nan, np.inf, -np.inf, -0.0, 5e-324, 0.1 + 0.2]


def recorded(log, until, labels=LABELS):
    """A record of so many rounds in chunks of two, with odd numbers in it and a part that is by node."""
    recorder = Recorder(labels, log)
    recorder.add(0, {}, {"score": np.array([1.0, np.nan])})
    for start in range(0, until, 2):
        loss = np.array([[ODD[start % 6], ODD[start % 6 + 1]], [0.5, np.nan]])
        logs = {"loss": loss, "up_bits": np.full((2, 2), 3e9), "each": np.full((2, 2, 3), start)}
        recorder.add(start, logs, {"score": np.array([np.inf, 2.0])}, {"own": np.ones((2, 3))})
        yield recorder


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.jsonl"


def last(parts):
    return list(parts)[-1]


def test_what_is_taken_up_is_what_was_recorded(log):
    """Rows, totals and arrays, infinite ones and NaN too; what came later is gone from the files."""
    parts = recorded(log, 6)
    mark = [next(parts), next(parts)][-1].mark()
    whole = log.read_bytes()
    kept, held = list(Recorder(LABELS, log).rows), None
    assert kept == []
    held = last(recorded(log.with_name("alike.jsonl"), 4))
    list(parts)
    assert len(log.read_bytes()) > len(whole)
    again = Recorder(LABELS, log)
    again.go_on(4, json.loads(json.dumps(mark)))
    pd.testing.assert_frame_equal(again.frame(), held.frame(), check_exact=True)
    for name, a in held.spent.items():
        np.testing.assert_array_equal(again.spent[name], a)
    for name, a in held.by_node().items():
        np.testing.assert_array_equal(again.by_node()[name], a)
    assert log.read_bytes() == whole
    assert sorted(p.name for p in (log.parent / "nodes").iterdir()) == ["0-2.npz", "2-4.npz"]
    marks = [{k: v for k, v in m.items() if k != "seconds"} for m in (again.mark(), mark)]
    assert marks[0] == marks[1]
    assert again.seconds >= mark["seconds"]


def test_pandas_reads_the_log(log):
    recorder = last(recorded(log, 6))
    read = pd.read_json(io.StringIO(log.read_text().replace("5e-324", "0.0")), lines=True)
    frame = recorder.frame()
    np.testing.assert_array_equal(read.sort_values(["seed", "round"])["loss"], frame["loss"].replace(5e-324, 0.0))
    assert np.isinf(read["loss"]).sum() == 2


def swap(lines, i, j):
    lines = list(lines)
    lines[i], lines[j] = lines[j], lines[i]
    return lines


def edited(line, **values):
    return json.dumps(json.loads(line) | values)


HARM = {  # what is done to the lines of a log of rounds 0 to 4, and the line that is named
    "lost": (lambda lines: lines[:4] + lines[5:], 5),
    "lost first": (lambda lines: lines[1:], 2),
    "torn": (lambda lines: [*lines[:6], lines[6][:20], *lines[7:]], 7),
    "doubled": (lambda lines: [*lines[:3], lines[2], *lines[3:]], 4),
    "reversed": (lambda lines: lines[::-1], 2),
    "swapped": (lambda lines: swap(lines, 2, 3), 3),
    "of zeros": (lambda lines: [*lines[:2], "\0" * len(lines[2]), *lines[3:]], 3),
    "of another seed": (lambda lines: [edited(lines[0], seed=7), *lines[1:]], 1),
    "of another rate": (lambda lines: [*lines[:1], edited(lines[1], lr=0.2), *lines[2:]], 2),
    "no row": (lambda lines: [*lines[:2], "[1, 2]", *lines[3:]], 3),
    "a word": (lambda lines: [*lines[:2], edited(lines[2], loss="low"), *lines[3:]], 3),
    "null": (lambda lines: [*lines[:2], edited(lines[2], loss=None), *lines[3:]], 3),
    "deep": (lambda lines: [*lines[:2], "[" * 100_000, *lines[3:]], 3),
    "long": (lambda lines: [*lines[:2], '{"seed": ' + "9" * 5000 + "}", *lines[3:]], 3),
    "half a round": (lambda lines: [*lines[:2], edited(lines[2], round=0.5), *lines[3:]], 3),
    "bytes": (lambda lines: [*lines[:2], "\udcff", *lines[3:]], 3),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_row_that_is_not_due_is_named(log, harm):
    recorder = last(recorded(log, 4))
    mark, (make, line) = recorder.mark(), HARM[harm]
    text = ("\n".join(make(log.read_text().splitlines())) + "\n").encode(errors="surrogateescape")
    with pytest.raises(DamagedError, match=f"^resume: line {line} of .*log.jsonl (is|of)") as error:
        read_rows(log, text, LABELS, 4)
    assert "\n" not in str(error.value)
    log.write_bytes(text)
    before = log.read_bytes()
    with pytest.raises(DamagedError):
        Recorder(LABELS, log).go_on(4, mark)
    assert log.read_bytes() == before


def test_an_edited_number_a_short_log_and_other_archives_are_refused(log):
    mark = last(recorded(log, 4)).mark()
    whole, nodes = log.read_bytes(), log.parent / "nodes"

    def says():
        with pytest.raises(DamagedError) as error:
            Recorder(LABELS, log).go_on(4, mark)
        return str(error.value)

    log.write_bytes(whole.replace(b"0.5", b"0.6", 1))
    assert "log.jsonl is not as it was at round 4" in says()
    log.write_bytes(b"\n".join(whole.split(b"\n")[:-2]) + b"\n")
    assert f"ends at round 3 of {LABELS[1]}, before round 4" in says()
    log.unlink()
    assert "cannot be read" in says()
    log.write_bytes(whole)
    kept = (nodes / "2-4.npz").read_bytes()
    (nodes / "2-4.npz").write_bytes(kept[:50])
    assert "2-4.npz is damaged" in says()
    (nodes / "2-4.npz").write_bytes((nodes / "0-2.npz").read_bytes())
    assert "nodes is not as it was at round 4" in says()
    (nodes / "2-4.npz").unlink()
    assert "nodes is not as it was at round 4" in says()


def test_a_log_is_unused_until_a_round_is_in_it(log):
    assert unused(log)
    parts = recorded(log, 2)
    Recorder(LABELS, log).add(0, {}, {"score": np.ones(2)})
    assert unused(log)
    list(parts)
    assert not unused(log)
    for text in (b"{", b"3\n", b"{}\n", b"\xff\n", b"[" * 100_000):
        log.write_bytes(text)
        assert not unused(log)
