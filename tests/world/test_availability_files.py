"""Availability as files say it, and every way in which they can be wrong, with its line."""

import numpy as np
import pytest
from common import quadratics, rounds

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.world.availability_files import from_csv
from jaxfl.world.scenario import scenario

STAYS = "node,from,to\n0,0,2\n2,4,\n0,3,5\n\n2,1,3\n"
ROUNDS = "\ufeffround,0,1,2\r\n0,1,1,0\r\n1, 0,1,1\r\n"


def written(tmp_path, text):
    path = tmp_path / "seen.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_stays_are_read_as_written(tmp_path):
    up = np.asarray(rounds(from_csv(written(tmp_path, STAYS), 3), 7))
    want = np.zeros((7, 3), bool)
    want[[0, 1, 3, 4], 0] = want[[1, 2, 4, 5, 6], 2] = True
    np.testing.assert_array_equal(up, want)


def test_a_line_a_round_begins_anew(tmp_path):
    path = written(tmp_path, ROUNDS)
    table = np.array([[1, 1, 0], [0, 1, 1]], bool)
    np.testing.assert_array_equal(rounds(from_csv(path, 3), 5), table[np.arange(5) % 2])


def test_a_world_obeys_the_file(tmp_path):
    _, task, data = quadratics(n=3, d=2)
    world = scenario(data, churn=from_csv(written(tmp_path, ROUNDS), 3))
    history = run(fedavg(task, lr=0.1, steps=1, batch=1), world, np.ones(2, np.float32), 4, every=1).history
    np.testing.assert_array_equal(history["up_bits"].iloc[1:], [128, 128, 128, 128])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a header and at least one line"),
        ("node,from,to\n", "a header and at least one line"),
        ("node,from\n0,0\n", "line 1: the columns are node,from, but"),
        ("round,0,1\n0,1,1\n", "line 1: there are columns of 2 nodes, but 3"),
        ("node,from,to\n0,0,2\n0,1\n", "line 3: 2 cells, but there are 3"),
        ("node,from,to\n0,0,2\n3,1,2\n", "line 3: node 3 is unknown"),
        ("node,from,to\nzero,0,2\n", "line 2: node is 'zero'"),
        ("node,from,to\n0,-1,2\n", "line 2: from is '-1'"),
        ("node,from,to\n0,5,2\n", "line 2: a stay from 5 to 2"),
        ("node,from,to\n0,0,99999999999\n", "line 2: a stay from 0 to 99999999999"),
        ("node,from,to\n0,3,9\n1,0,1\n0,1,4\n", "line 4: node 0 is up by line 2 already"),
        ("round,0,1,2\n0,1,1,1\n2,1,1,1\n", "line 3: round 2 comes where 1 is due"),
        ("round,0,1,2\n0,1,1,1\n1,1,0.5,1\n", "line 3: node 1 has '0.5'"),
        (b"node,from,to\n0,0,2\n0,\xff,2\n", "line 3: not text in UTF-8"),
        ('node,from,to\n0,0,2\n"1,0,2\n', "line 3: not a line of CSV"),
        ("node,from,to\n0,0," + "2" * 200_000, "line 2: not a line of CSV"),
    ],
)
def test_a_bad_file_gets_its_line(tmp_path, text, says):
    with pytest.raises(InputError, match=says):
        from_csv(written(tmp_path, text), 3)
