"""Consensus ADMM over noisy links, with the dual variable eliminated: a client needs one vector a round.

For min sum_k J_k(w) over K clients, J_k = K p_k F_k, consensus ADMM with penalty rho is (`dual_admm`)

    z_k <- z_k + rho (w_k - x),   w_k <- argmin J_k(w) + <z_k, w> + rho/2 |w - x|^2,   x <- mean_k (w_k + z_k / rho).

Two consecutive rounds subtracted leave (`admm`)

    w_k <- argmin J_k(w) - <grad J_k(w_k), w> + rho/2 |w - s|^2,   s = 2 x - x',   x <- mean_S w_k,

x' the x of the round before: no dual is sent, and who forms s decides how much noise it bears. With `copies` 2 a client
forms it of x and x', each over its noisy link, a variance of 5 sigma^2; with 1 the server forms it, and it is sigma^2.

Whom a round misses keeps w_k, or with `idle` goes on with the s it last heard. All that a round changes is
sum_k grad J_k(w_k) = -rho u, of which the server has its own account: u <- u + m (x_new - s) with m members, and
s = x + u / m. Where m is constant u is m (x - x'), the s of the paper; where it is not, this s alone leads to the
optimum. The account starts at -K grad F(x) / rho, which clients tell once, exactly and uncounted. (From local optima,
of which grad J_k is 0, the account would start at 0.) Nothing ever corrects it for noise: the error of x grows as a
random walk with c rho^2 K sigma^2 tr((sum_k G_k)^-2) a round, G_k the curvature of J_k, c = 2 of one copy up and down,
and 6 of two copies.

The paper treats least squares; what it does in detail where clients are missed is not known to us (we had its abstract,
its first page and a review). `exact` solves for quadratic losses (`learn.quadratic`); else the argmin is approached by
local steps from w_k.
"""

import jax
import jax.numpy as jnp
import optax

from jaxfl.core import Algorithm, Array, State, n_nodes, shares, tile, without
from jaxfl.errors import InputError, require
from jaxfl.exchange.network import Network
from jaxfl.learn.hooks import stateless
from jaxfl.learn.local import local_gradient, local_sgd
from jaxfl.learn.quadratic import quadratics_of, resolvent
from jaxfl.learn.task import Task
from jaxfl.mapping.at import at
from jaxfl.paper import Paper, System

PAPER = Paper(
    "Noise-Robust and Resource-Efficient ADMM-based Federated Learning",
    "Lari, Arablouei, Gogineni, Werner",
    "2024",
    "https://arxiv.org/abs/2409.13451",
    number="069",
)


def _proximal(task: Task, lr, rho, exact: bool, steps, epochs, batch):
    """`(key, data, i, w, center, z, share, solve, **more) -> (argmin J_i + <z, w> + rho/2 |w - center|^2, log)`.

    `z` None stands for -grad J_i(w). `share` `[n]` has the K p_k, `solve` what `_solvers` made.
    """
    require("lr", lr, above=0)
    require("rho", rho, above=0)
    slope = local_gradient(task)

    def pull(g, p, *, center, z, share, **_):
        return jax.tree.map(lambda g, p, c, z: share * g + z + rho * (p - c), g, p, center, z)

    def closed(key, data, i, w, center, z, share, solve, *, t, steps=None):
        inverse, b = jax.tree.map(lambda a: a[i], solve)
        dot = lambda v: jnp.matmul(inverse, v, precision="highest")
        new = w + rho * dot(center - w) if z is None else dot(b - z + rho * center)
        return new, {"steps": jnp.float32(1), "gradients": jnp.float32(1)}

    def local(key, data, i, w, center, z, share, solve, *, t, steps=None):
        spent = 0.0
        if z is None:
            g, log = slope(key, data, i, w)
            z, spent = -share[i] * g, log["gradients"]
        hook = stateless(lambda *a, **extra: pull(*a, share=share[i], **extra))
        train = local_sgd(task, optax.chain(hook, optax.sgd(lr)), steps=most, epochs=epochs, batch=batch)
        new, log = train(key, data, i, w, t=t, steps=steps, center=center, z=z)
        return new, log | {"gradients": log["gradients"] + spent}

    most = None if epochs else steps
    return closed if exact else local


def _solvers(task: Task, env, share: Array, rho, exact: bool):
    """What the closed form needs of each node, leaves `[n, ...]`."""
    if not exact:
        return ()
    G, b = quadratics_of(task, env.data, n_nodes(env))
    return resolvent(share[:, None, None] * G, rho), share[:, None] * b


def _check(net: Network) -> None:
    if net.personal is not None:
        raise InputError("net.personal is set, but what the server accounts for here is whole models.")


def _members(env):
    """The cohort of those who work, all alike, and how many they are."""
    c = env.cohort
    here = (c.weight > 0) if c.steps is None else (c.weight > 0) & (c.steps > 0)
    return env._replace(cohort=without(c._replace(weight=1.0 * here), "total")), here


def admm(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    rho: float | Array = 1.0,
    copies: int = 1,
    idle: bool = False,
    exact: bool = False,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """ADMM without a dual variable; where links are noisy (`Network.noise`) the paper's is that of one copy.

    `copies` is what a client hears, 1 combined vector or 2 models; `idle`: those whom a round misses go on with what
    they last heard; `exact`: proximal points in closed form, for quadratic losses, in place of local steps of rate
    `lr`. `epochs` replaces `steps` where given; `batch` None is the whole shard.
    """
    _check(net)
    require("copies", copies, least=1, most=2, whole=True)
    solve = _proximal(task, lr, rho, exact, steps, epochs, batch)

    def member(key, data, i, x, *, t, w, share, solvers, last=None, heard=None, steps=None):
        center = x if last is None else 2 * x - last
        new, log = solve(key, data, i, w, center, None, share, solvers, t=t, steps=steps)
        return new, log | {"w": new} | ({} if heard is None else {"heard": center})

    def alone(key, data, i, x, *, t, heard, share, solvers, steps=None):
        return solve(key, data, i, x, heard, None, share, solvers, t=t, steps=steps)

    def init(key, env, x):
        n, share = n_nodes(env), n_nodes(env) * shares(env)
        first = env._replace(cohort=env.cohort._replace(steps=None), alive=None)
        g = at(jnp.arange(n), local_gradient(task))(key, first, x).rows
        nodes = {"w": tile(x, n), "solvers": _solvers(task, env, share, rho, exact)}
        shared = {"x": x, "u": -(share @ g) / rho}
        return State(shared, nodes | ({"heard": tile(x, n)} if idle else {}), net.init(env, x))

    def round(key, env, s):
        x, u, n = s.shared["x"], s.shared["u"], n_nodes(env)
        (alike, here), known = _members(env), {"share": n * shares(env), "solvers": s.nodes["solvers"]}
        m = jnp.maximum(here.sum(), 1)
        center = x + u / m
        handed, more = (center, {}) if copies == 1 else (x, {"last": x - u / m})
        memory = {name: s.nodes[name] for name in ("w", "heard") if name in s.nodes}
        got = net.collect(key, alike, s.mail, member, handed, more, known=known, memory=memory, reference=x)
        nodes, log = s.nodes | got.memory, got.log
        if idle:
            acts = jnp.zeros(n, bool).at[env.cohort.ids].set(here)
            rest = at(jnp.arange(n), alone)(key, env, s.nodes["w"], known, heard=nodes["heard"])
            nodes |= {"w": jnp.where(acts[:, None], nodes["w"], rest.rows)}
            log |= {"gradients": jnp.where(acts, 0, rest.each["gradients"]).sum()}
        new = {"x": got.mean, "u": u + m * (got.mean - center)}
        return State(jax.tree.map(lambda a, b: jnp.where(got.present, a, b), new, s.shared), nodes, got.mail), log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


def dual_admm(
    task: Task,
    net: Network = Network(),
    *,
    lr: float | Array = 0.1,
    rho: float | Array = 1.0,
    exact: bool = False,
    steps: int = 10,
    epochs: int | None = None,
    batch: int | None = 16,
) -> Algorithm:
    """Consensus ADMM with a dual variable at each client, whose sum with the model it sends; options as in `admm`.

    For full cohorts: the mean over a part of the clients is not what its fixed point needs.
    """
    _check(net)
    solve = _proximal(task, lr, rho, exact, steps, epochs, batch)

    def member(key, data, i, x, *, t, w, z, share, solvers, steps=None):
        z = z + rho * (w - x)
        new, log = solve(key, data, i, w, x, z, share, solvers, t=t, steps=steps)
        return new + z / rho, log | {"w": new, "z": z}

    def init(key, env, x):
        n, share = n_nodes(env), n_nodes(env) * shares(env)
        nodes = {"w": tile(x, n), "z": tile(0 * x, n), "solvers": _solvers(task, env, share, rho, exact)}
        return State({"x": x}, nodes, net.init(env, x))

    def round(key, env, s):
        x, (alike, _) = s.shared["x"], _members(env)
        known = {"share": n_nodes(env) * shares(env), "solvers": s.nodes["solvers"]}
        memory = {name: s.nodes[name] for name in ("w", "z")}
        got = net.collect(key, alike, s.mail, member, x, known=known, memory=memory, reference=x)
        return State({"x": jnp.where(got.present, got.mean, x)}, s.nodes | got.memory, got.mail), got.log

    return Algorithm(init, round, read=lambda s: s.shared["x"])


SYSTEMS = {"admm": System(admm, PAPER)}  # `dual_admm` is for full cohorts: a line to compare with
