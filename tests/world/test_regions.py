"""Links by region and by edge: matrices, places, draws, and CSV files with their line numbers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxfl.errors import InputError
from jaxfl.world import durations
from jaxfl.world import regions as r
from jaxfl.world.links import by_node, links, to_server

HEAD = "from,to,latency_ms,mbit\n"


def far(links: Any) -> Any:
    """What lies between nodes."""
    return links.between


def test_regions_are_matrices_and_an_assignment():
    got = r.regions(5, [[1, 2], [3, 4]], [[10, 20], [30, 40]], assignment=[0, 1, 1, 0, 0], up=7, access=0.5, step=2)
    np.testing.assert_array_equal(far(got).region, [0, 1, 1, 0, 0])
    np.testing.assert_array_equal(far(got).latency, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(far(got).rate, [[10, 20], [30, 40]])
    assert [np.asarray(v).tolist() for v in got[:4]] == [[7] * 5, [7] * 5, [0.5] * 5, [2] * 5]
    assert far(r.regions(5, np.zeros((2, 2)))).region.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("server", [0, 1, None])
def test_a_server_is_as_far_as_its_region(server):
    latency, rate, region = np.array([[1, 2], [4, 8.0]]), np.array([[10, 20], [40, 80.0]]), np.array([0, 1, 1])
    got = to_server(r.regions(3, latency, rate, assignment=region, server=server, up=[30, 30, 90], down=15, access=0.5))
    assert got.between is None
    if server is None:
        want = [30, 30, 90], [15] * 3, [0.5] * 3
    else:
        want = (
            np.minimum([30, 30, 90], rate[region, server]),
            np.minimum(15, rate[server, region]),
            0.5 + (latency[region, server] + latency[server, region]) / 2,
        )
    for a, b in zip(got[:3], want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_edges_and_places():
    got = r.by_edge(3, np.arange(9).reshape(3, 3), 5.0)
    np.testing.assert_array_equal(far(got).latency[:3, :3], np.arange(9).reshape(3, 3))
    assert far(got).region.tolist() == [0, 1, 2]
    assert (np.asarray(to_server(got).latency) == 0).all()
    there = r.geography([[0, 0], [3000, 4000], [0, 10]], rate=1e9)
    assert float(far(there).latency[0, 1]) == pytest.approx(4e-3 + 0.0085e-3 * 5000)
    assert float(far(there).latency[0, 2]) == float(far(there).latency[2, 0])


def test_draws_are_lognormal_and_alike_both_ways():
    z = np.log(r.lognormal(4000, 2.0, 0.5, seed=1) / 2) / 0.5
    assert abs(z.mean()) < 0.05
    assert abs(z.std() - 1) < 0.05
    edge = r.lognormal((60, 60), 1.0, 1.0, seed=2)
    np.testing.assert_array_equal(edge, edge.T)
    assert abs(np.log(edge).std() - 1) < 0.05
    assert (r.lognormal(3, 1.0, 1.0, 7) == r.lognormal(3, 1.0, 1.0, 7)).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: r.regions(3, [[1, 2]]), r"latency has shape \[1, 2\]"),
        (lambda: r.regions(3, [[1, -2], [1, 1]]), "finite time of at least 0"),
        (lambda: r.regions(3, [[1, math.inf], [1, 1]]), "finite time"),
        (lambda: r.regions(3, [[1]], 0.0), "a rate above 0"),
        (lambda: r.regions(3, [[1]], 1e-50), "a rate above 0, as float32"),
        (lambda: r.regions(3, [[1e39]]), "finite time of at least 0, as float32"),
        (lambda: r.regions(3, [[1]], [[1, 1]]), r"one each \[1, 1\]"),
        (lambda: r.regions(3, [[1]], assignment=[0, 1, 0]), "assignment has region 1, but there are 1"),
        (lambda: r.regions(3, [[1]], assignment=[0, 0]), "assignment has shape"),
        (lambda: r.regions(3, [[1]], assignment=[0, -1, 0]), "assignment is -1"),
        (lambda: r.regions(3, [[1]], server=1), "server is 1"),
        (lambda: r.by_edge(3, np.zeros((2, 2))), r"must be \[3, 3\]"),
        (lambda: r.geography([[0, 0, 0]]), "places have shape"),
        (lambda: r.lognormal((2, 3), 1.0, 1.0), "shape ="),
        (lambda: r.lognormal(2, 0.0, 1.0), "median is 0.0"),
        (lambda: links(3, group=[0, 1, 1], trunk=[1.0]), r"trunk = \[1.0\]"),
        (lambda: links(3, group=[0, 0.5, 1]), "group is"),
        (lambda: durations.on_links(links(3, group=0, trunk=1.0)), "links share uplinks, but a clock"),
        (lambda: by_node(r.by_edge(3), "MoDeST"), "MoDeST knows links by node alone"),
    ],
)
def test_bad_numbers(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_file_of_regions(tmp_path):
    path = tmp_path / "regions.csv"
    path.write_text("mbit, to,from,latency_ms,nodes\n100,eu,eu,5,2\n\n10,us,us,8,3\n2,us,eu,80,\n4,eu,us,90,\n")
    got = r.links_from_csv(path, 5, step=1.0)
    np.testing.assert_array_equal(far(got).region, [0, 0, 1, 1, 1])
    np.testing.assert_allclose(far(got).latency, [[5e-3, 80e-3], [90e-3, 8e-3]])
    np.testing.assert_allclose(far(got).rate, [[1e8, 2e6], [4e6, 1e7]])
    assert int(far(got).server) == 0
    assert got.step.tolist() == [1.0] * 5


def test_a_way_back_is_the_same_and_a_server_may_have_lines(tmp_path):
    path = tmp_path / "regions.csv"
    path.write_text(
        HEAD + "a,a,1,10\nb,b,1,1000\na,b,50,20\na,server,7,30\nserver,a,9,30\nb,server,8,40\n", "utf-8-sig"
    )
    got = r.links_from_csv(path, 4)
    assert far(got).region.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(far(got).latency[:2, :2], [[1e-3, 50e-3], [50e-3, 1e-3]])
    np.testing.assert_allclose(to_server(got).latency, [8e-3] * 4)
    np.testing.assert_allclose(to_server(got).up, [3e7, 3e7, 4e7, 4e7])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("from,to,mbit\na,a,1\n", "line 1: the columns are from,to,mbit"),
        ("", "line 1: the columns are none"),
        (HEAD, "there is no row in it"),
        (HEAD + "a,a,1,10\na,c,1,10\n", "line 3: region 'c' is unknown"),
        (HEAD + "a,a,1,10\n\na,a,2,10\n", "line 4: the same pair as in line 2"),
        (HEAD + "a,a,-1,10\n", "line 2: latency_ms is '-1'"),
        (HEAD + "a,a,nan,10\n", "line 2: latency_ms is 'nan'"),
        (HEAD + "a,a,1,0\n", "line 2: mbit is '0', but must be above 0"),
        (HEAD + "a,a,1,fast\n", "line 2: mbit is 'fast'"),
        (HEAD + "a,a,,10\n", "line 2: latency_ms is ''"),
        (HEAD + "a,,1,10\n", "line 2: to is empty"),
        (HEAD + "a,a,1\n", "line 2: 3 cells"),
        (HEAD + "a,a,1,1\nb,b,1,1\n", "line 3: no line says what lies between a and b"),
        (HEAD + "a,a,1,1\nb,b,1,1\na,b,1,1\na,server,1,1\n", "line 5: no line says what lies between b and server"),
        (HEAD[:-1] + ",nodes\na,a,1,1,3\n", "have 3 nodes, but 4 are needed"),
        (HEAD[:-1] + ",nodes\na,a,1,1,-3\n", "line 2: nodes is '-3'"),
        (HEAD[:-1] + ",nodes\na,a,1,1,4\nb,b,1,1,\na,b,1,1,\n", "region b says no number"),
        (HEAD[:-1] + ",nodes\na,a,1,1,4\na,server,1,1,2\n", "line 3: nodes is '2', but only"),
        (b"from,to,latency_ms,mbit\na,a,1,1\n\xe9,b,1,1\n", "line 3: not text in UTF-8"),
    ],
)
def test_bad_files_say_the_line(tmp_path, text, words):
    path: Path = tmp_path / "bad.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words):
        r.links_from_csv(path, 4)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        r.links_from_csv(tmp_path / "none.csv", 3)
