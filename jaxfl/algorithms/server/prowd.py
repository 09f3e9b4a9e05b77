"""ProWD: clients of few and of many bits, whose weights meet after dequantisation, where their updates agree.

Client k computes with b_k bits. Those of the most bits start from the model x, the others from Q_b(v) of a second model
v, and train with rounded weights (straight-through gradients). With D_k = phi(Q_b(y_k)) - x, where phi raises few bits
to floats, and H the mean of D_k over the clients of the most bits,

    m_k = [sign D_k = sign H],      x <- x + mean over {H's clients} and {the others where m_k} of D_k, by number,
    v <- x + mean over all of D_k,

so that a weight of few bits enters x only where it moves as those of many bits do. phi is trained at the server each
round, on x rounded to every level. The paper finds m_k by raising the cosine of m_k D_k and H above a threshold
(`agreement.until_cosine`); signs are a stand-in. Activations and gradients stay floats here. phi is applied where the
member's row is in cache, which differs from the server's doing it only under codecs and attacks; who lies may also lie
about its bits.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
import optax

from jaxfl.core import Algorithm, Array, State, Tree, stream
from jaxfl.errors import require
from jaxfl.exchange.agreement import same_sign, selective
from jaxfl.exchange.network import Network
from jaxfl.learn import dequantise as phis
from jaxfl.learn.local import local_sgd
from jaxfl.learn.quantised import model_bits, quantised, rounded_row
from jaxfl.learn.submodels import of_node
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Bitwidth Heterogeneous Federated Learning with Progressive Weight Dequantization",
    "Yoon, Park, Jeong, Hwang",
    "ICML 2022",
    "https://arxiv.org/abs/2202.11453",
    number="083",
)


def prowd(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    bits: Sequence[int] = (32, 2),
    choose: Callable = same_sign,
    grouped: bool = False,
    fits: int = 5,
    buffer: Tree = None,
    steps: int = 10,
    batch: int | None = 16,
) -> Algorithm:
    """ProWD with client rate `lr`; node `i` computes with `bits[i % len(bits)]` bits, 2 being ternary weights.

    `choose` says which numbers of few bits enter the model of many (`exchange.agreement`), `grouped` keeps clients of
    many bits out of the model of few. phi takes `fits` steps of Adam a round (0: none), at best with a `buffer` of
    inputs that the server has. Answers `x`, the model of many bits, and `low`, that of the fewest.
    """
    require("lr", lr, above=0)
    require("bits", np.asarray(bits), least=2, most=32, whole=True)
    require("fits", fits, least=0, whole=True)
    net, most, least = net.fill("prowd", rule=selective(choose, grouped)), max(bits), min(bits)
    profile, tx = jnp.asarray(bits), optax.adam(1e-3, eps=1e-3)  # no step by rounding alone

    def member(key, data, i, x, *, everyone, phi, **more):
        own = of_node(profile, i)
        learn = local_sgd(quantised(task, own), optax.sgd(lr), steps=steps, batch=batch)
        y, log = learn(key, data, i, jnp.where(own < most, rounded_row(task, everyone, own), x), **more)
        said = rounded_row(task, y, own)
        heard = jnp.where(own < most, phis.dequantised(task, phi, said, own), said) if fits else said
        return jnp.concatenate([heard - x, heard - x, jnp.float32(own < most)[None]]), log

    def init(key, env, x):
        phi = phis.blocks(stream(key, "dequantise")) if fits else ()
        shared = {"x": x, "everyone": x, "phi": phi, "fit": tx.init(phi)}
        return State(shared, (), net.init(env, jnp.concatenate([x, x, jnp.zeros(1)])))

    def round(key, env, s):
        x, phi, fit = (s.shared[name] for name in ("x", "phi", "fit"))
        if fits:
            phi, fit = phis.fit(task, phi, fit, x, tx, fits, buffer)
        share = model_bits(task, of_node(profile, env.cohort.ids)) / (32.0 * task.dim)
        travels = task.dim / (2 * task.dim + 1)  # the second copy and who computes with few bits do not

        known = {"everyone": s.shared["everyone"], "phi": phi}
        got = net.collect(key, env, s.mail, member, x, known=known, crosses=(share, share * travels))
        high, low = got.mean[: task.dim], got.mean[task.dim : -1]
        new = {"x": x + high, "everyone": jnp.where(got.present, x + low, s.shared["everyone"])}
        return State(new | {"phi": phi, "fit": fit}, (), got.mail), got.log

    def read(s):
        return {"x": s.shared["x"], "low": rounded_row(task, s.shared["everyone"], least)}

    return Algorithm(init, round, read)


SYSTEMS = {"prowd": System(prowd, PAPER)}
