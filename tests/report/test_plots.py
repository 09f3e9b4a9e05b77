import errno
import struct
import zlib

import matplotlib as mpl
import networkx as nx
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from jaxfl import data
from jaxfl.engine import disk
from jaxfl.engine.run import Result
from jaxfl.errors import InputError
from jaxfl.report import plots, tables
from jaxfl.world import graph, mixing

NAN = float("nan")
RESULT = Result(None, {}, None, None)
ROUNDS, SEEDS, NODES = 6, 3, 4


def history(level, bits=8e6, consensus=1.0, **more):
    """Three seeds, evaluated at rounds 0, 2, 4, 6, as `Recorder.frame` lays them out."""
    rows = []
    for seed in range(SEEDS):
        for r in range(ROUNDS + 1):
            row = {"seed": seed, "round": r, "time": NAN, "total_gradients": 5.0 * r}
            row |= {"total_up_bits": 0.25 * bits * r, "total_down_bits": 0.75 * bits * r}
            row |= {"time": 2.0 * r, "loss": 3.0 / r + seed} if r else {}
            if r % 2 == 0:
                score = level * r / ROUNDS + 0.01 * seed
                row |= {"accuracy": score, "worst_decile": score / 2, "test_loss": 2 - score, "diverged": 0.0}
                row["consensus"] = 0.0 if r == 0 else consensus * (1 + seed) / r
            rows.append(row)
    return pd.DataFrame(rows).assign(**more)


@pytest.fixture
def runs():
    return {"FedAvg": history(0.9, consensus=0.0), "ring": history(0.6, bits=400e6), "torus": history(0.7)}


def band(ax, i=0):
    """Lowest and highest y of the band of the `i`-th line, by x."""
    points = pd.DataFrame(ax.collections[i].get_paths()[0].vertices, columns=["x", "y"]).groupby("x")["y"]
    return points.min(), points.max()


def labels(fig):
    legend = fig.legends[0] if fig.legends else fig.axes[0].get_legend()
    return [t.get_text() for t in legend.get_texts()]


def check_png(data):
    """Every chunk's checksum, and all scan lines there."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, kinds, pixels = 8, [], b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        kinds.append(kind)
        pixels += body if kind == b"IDAT" else b""
        at += 12 + size
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    assert len(zlib.decompress(pixels)) == height * (4 * width + 1)
    return width, height


def test_learning_curves_draw_mean_and_range_of_the_seeds(runs):
    fig = plots.learning_curves(runs)
    (ax,) = fig.axes
    assert labels(fig) == ["FedAvg", "ring", "torus"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("round", "test accuracy", "linear")
    for i, run in enumerate(runs.values()):
        by_round = run.dropna(subset=["accuracy"]).groupby("round")["accuracy"]
        np.testing.assert_allclose(ax.lines[i].get_xdata(), [0, 2, 4, 6])
        np.testing.assert_allclose(ax.lines[i].get_ydata(), by_round.mean())
        low, high = band(ax, i)
        np.testing.assert_allclose(low, by_round.min())
        np.testing.assert_allclose(high, by_round.max())
    looks = {(to_hex(line.get_color()), line.get_linestyle()) for line in ax.lines}
    assert len(looks) == 3


def test_a_system_looks_the_same_in_all_pictures_of_a_figure(runs):
    looks = lambda fig: [(to_hex(line.get_color()), line.get_linestyle()) for line in fig.axes[0].lines]
    torus = {"torus": runs["torus"]}
    assert looks(plots.learning_curves(torus, styles=list(runs))) == looks(plots.learning_curves(runs))[2:]
    with pytest.raises(InputError, match="styles has no 'torus', only ring"):
        plots.learning_curves(torus, styles=["ring"])


def test_each_x_axis(runs):
    run = {"torus": runs["torus"]}
    want = {
        "round": ([0, 2, 4, 6], "round"),
        "megabytes": ([0, 0.5, 1, 1.5], "sent and received per node (MB)"),  # 8e6 bits are 1 MB, shared by 4 nodes
        "megabytes_up": ([0, 0.125, 0.25, 0.375], "sent per node (MB)"),
        "megabytes_down": ([0, 0.375, 0.75, 1.125], "received per node (MB)"),
        "time": ([0, 4, 8, 12], "simulated time (s)"),
        "gradients": ([0, 10, 20, 30], "gradient evaluations, all nodes"),
    }
    for x, (at, label) in want.items():
        (ax,) = plots.learning_curves(run, x=x, nodes=NODES).axes
        np.testing.assert_allclose(ax.lines[0].get_xdata(), at)
        assert ax.get_xlabel() == label
    (ax,) = plots.learning_curves(run, "loss", log=True).axes
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 3 / np.arange(1, 7) + 1)
    assert (ax.get_ylabel(), ax.get_yscale()) == ("training loss", "log")


def test_a_line_breaks_where_a_seed_diverged(runs):
    run = runs["ring"].copy()
    run.loc[(run["seed"] == 1) & (run["round"] >= 4), "accuracy"] = NAN
    (ax,) = plots.learning_curves({"ring": run}).axes
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.01, 0.21, NAN, NAN])
    run = runs["ring"].copy()
    run.loc[(run["seed"] == 2) & (run["round"] == 6), "accuracy"] = np.inf
    (ax,) = plots.learning_curves({"ring": run}).axes
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.01, 0.21, 0.41, NAN])
    lone = run[run["round"] == 0]
    assert plots.learning_curves({"ring": lone}).axes[0].lines[0].get_marker() == "o"


def test_a_round_in_which_nobody_answered_leaves_that_seed_out():
    """A training loss that is missing in a round and there again later did not diverge."""
    run = history(0.5)
    run.loc[(run["seed"] == 1) & (run["round"] == 3), "loss"] = NAN
    run.loc[run["round"] == 5, "loss"] = NAN
    (ax,) = plots.learning_curves({"ring": run}, "loss").axes
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [1, 2, 3, 4, 6])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [4, 2.5, 1 + (0 + 2) / 2, 1.75, 1.5])
    assert tables.rounds_to(run, "loss", 2.0, lower=True)[0] == 1 + 1 / 1.5  # 3, 1.5, 1, 0.75, none, 0.5


def test_twenty_eight_systems_look_different():
    run = history(0.5)
    (ax,) = plots.learning_curves({f"system {i}": run for i in range(28)}).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 28


def test_consensus_is_logarithmic(runs):
    (ax,) = plots.consensus({"torus": runs["torus"]}).axes
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "consensus distance")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0, 1, 0.5, 1 / 3])


def test_systems_whose_times_differ_tenfold_have_a_logarithmic_axis():
    near, far = (history(0.5).assign(time=lambda h, k=k: k * h["round"]) for k in (1.0, 50.0))
    scales = [plots.learning_curves({"a": near, "b": b}, x="time").axes[0].get_xscale() for b in (near, far)]
    assert scales == ["linear", "log"]


def test_legends_cover_no_axes(runs):
    own = plots.learning_curves(runs)
    other = Figure(layout="constrained")
    drawn = plots.learning_curves(runs, ax=other.subplots())
    assert drawn is other
    for fig in (own, other, plots.comparison(runs, NODES)):
        fig.draw_without_rendering()
        legend = fig.legends[0] if fig.legends else fig.axes[0].get_legend()
        for ax in fig.axes:
            assert not legend.get_window_extent().overlaps(ax.get_window_extent())


def test_comparison_has_four_panels(runs, tmp_path):
    fig = plots.comparison(runs, NODES, tmp_path / "figures" / "all.png")
    accuracy, megabytes, worst, consensus = fig.axes
    assert [len(ax.lines) for ax in fig.axes] == [3, 3, 3, 2]  # the server has no consensus distance
    assert labels(fig) == list(runs)
    assert megabytes.get_xscale() == "log"  # 1.5 MB against 75 MB
    np.testing.assert_allclose(megabytes.lines[1].get_xdata(), [0, 25, 50, 75])
    np.testing.assert_allclose(worst.lines[0].get_ydata(), accuracy.lines[0].get_ydata() / 2)
    assert consensus.lines[0].get_color() == accuracy.lines[1].get_color()
    check_png((tmp_path / "figures" / "all.png").read_bytes())


def test_comparison_leaves_out_what_was_not_measured(runs):
    losses = {
        name: run.drop(columns=["accuracy", "worst_decile", "total_up_bits", "total_down_bits"])
        for name, run in runs.items()
    }
    fig = plots.comparison(losses, NODES)
    assert [ax.get_ylabel() for ax in fig.axes] == ["test loss", "consensus distance"]
    mixed = plots.comparison(runs | {"torus": losses["torus"]}, NODES)
    assert [len(ax.lines) for ax in mixed.axes] == [2, 2, 2, 2]
    assert labels(mixed) == list(runs)
    with pytest.raises(InputError, match="neither accuracy nor test_loss"):
        plots.comparison({"a": runs["ring"][["seed", "round"]]}, NODES)


def test_rate_lays_measured_over_predicted():
    measured = {"ring": np.array([[1, 0.5, 0.2], [1, 0.3, 0.1]]), "torus": np.array([1, 0.2, 0.04])}
    predicted = {"ring": [1, 0.4, 0.16], "bound": [2, 1, 0.5]}
    fig = plots.rate(measured, predicted, x=[0, 10, 20], xlabel="step", ylabel="error (m)")
    (ax,) = fig.axes
    solid, torus, dashed, bound = ax.lines
    np.testing.assert_allclose(solid.get_ydata(), [1, 0.4, 0.15])
    np.testing.assert_allclose(solid.get_xdata(), [0, 10, 20])
    np.testing.assert_allclose(band(ax)[0], [1, 0.3, 0.1])
    np.testing.assert_allclose(dashed.get_ydata(), predicted["ring"])
    assert [line.get_linestyle() for line in ax.lines] == ["-", "-", "--", ":"]
    assert solid.get_color() == dashed.get_color() != torus.get_color() != bound.get_color()
    assert labels(fig) == ["ring", "torus", "bound", "predicted"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("step", "error (m)", "log")
    host = Figure().subplots()
    assert plots.rate({}, {"bound": [1, 2]}, ax=host) is host.figure
    np.testing.assert_allclose(host.lines[0].get_xdata(), [0, 1])


def points(fig):
    return max((c.get_offsets() for c in fig.axes[0].collections), key=len)


def test_topology_of_a_circulant_graph_is_a_circle():
    fig = plots.topology(graph.circulant(16, (1, 4, 12, 15)))
    at = np.asarray(points(fig))
    assert at.shape == (16, 2)
    np.testing.assert_allclose(np.linalg.norm(at - at.mean(0), axis=1), 1, atol=1e-5)
    (lines,) = [c for c in fig.axes[0].collections if hasattr(c, "get_segments")]
    assert len(lines.get_segments()) == 16 * 4 // 2


def test_topology_of_other_graphs_is_drawn_by_springs_always_alike():
    wheel = graph.watts_strogatz(40, 4, 0.2, seed=1)
    host = Figure().subplots()
    fig = plots.topology(wheel, ax=host)
    assert fig is host.figure
    np.testing.assert_allclose(points(fig), points(plots.topology(mixing.metropolis(wheel))))
    assert not fig.axes[0].axison
    arrows = plots.topology(graph.circulant(10, (1, 3))).axes[0].patches
    assert len(arrows) == 20


def test_topology_of_many_nodes_is_the_adjacency_matrix():
    one_way = graph.circulant(30, (1, 7))
    (image,) = plots.topology(one_way, max_nodes=29).axes[0].images
    np.testing.assert_allclose(image.get_array(), mixing.matrix(one_way) - np.diag(np.full(30, -1.0)))
    (image,) = plots.topology(graph.ring(1000)).axes[0].images
    cells = np.asarray(image.get_array())
    assert cells.shape == (256, 256)
    bounds = np.diff(np.linspace(0, 1000, 257).round())
    assert (cells * np.outer(bounds, bounds)).sum() == pytest.approx(2000)


def test_label_histogram_stacks_bars_or_paints_a_map():
    counts = np.random.default_rng(0).integers(0, 9, (40, 5))
    fig = plots.label_histogram(counts)
    ax = fig.axes[0]
    heights = np.array([[bar.get_height() for bar in stack] for stack in ax.containers])
    np.testing.assert_array_equal(heights, counts.T)
    tops = [bar.get_y() + bar.get_height() for bar in ax.containers[-1]]
    np.testing.assert_array_equal(tops, counts.sum(1))
    assert len({to_hex(stack[0].get_facecolor()) for stack in ax.containers}) == 5
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("node", "samples")
    assert sorted(labels(fig)) == ["0", "1", "2", "3", "4"]
    many = plots.label_histogram(np.ones((3, 30), int))
    assert many.axes[0].get_legend() is None
    assert many.axes[1].get_ylabel() == "label"
    plots.label_histogram(np.ones((3, 300), int))  # more than a colour map has shades
    host = Figure().subplots()
    counts = np.arange(41 * 3).reshape(41, 3)
    assert plots.label_histogram(counts, ax=host) is host.figure
    share = counts / counts.sum(1, keepdims=True)  # here every node's commonest label is the last
    np.testing.assert_allclose(host.images[0].get_array(), share[np.argsort(-share[:, 2], kind="stable")].T)


def test_save_writes_the_same_png_and_keeps_the_old_one_on_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.png"
    fig = plots.learning_curves({"ring": history(0.5)})
    plots.save(fig, path)
    old = path.read_bytes()
    width, _ = check_png(old)
    assert abs(width - 150 * fig.get_figwidth()) < 40
    plots.save(plots.learning_curves({"ring": history(0.5)}), str(path))
    assert path.read_bytes() == old == fig._repr_png_()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "sync", full)
    with pytest.raises(InputError, match="full"):
        plots.save(fig, path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_nothing_global_changes(runs):
    settings, backend = dict(mpl.rcParams), mpl.rcParams._get("backend")
    plots.comparison(runs, NODES)
    plots.topology(graph.ring(5))
    plots.label_histogram(np.ones((3, 3)))
    assert dict(mpl.rcParams) | {"backend": 0} == settings | {"backend": 0}
    assert mpl.rcParams._get("backend") == backend


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda h: plots.learning_curves({}), "histories is empty"),
        (lambda h: plots.learning_curves(h, "speed"), "no column 'speed'"),
        (lambda h: plots.learning_curves(h, x="day"), "x = 'day'"),
        (lambda h: plots.learning_curves(h, x="megabytes"), "nodes = None"),
        (lambda h: plots.learning_curves(h["ring"]), "histories is a DataFrame"),
        (lambda h: plots.comparison({"a": RESULT}, 4), r"histories\['a'\] is a Result, but must be a frame"),
        (lambda h: tables.summary(RESULT, 4), "histories is a Result, but must be a dict"),
        (lambda h: tables.summary({"a": RESULT}, 4), "give `Result.history`"),
        (lambda h: plots.topology(nx.path_graph(3)), "graph is a Graph, but must be a jaxfl Graph"),
        (lambda h: plots.topology(np.eye(3)), "graph is a ndarray, but must be"),
        (lambda h: plots.label_histogram(data.digits()), "counts is a Dataset, but must be an array"),
        (lambda h: plots.rate([1.0, 0.5], {}), "measured is a list, but must be a dict"),
        (lambda h: plots.rate({}, {"a": "fast"}), r"predicted\['a'\] is a str, but must be an array"),
        (lambda h: plots.comparison(h, 0), "nodes = 0"),
        (lambda h: plots.rate({}, {}), "empty"),
        (lambda h: plots.rate({"a": [1, 2]}, {"a": [1, 2, 3]}), r"predicted\['a'\] has shape \[3\], but 2"),
        (lambda h: plots.label_histogram([1, 2]), r"shape \[2\]"),
        (lambda h: plots.label_histogram([[1, -2]]), "counts"),
        (lambda h: plots.save(Figure(), "a.pdf"), "path = 'a.pdf'"),
    ],
)
def test_bad_input_is_one_sentence(runs, call, says):
    with pytest.raises(InputError, match=says):
        call(runs)


def test_a_heat_map_writes_its_numbers_and_says_what_diverged():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    plots.heat_map(np.array([[0.01, np.nan], [120.0, 5e7]]), ["a", "b"], ["x", "y"], ax, (0.1, 10))
    assert [t.get_text() for t in ax.texts] == ["0.01", "diverges", "120", "diverges"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert [t.get_color() for t in ax.texts] == ["white", "black", "black", "black"]
