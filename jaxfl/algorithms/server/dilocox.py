"""DiLoCoX: DiLoCo with the all-reduce hidden behind the next local phase, in low rank and few bits.

On top of DiLoCo (`algorithms.diloco`), with workers `i`,

    one-step delay     x_{t+1} <- OuterOpt(x_t, Delta_{t-1}), while Delta_t is on its way
    compression        Delta_t = low rank r, integers of `bits` bits, of delta_i + e_i   (`exchange.low_rank`)
    adaptive pace      r_{t+1} = mean of the last `window` effective ranks of Delta, at most r_t,
                       H_{t+1} = max(H_min, round(H_1 r_{t+1} / r_1)).

A round then lasts max(H step, transfer) seconds. A node stands for a cluster, whose pipeline is not simulated.
The effective rank is the least that keeps a share of the energy of a weight matrix, averaged over the matrices.

Deviations: the adaptive formulas are a reconstruction, and what a node remembers is what its own share of
Delta lost (see `exchange.low_rank`). The default outer step, 0.3 with momentum 0.6, is gentler than DiLoCo's, with
which a delay of one diverges (claim); rank, H and bits are of the scale of a desk.
"""

import jax.numpy as jnp
import optax

from jaxfl.algorithms.server.diloco import STEADY, Pace, all_reduce, diloco
from jaxfl.core import Algorithm, Array
from jaxfl.errors import require
from jaxfl.exchange.codecs import FLOAT, error_feedback, quantize, top_k
from jaxfl.exchange.low_rank import effective_rank, low_rank
from jaxfl.exchange.network import Network
from jaxfl.learn.layers import layers
from jaxfl.learn.task import Task
from jaxfl.paper import Paper, System

PAPER = Paper(
    "DiLoCoX: A Low-Communication Large-Scale Training Framework for Decentralized Cluster",
    "Qi, Zhu, Li, Wu, Wu, He, Gao, Zeng, Heinrich",
    "2025",
    "https://arxiv.org/abs/2506.21263",
    number="068",
)
COCKTAIL = Paper(
    "CocktailSGD: Fine-tuning Foundation Models over 500Mbps Networks",
    "Wang, Lu, Yuan, Chen, Liang, De Sa, Re, Zhang",
    "ICML 2023",
    "https://proceedings.mlr.press/v202/wang23t.html",
)


def gentle() -> optax.GradientTransformation:
    """The outer optimizer of delayed systems: Nesterov momentum 0.6 at rate 0.3."""
    return optax.sgd(0.3, momentum=0.6, nesterov=True)


def adaptive(task: Task, rank: int, steps: int, window: int, share: float, least_steps: int, **compressor) -> Pace:
    """AdaGradCmp: rank and local steps follow the effective rank of the mean pseudo-gradient, downwards.

    Before `window` rounds have passed, the missing effective ranks count as `rank`. Logs `rank` and `local_steps`.
    """
    shapes = [layer.shape for layer in layers(task)]

    def plan(s, net):
        now = s[1]
        most = jnp.maximum(least_steps, jnp.round(steps * now / rank)).astype(jnp.int32)
        via = net._replace(collective=low_rank(shapes, now.astype(jnp.int32), most=rank, **compressor))
        return most, via, {"rank": now, "local_steps": most}

    def see(s, delta):
        ranks = jnp.concatenate([s[0][1:], effective_rank(shapes, delta, share)[None]])
        return ranks, jnp.clip(jnp.round(ranks.mean()), 1, s[1])

    return Pace(lambda: (jnp.full(window, jnp.float32(rank)), jnp.float32(rank)), plan, see)


def dilocox(
    task: Task,
    net: Network = Network(),
    *,
    rank: int = 8,
    bits: int | None = 4,
    window: int | None = 5,
    share: float = 0.9,
    least_steps: int = 1,
    steps: int = 20,
    delay: int = 1,
    server: optax.GradientTransformation | None = None,
    feedback: bool = True,
    scale_bits: float = FLOAT,
    **kw,
) -> Algorithm:
    """DiLoCoX; other `kw` as in `diloco`.

    Args:
        task: what is learned; its layers are the matrices.
        net: what else happens to messages; it must leave rule, codec and collective open.
        rank: the first rank, r_1.
        bits: of an integer (None: factors are sent as floats).
        window: rounds whose effective ranks are averaged; None keeps rank and steps as they are.
        share: of a matrix's energy that its effective rank keeps.
        least_steps: H_min.
        steps: the first number of local steps, H_1.
        delay: rounds between measuring a pseudo-gradient and applying it.
        server: the outer optimizer (None: `gentle()`).
        feedback: nodes remember what compression lost.
        scale_bits: what the scale of an array or factor is counted as.

    Raises:
        InputError: a number out of range.
    """
    require("window", window, least=1, whole=True, none=True)
    require("rank", rank, least=1, whole=True)
    require("least_steps", least_steps, least=1, most=steps, whole=True)
    net.fill("dilocox", collective=None)
    compressor = {"bits": bits, "feedback": feedback, "scale_bits": scale_bits}
    pace = STEADY
    if window is None:
        shapes = [layer.shape for layer in layers(task)]
        net = net._replace(collective=low_rank(shapes, rank, **compressor))
    else:
        pace = adaptive(task, rank, steps, window, share, least_steps, **compressor)
    return diloco(task, net, server=server or gentle(), steps=steps, delay=delay, pace=pace, **kw)


def cocktail_sgd(
    task: Task,
    net: Network = Network(),
    *,
    keep: float = 0.1,
    bits: int | None = 4,
    lr: float | Array = 1e-3,
    optimizer: optax.GradientTransformation | None = None,
    delay: int = 1,
    batch: int | None = 16,
) -> Algorithm:
    """In the manner of CocktailSGD: top-k and quantised gradients of every step, error feedback, delayed by one.

    CocktailSGD: Fine-tuning Foundation Models over 500Mbps Networks; Wang et al.; ICML 2023. There a random sample
    comes before top-k, which saves sorting, not bits; it is left out.

    Args:
        task: what is learned.
        net: what else happens to messages; it must leave the codec open.
        keep: share of the gradient's entries that are sent.
        bits: of an entry (None: 32).
        lr: rate of AdamW, where `optimizer` is None.
        optimizer: takes the mean of what arrived.
        delay: steps between measuring a gradient and applying it.
        batch: samples a step.
    """
    require("keep", keep, above=0, most=1)
    sparse = top_k(float(keep)) if bits is None else top_k(float(keep), quantize(bits))
    via = net.fill("cocktail_sgd", codec=error_feedback(sparse))
    return all_reduce(task, via, lr=lr, optimizer=optimizer, batch=batch, delay=delay)


SYSTEMS = {
    "cocktail_sgd": System(cocktail_sgd, COCKTAIL),
    "dilocox": System(dilocox, PAPER),
}
