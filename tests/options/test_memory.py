"""What cannot fit into the machine is refused before anything is made."""

import pytest
from common import jaxfl

from jaxfl.commands import start
from jaxfl.errors import InputError
from jaxfl.options import build, memory
from jaxfl.options.config import Setup
from jaxfl.options.topology import most_nodes


@pytest.mark.parametrize(
    ("setup", "system", "says"),
    [
        (Setup(nodes=10**8, partition="resampled"), "fedavg", "the samples would take at least 32.0 GB"),
        (Setup(nodes=10**8, data="synthetic"), "fedavg", "data synthetic would take at least 488.0 GB"),
        (Setup(nodes=10**5, topology="complete"), "dsgd", "topology complete would take at least 80.0 GB"),
        (Setup(rounds=10**8), "fedavg", "the history would take at least 150.0 GB"),
        (Setup(seeds=10**8), "fedavg", "the history would take"),
    ],
)
def test_a_world_that_does_not_fit_is_not_built(setup, system, says, monkeypatch):
    monkeypatch.setattr(memory, "of_machine", lambda: 24e9)
    monkeypatch.setattr(build, "dataset_of", lambda setup: pytest.fail("data were read"))
    with pytest.raises(InputError, match=f"{says}.* of memory, but this machine has 24.0 GB."):
        build.prepare(setup, [system])


def test_a_container_has_its_limit(tmp_path, monkeypatch):
    (tmp_path / "max").write_text("5000000000\n")
    monkeypatch.setattr(memory, "LIMIT", tmp_path / "max")
    assert memory.of_machine() <= 5e9
    (tmp_path / "max").write_text("max\n")
    assert memory.of_machine() > 1e9


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 74 GiB"), RuntimeError("RESOURCE_EXHAUSTED: 3 bytes")]
)
def test_memory_that_is_not_there_is_a_sentence(error):
    with pytest.raises(InputError, match=r"memory: .*; fewer nodes"), memory.said():
        raise error
    with pytest.raises(RuntimeError, match="else"), memory.said():
        raise RuntimeError("something else")


@pytest.mark.parametrize("option", ["rounds", "steps", "batch", "hidden", "devices", "nodes", "seeds", "every"])
def test_numbers_above_32_bits_are_refused(option, capsys):
    assert jaxfl("run", "fedavg", "--data", "digits", "--model", "mlp", f"--{option}", 10**26) == 2
    assert f"{option} is {10**26}, but must be" in capsys.readouterr().err


def test_the_state_of_a_system_is_known_before_it_is_made(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setattr(start, "start_jax", lambda devices: None)
    small = [
        "--nodes",
        20,
        "--data",
        "digits",
        "--model",
        "logistic",
        "--rounds",
        1,
        "--seeds",
        1,
        "--out",
        tmp_path / "o",
    ]
    for option in ("longest=100000000000", "longest=100000000"):
        assert jaxfl("run", "fedbuff", *small, "--set", option) == 2
    told = capsys.readouterr().err.splitlines()
    assert "longest must be a whole number" in told[0]
    assert "system fedbuff: its state would take at least 260.0 GB of memory" in told[1]
    assert not list(tmp_path.iterdir())


def test_numbers_of_nodes_that_a_topology_can_have():
    most = lambda topology, n, degree=4: most_nodes(Setup(topology=topology, degree=degree), n)
    assert [most("torus", n) for n in (13, 14, 3)] == [12, 14, 3]
    assert [most("hypercube", n) for n in (31, 32, 0)] == [16, 32, 0]
    assert [most("caveman", n) for n in (11, 3)] == [8, 0]
    assert [most("regular", 9, degree) for degree in (3, 4)] == [8, 9]
    assert most("exponential", 17) == 17
