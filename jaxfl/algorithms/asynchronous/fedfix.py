"""FedFix: every Delta seconds the server aggregates what has arrived; who comes more seldom counts more.

At the n-th aggregation, with S the clients that deliver and rho_i the version client i read,

    Delta_i = y_i(x_rho_i) - x_rho_i,  K steps of SGD,      x <- x + eta_g sum_S omega_i Delta_i.

On average over time that descends sum_i q_i F_i, where q_i is the mean of omega_i (0 where i does not deliver); it is
the objective sum_i p_i F_i if q_i is proportional to p_i. Of a client that delivers in every m_i-th aggregation that is

    omega_i = m_i p_i,    m_i = ceil(tau_i / Delta),

tau_i the seconds of its job; with omega_i = p_i the fixed point belongs to the fast. What differs between the schemes
of the paper is the clock alone, and m_i with it (`world.participation.summed`, `frequency`):

    FedAvg                       delivery.quorum(n, n, tau)         m_i = 1
    asynchronous FedAvg          delivery.quorum(n, 1, tau)         m_i = tau_i sum_j 1 / tau_j
    FedBuff(c)                   delivery.quorum(n, c, tau)         1 / the measured frequency of i
    FedFix(Delta)                delivery.ticks(n, Delta, tau)      ceil(tau_i / Delta)

`fedfix` is the server's sum; the world says who is in it, and with a mean instead of a sum (a clock without `summed`)
it is FedBuff without a discount. Its own clock, of options: jobs of random length, ticks as long as `goal` answers take
on average, m_i the mean of ceil over draws, and `concurrency` clients at work (the paper has everyone).

Deviation: an answer older than `longest` versions is dropped.
"""

import optax

from jaxfl.algorithms.server.fedopt import fedopt
from jaxfl.core import Algorithm, Array, Process
from jaxfl.errors import require
from jaxfl.exchange.network import Network
from jaxfl.exchange.staleness import Staleness, constant
from jaxfl.learn.task import Task
from jaxfl.paper import Example, Paper, System, Workers
from jaxfl.world.delivery import ticks
from jaxfl.world.participation import mean_seconds, summed, tick_periods

PAPER = Paper(
    "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates",
    "Fraboni, Vidal, Kameni, Lorenzi",
    "Journal of Machine Learning Research 2023",
    "https://arxiv.org/abs/2206.10189",
    number="025",
    journal=True,
)


def fedfix(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    server_lr: float | Array = 1.0,
    longest: int = 32,
    **kw,
) -> Algorithm:
    """FedFix with client rate `lr` and server rate `server_lr`, eta_g; `kw` as in `fedopt`.

    An answer counts whatever its age, up to `longest` versions. Memory: `longest + 1` models.
    """
    require("lr", lr, above=0)
    require("server_lr", server_lr, above=0)
    require("longest", longest, least=0, whole=True)
    stale = Staleness(longest, constant())
    return fedopt(task, net, local=optax.sgd(lr), server=optax.sgd(server_lr), stale=stale, **kw)


def paced(jobs: Workers) -> Process:
    """FedFix's clock as options say it: a tick takes as long as `goal` answers on average."""
    n, working = jobs.nodes, jobs.concurrency
    every = jobs.goal / working * float(mean_seconds(jobs.seconds, n).mean())
    return summed(ticks(n, every, jobs.seconds, concurrency=working), tick_periods(n, every, jobs.seconds, working))


SYSTEMS = {"fedfix": System(fedfix, PAPER, lambda given: Example(clock=paced))}
