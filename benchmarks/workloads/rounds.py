"""CPU seconds of a round of every system with a server beside FedAvg's, in turns: W1's model and data, many clients.

A round is the difference of a long and a short run, over the rounds that the long one has more: what a run costs at its
ends, where a memory of gigabytes is made and handed back, is in neither.
"""

from collections.abc import Iterator, Sequence

import timing
from child import run_child

from jaxfl import zoo
from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.engine.plan import plan
from jaxfl.options.systems import accepted
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario
from workloads import work
from workloads.federated import MLP
from workloads.work import Program, ours

SIZE, TINY = (10_000, 100, (10, 60)), (20, 4, (2, 4))  # clients, members of a round, rounds of the two runs
KW = {"steps": 3, "batch": 20}


def names() -> list[str]:
    """The systems with a server, but for FedAvg itself."""
    return [name for name, entry in zoo.entries().items() if entry.kind == "server" and name != "fedavg"]


def rows(turns: int, tiny: bool, only: Sequence[str] = ()) -> Iterator[dict]:
    """Every system, or `only` some, each in a process of its own; one that fails is a row with an `error`."""
    for name in only or (("scaffold", "heterofl") if tiny else names()):
        try:
            yield from run_child("round", name, "--turns", str(turns), *(["--tiny"] if tiny else []))
        except RuntimeError as error:
            yield {"round": name, "error": str(error)}


def system(name: str, turns: int, tiny: bool) -> dict:
    """One of them: CPU seconds a round and their ratio to FedAvg's, and what it computes, sends and keeps over it.

    `gradients` and `bits` are those that both log, `arithmetic` all FLOPs of the traced round.
    """
    (clients, members, rounds), known, task = TINY if tiny else SIZE, work.images(), work.mlp(MLP)
    world = scenario(work.even_shards(known, clients, 60), cohort=cohort.uniform(clients, members))
    found = zoo.find(name)
    if found.example is not None:
        return {"round": name, "left_out": "it brings a world of its own"}
    takes = accepted(found.make)
    own = {key: value for key, value in (KW | {"sample": members}).items() if key in takes}
    algorithms = {name: found.make(task, **own), "fedavg": fedavg(task, **KW)}
    sides = [ours(Program(made, world, task, known), r, False) for made in algorithms.values() for r in rounds]
    for side in sides:
        side.step()
    cpu = timing.in_turns(sides, turns)[..., 1].T.reshape(2, 2, turns)  # of both systems, the short and the long run
    over = lambda runs: (runs[:, 1] - runs[:, 0]) / (rounds[1] - rounds[0])
    mine, beside = map(float, over(cpu.min(-1)))
    row = {"round": name, "clients": clients, "members": members, "short": rounds[0], "long": rounds[1]}
    row |= {"cpu_seconds": mine, "fedavg_cpu_seconds": beside}
    row |= timing.ratios(*over(cpu)) | {"ratio": mine / beside}
    row["ends_cpu_seconds"] = float(cpu[0, 0].min()) - rounds[0] * mine
    del sides
    spent = {key: account(made, world, task) for key, made in algorithms.items()}
    mine, beside = spent.values()
    return row | {key: mine[key] / beside[key] for key in mine if key != "state_mb"} | {"state_mb": mine["state_mb"]}


def account(algorithm, world, task) -> dict[str, float]:
    """What two rounds compute and send, and the megabytes between them."""
    from jaxfl.engine.run import run

    done = run(algorithm, world, task.init, 2, every=2)
    made, last = plan(algorithm, world, task.init, every=2), done.history.iloc[-1]
    return {
        "gradients": float(last["total_gradients"]),
        "bits": float(last["total_up_bits"] + last["total_down_bits"]),
        "arithmetic": made.flops,
        "state_mb": timing.megabytes(done.state),
    }
