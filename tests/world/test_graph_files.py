"""Graphs in files, against networkx and NumPy; every fault of a file is named with its line."""

import networkx as nx
import numpy as np
import pytest
import scipy.sparse
from common import rounds

from jaxfl.core import Graph, Process
from jaxfl.errors import InputError
from jaxfl.world import graph as G
from jaxfl.world import mixing as M
from jaxfl.world.graph_files import load_topology


def at(tmp_path, text, name="edges.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def matrices(process, count):
    """The matrices of the first rounds."""
    n = process.arrays.nbr.shape[1]
    found = rounds(process, count)
    w = np.zeros((count, n, n))
    for t in range(count):
        np.add.at(w[t], (np.arange(n)[:, None], found.nbr[t]), np.asarray(found.weight[t], float))
        w[t] += np.diag(1 - w[t].sum(1))
    return w


def test_a_static_csv_is_the_graph_of_its_arcs(tmp_path):
    arcs = [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)]
    ours = load_topology(at(tmp_path, "source,target\n" + "".join(f"{u},{v}\n" for u, v in arcs)))
    np.testing.assert_allclose(M.matrix(ours), M.matrix(M.metropolis(G.from_networkx(nx.path_graph(4)))))
    directed = load_topology(at(tmp_path, "\ufefftarget, source\r\n1,0\r\n\r\n0,2\r\n2,1\r\n0,1\r\n"))
    known = nx.to_numpy_array(nx.DiGraph([(0, 1), (2, 0), (1, 2), (1, 0)]), nodelist=range(3)).T + np.eye(3)
    np.testing.assert_allclose(M.matrix(directed), known / known.sum(1, keepdims=True), atol=1e-7)


def test_a_trace_is_a_graph_a_round_and_starts_again(tmp_path):
    rng = np.random.default_rng(0)
    n, count, text, known = 5, 3, "weight,round,source,target\n", []
    for t in range(count):
        w = rng.random((n, n)) / n * (rng.random((n, n)) < 0.5) * (t != 1)  # in round 1 nobody hears anybody
        np.fill_diagonal(w, 0)
        lines = [(float(w[i, j]), t, j, i) for i, j in zip(*np.nonzero(w), strict=True)] or [(0, t, 0, 1)]
        text += "".join(f"{v!r},{t},{s},{d}\n" for v, t, s, d in lines)
        known.append(w + np.diag(1 - w.sum(1)))
    found = load_topology(at(tmp_path, text), nodes=n)
    assert isinstance(found, Process)
    np.testing.assert_allclose(matrices(found, 5), [known[t % count] for t in range(5)], atol=1e-6)


def test_graphml_and_npz(tmp_path):
    g = nx.relabel_nodes(nx.path_graph(4), {0: 3, 3: 0})  # the file has names 3, 1, 2, 0
    nx.write_graphml(g, tmp_path / "g.graphml")
    known = nx.to_numpy_array(g, nodelist=range(4))
    ours = load_topology(tmp_path / "g.graphml", weigh=M.uniform)
    np.testing.assert_array_equal(M.matrix(ours) > 0, known + np.eye(4) > 0)
    nx.set_edge_attributes(g, 0.25, "weight")
    nx.write_graphml(g, tmp_path / "g.graphml")
    w = 0.25 * known
    w += np.diag(1 - w.sum(1))
    np.testing.assert_allclose(M.matrix(load_topology(tmp_path / "g.graphml")), w)
    with pytest.raises(InputError, match="weights of its own"):
        load_topology(tmp_path / "g.graphml", weigh=M.uniform)
    np.savez(tmp_path / "m.npz", mixing=w, else_=3)
    np.savez(tmp_path / "a.npz", adjacency=known)
    scipy.sparse.save_npz(tmp_path / "s.npz", scipy.sparse.csr_array(w))
    for name in ("m.npz", "s.npz"):
        np.testing.assert_allclose(M.matrix(load_topology(tmp_path / name)), w)
    a = load_topology(tmp_path / "a.npz")
    assert isinstance(a, Graph)
    np.testing.assert_allclose(M.matrix(a), M.matrix(M.metropolis(G.from_networkx(g))))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"line 1: the columns are none"),
        ("source;target\n", "line 1: column 'source;target' is unknown"),
        ("source,targte\n0,1\n", "column 'targte' is unknown; did you mean target"),
        ("source,weight\n0,1\n", "the columns are source,weight"),
        ("source,target\n", "there is no row in it"),
        ("source,target\n0,1\n1\n", "line 3: 1 cells, but there are 2 columns"),
        ("source,target\n0,1\n\n1,4\n", "line 4: node 4 is unknown: there are 3"),
        ("source,target\n0,-1\n", "line 2: target is '-1', but must be a whole number"),
        ("source,target\n0,1.0\n", "line 2: target is '1.0'"),
        ("source,target\nann,1\n", "line 2: source is 'ann'"),
        ("source,target\n0,1\n1,1\n", "line 3: node 1 is its own source"),
        ("source,target\n0,1\n1,2\n0,1\n", "line 4: the same arc as in line 2"),
        ("source,target\n0,1\n", "has 2 nodes, but 3 are needed"),
        ("source,target\n0,2\n", "node 1 is isolated"),
        (b"source,target\n0,1\n\xff,2\n", "line 3: not text in UTF-8"),
        ("round,source,target\n1,0,1\n", "line 2: round 1 comes first"),
        ("round,source,target\n0,0,1\n2,1,2\n", "line 3: round 2 follows round 0"),
        ("round,source,target\n0,0,1\n1,1,2\n0,1,0\n", "line 4: round 0 follows round 1"),
        ("round,source,target\n-1,0,1\n", "line 2: round is '-1'"),
        ("source,target,weight\n0,1,-0.1\n", "line 2: weight is '-0.1', but must be a finite number of at least 0"),
        ("source,target,weight\n0,1,nan\n", "line 2: weight is 'nan'"),
        ("source,target,weight\n0,1,\n", "line 2: weight is ''"),
        ("source,target,weight\n0,1,0.7\n2,1,0.5\n", r"csv: the weights with which node 1 hears sum to 1.2"),
        (
            "round,source,target,weight\n0,0,1,1\n1,1,2,1\n1,2,2,0.5\n",
            "round 1: .* node 2 hears sum to 1.5, .* its own",
        ),
    ],
)
def test_a_bad_csv_is_refused_with_its_line(tmp_path, text, says):
    path = at(tmp_path, text)
    with pytest.raises(InputError, match=says) as caught:
        load_topology(path, nodes=3)
    assert str(caught.value).startswith(str(path))


def test_bad_files_of_other_kinds(tmp_path):
    def refused(path, says, **kw):
        with pytest.raises(InputError, match=says):
            load_topology(path, **kw)

    refused(tmp_path / "no.csv", "there is no such file")
    refused(tmp_path / "g.txt", r"must end in .csv, .graphml, .npz")
    refused(at(tmp_path, "<graphml>", "g.graphml"), "is not GraphML")
    refused(at(tmp_path, "no archive", "g.npz"), "is not a .npz of numbers")
    np.savez(tmp_path / "g.npz", w=np.eye(2))
    refused(tmp_path / "g.npz", "has the arrays w: one called mixing or adjacency is needed")
    np.savez(tmp_path / "g.npz", mixing=np.array([{}, {}]))  # a pickle
    refused(tmp_path / "g.npz", "is not a .npz of numbers")
    np.savez(tmp_path / "g.npz", mixing=[[0.5, 0.5], [0.4, 0.5]])
    refused(tmp_path / "g.npz", "row 1 of the mixing matrix sums to 0.9")
    np.savez(tmp_path / "g.npz", adjacency=[[0, 0.5], [0.5, 0]])
    refused(tmp_path / "g.npz", "a has 0.5 in row 0, column 1")
    np.savez(tmp_path / "g.npz", adjacency=1 - np.eye(3))
    refused(tmp_path / "g.npz", "has 3 nodes, but 4 are needed", nodes=4)
    refused(at(tmp_path, "source,target\n0,1\n"), "graph is directed", weigh=M.metropolis)
