"""FedAvg-M and SCAFFOLD-M: a global direction in every local step, with and without variance reduction.

Momentum Benefits Non-IID Federated Learning Simply and Provably; Cheng, Huang, Wu, Yuan; ICLR 2024;
https://arxiv.org/abs/2306.16504 (paper 061). In words: the last global direction, mixed into every local step with
weight 1 - beta, frees FedAvg from the assumption of bounded heterogeneity and helps SCAFFOLD under partial
participation; the variance-reduced versions are better still.

**A, noise-free.** Quadratics of 20 clients in 10 dimensions, curvatures U[0.5, 5], optima 3 N(0, I); 10 local steps,
lr 0.02, server_lr = lr * 10, 8,000 rounds (SCAFFOLD-M 3,000), in float64. FedAvg-M(lr, beta) must stop where
FedAvg(lr * beta) does: its bias is about beta times smaller although the server moves as fast as before. `e` is the
distance from the optimum.

**B, stochastic.** Least squares of 40 clients with 60 samples each and models `w + 1.5 N(0, I)` of their own; 10 local
steps of batch 5, lr 0.001, server_lr 0.3, 400 rounds; the plateau is the mean of `|grad f|^2` over the last 100. All
systems run with these rates, on the same data, cohorts and batches; FedAvg and SCAFFOLD are beta = 1.

Found, as the plan predicts, mean and standard deviation over 3 seeds (in each seed everything is drawn anew):

- A: e is 0.22, 0.11, 0.045, 0.023, 0.011 (deviation 37 to 39 % of each) for beta = 1, 0.5, 0.2, 0.1, 0.05, and equals
  that of FedAvg(lr * beta) to 12 digits; e(0.1) / e(1) = 0.105 +- 0.002. SCAFFOLD-M ends within 2e-13 with all
  clients and with 5 of 20.
- B, all clients: FedAvg 0.020 +- 0.003, FedAvg-M 0.019 +- 0.005, FedAvg-M-VR 0.0048 +- 0.0011 (ratio 0.26).
- B, 8 of 40: FedAvg 0.53 +- 0.13, FedAvg-M 0.49 +- 0.15, SCAFFOLD 0.18 +- 0.04, SCAFFOLD-M 0.17 +- 0.03 (0.36 of
  FedAvg-M), SCAFFOLD-M-VR 0.045 +- 0.008 (0.27 of SCAFFOLD-M).

So control variates and variance reduction lower the plateau; momentum alone leaves it where it was (FedAvg-M against
FedAvg, SCAFFOLD-M against SCAFFOLD, no difference beyond the spread), which no inequality of the plan contradicts.

Deviations: none in the inequalities. The plan does not define `e`; its figures, linear in beta, are distances, which
is also the stricter reading of 1e-8. Its optional part C (FedAvg-M against FedAvg with an MLP on digits) is left out.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.momentum_fl import fedavg_m, fedavg_m_vr, scaffold_m, scaffold_m_vr
from jaxfl.claims.evidence import Evidence, at_most, tail
from jaxfl.core import Shards
from jaxfl.data import partition, synthetic
from jaxfl.engine.run import build, rollout, run
from jaxfl.learn import task
from jaxfl.measure.metrics import training_objective
from jaxfl.report.plots import learning_curves
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

RATE, STEPS, BETAS, BETA = 0.02, 10, (1.0, 0.5, 0.2, 0.1, 0.05), 0.1
NODES, DIM, FEW = 20, 10, 5  # quadratics
CLIENTS, SAMPLED, SMALL, PLATEAU = 40, 8, 1e-3, 100  # least squares
# system, clients a round, beta: the arms the plan compares, and both baselines without momentum (beta = 1)
ARMS = (
    ("FedAvg", fedavg_m, CLIENTS, 1.0),
    ("FedAvg-M", fedavg_m, CLIENTS, BETA),
    ("FedAvg-M-VR", fedavg_m_vr, CLIENTS, BETA),
    ("FedAvg", fedavg_m, SAMPLED, 1.0),
    ("FedAvg-M", fedavg_m, SAMPLED, BETA),
    ("SCAFFOLD", scaffold_m, SAMPLED, 1.0),
    ("SCAFFOLD-M", scaffold_m, SAMPLED, BETA),
    ("SCAFFOLD-M-VR", scaffold_m_vr, SAMPLED, BETA),
)


def distances(
    make: Callable, seeds: int, rounds: int, members: int, hyper: Mapping[str, Sequence[float]], **fixed
) -> Any:
    """Distance of the model after `rounds` from the optimum of noise-free quadratics, `[seeds, values]` float64.

    A seed is another draw of the quadratics. `hyper` holds the swept values of an argument of `make`, `members` is
    the number of clients a round of `NODES`; `fixed` are further arguments of `make`.
    """
    problems = [synthetic.gaussian_quadratics(NODES, DIM, seed=s) for s in range(seeds)]
    with jax.enable_x64(True):  # float32 stops some 1e-6 away from a fixed point
        A, b, optimum = (jnp.asarray(np.stack(v), jnp.float64) for v in zip(*problems, strict=True))
        position = jnp.arange(NODES, dtype=jnp.int32)
        data = Shards(A[0], b[0], position, position, jnp.ones(NODES, jnp.int32), 1)
        world = scenario(data, cohort=cohort.uniform(NODES, members))
        factory = partial(make, task.quadratic(DIM), steps=STEPS, batch=None, **fixed)

        def distance(A, b, optimum, hyper):
            here = world._replace(data=dataclasses.replace(data, x=A, y=b))
            state, _ = rollout(factory, here, jnp.zeros(DIM, jnp.float64), rounds, hyper=hyper)
            return jnp.linalg.norm(build(factory, hyper).read(state) - optimum)

        values = {name: jnp.asarray(v, jnp.float64) for name, v in hyper.items()}
        over = jax.vmap(jax.vmap(distance, (None, None, None, 0)), (0, 0, 0, None))
        return np.asarray(jax.jit(over)(A, b, optimum, values))


def descents(seeds: int, rounds: int, arms: Sequence[tuple] = ARMS) -> dict[tuple, Any]:
    """Histories of `|grad f|^2` (column `squared_gradient`) on least squares by (system, clients a round).

    A seed is another draw of data, cohorts and mini-batches.
    """
    import pandas as pd

    problem = task.linear_regression(DIM)
    data = [partition.by_client(synthetic.linear_regression_clients(CLIENTS, d=DIM, seed=s)) for s in range(seeds)]
    metric = training_objective(problem, data[0])
    worlds = {c: scenario(data[0], cohort=cohort.uniform(CLIENTS, c)) for c in {arm[2] for arm in arms}}
    makes = {arm[1]: partial(arm[1], problem, lr=SMALL, server_lr=0.3, steps=STEPS, batch=5) for arm in arms}
    out = {}
    for name, make, members, beta in arms:
        parts = [
            run(
                makes[make],
                worlds[members]._replace(data=own),
                problem.init,
                rounds,
                seed=s,
                every=1,
                evaluate=metric._replace(arrays=own),
                hyper={"beta": beta},
                progress=False,
            ).history
            for s, own in enumerate(data)
        ]
        table = pd.concat(parts, ignore_index=True)
        out[name, members] = table.assign(squared_gradient=table["gradient_norm"] ** 2)
    return out


def judge(biased: Any, small: Any, exact: Mapping[int, Any], curves: Mapping[tuple, Any]) -> Evidence:
    """Table, checks and figure.

    Args:
        biased: distances of FedAvg-M(lr, beta), `[seeds, betas]`.
        small: distances of FedAvg(lr * beta), `[seeds, betas]`.
        exact: distances of SCAFFOLD-M `[seeds]` by clients a round.
        curves: what `descents` returns for `ARMS`.
    """
    import pandas as pd

    level = {arm: tail(history, "squared_gradient", PLATEAU) for arm, history in curves.items()}
    rows = [("quadratics", "FedAvg-M", NODES, beta, RATE, e) for beta, e in zip(BETAS, biased.T, strict=True)]
    rows += [("quadratics", "FedAvg", NODES, 1.0, RATE * beta, e) for beta, e in zip(BETAS, small.T, strict=True)]
    rows += [("quadratics", "SCAFFOLD-M", c, BETA, RATE, e) for c, e in exact.items()]
    rows += [("least squares", name, c, beta, SMALL, level[name, c]) for name, _, c, beta in ARMS]
    spread = lambda e: e.std(ddof=1) if e.size > 1 else np.nan
    table = pd.DataFrame(
        [(*row, "distance" if row[0] == "quadratics" else "|grad f|^2", e.mean(), spread(e)) for *row, e in rows],
        columns=["problem", "system", "clients a round", "beta", "lr", "measure", "mean", "std"],
    )

    def ratio(system: str, other: str, members: int) -> Any:
        return level[system, members] / level[other, members]

    gap, tenth = np.abs(biased / small - 1).max(1), biased[:, BETAS.index(BETA)] / biased[:, BETAS.index(1.0)]
    checks = [
        at_most("A: |e(FedAvg-M(lr, beta)) / e(FedAvg(lr beta)) - 1|, the largest over beta", gap, 1e-3),
        at_most("A: e(FedAvg-M, beta = 0.1) / e(FedAvg-M, beta = 1)", tenth, 0.15),
        at_most("A: e(SCAFFOLD-M), all clients", exact[NODES], 1e-8),
        at_most("A: e(SCAFFOLD-M), 5 of 20 clients", exact[FEW], 1e-8),
        at_most("B: plateau FedAvg-M-VR / FedAvg-M, all clients", ratio("FedAvg-M-VR", "FedAvg-M", CLIENTS), 0.5),
        at_most("B: plateau SCAFFOLD-M / FedAvg-M, 8 of 40", ratio("SCAFFOLD-M", "FedAvg-M", SAMPLED), 0.5),
        at_most("B: plateau SCAFFOLD-M-VR / SCAFFOLD-M, 8 of 40", ratio("SCAFFOLD-M-VR", "SCAFFOLD-M", SAMPLED), 0.5),
    ]
    return Evidence(table, checks, _figure(biased, small, curves))


def reproduce(seeds: int = 3, *, rounds: tuple[int, int, int] = (8000, 3000, 400)) -> Evidence:
    """Both parts. `rounds`: of FedAvg-M and FedAvg in A, of SCAFFOLD-M in A, of all systems in B."""
    biased = distances(fedavg_m, seeds, rounds[0], NODES, {"beta": BETAS}, lr=RATE)
    small = distances(fedavg, seeds, rounds[0], NODES, {"lr": [RATE * beta for beta in BETAS]})
    exact = {c: distances(scaffold_m, seeds, rounds[1], c, {"beta": [BETA]}, lr=RATE)[:, 0] for c in (NODES, FEW)}
    return judge(biased, small, exact, descents(seeds, rounds[2]))


def _figure(biased: Any, small: Any, curves: Mapping[tuple, Any]) -> Any:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(12, 3.4), layout="constrained")
    left, *others = fig.subplots(1, 3)
    left.plot(BETAS, biased.mean(0), "o-", label="FedAvg-M(lr, beta)")
    left.fill_between(BETAS, biased.min(0), biased.max(0), alpha=0.2)
    left.plot(BETAS, small.mean(0), "kx", label="FedAvg(lr beta)")
    left.set(xscale="log", yscale="log", xlabel="beta", ylabel="distance to the optimum", title="noise-free quadratics")
    left.legend()
    for ax, members in zip(others, (CLIENTS, SAMPLED), strict=True):
        part = {name: history for (name, c), history in curves.items() if c == members}
        learning_curves(part, "squared_gradient", ax=ax, log=True)
        ax.set_title(f"least squares, {members} of {CLIENTS} clients")
    return fig
