"""Robust rules without history fail to converge; clipping around the last aggregate with momentum at workers does not.

Claim. Median, Krum and geometric median fail without any attacker where data are unlike two-sided noise or classes are
rare; attacks coupled over time (ALIE, IPM) break every rule without memory; centered clipping with momentum at the
workers converges under bit flip, label flip, ALIE and IPM, best or near best. In the paper CIFAR-10 and MNIST, 25
workers, 5 liars, 11 with IPM.

Setting. `|x|^2 / 2` in 50 dimensions with gradient noise N(0, I), 2,000 rounds from x = 1, mean of `|x|^2` over the
last 500, the plan's rate 0.01, momentum 0.99 and radius, half of the noise. Digits, softmax regression, dealt out
evenly, batch 4, 400 rounds, test accuracy over the last 100; without liars the classes have a long tail, the rarest a
twentieth of the most frequent. ALIE with z = 1.5, IPM with 0.1, bit flip as -1 times (10 times on the sphere). Krum and
trimmed mean know how many lie. The radius of clipping is `radius sqrt((1 - beta) / (1 + beta))`, as the noise.

Why. The setting. All of it holds on the sphere, and on digits all but one attack: ALIE hides in the noise between
workers, and there the noise of 5 liars moves a convex model of 650 numbers little, so that no rule fails, the mean is
as good at the paper's point, and momentum has nothing to take away. With tuned rates it is ahead by less than a point.
Mimic and ClippedGossip are of later papers and left out; that momentum helps against mimic could not be seen before.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.algorithms.server.robust_sgd import robust_sgd
from jaxfl.claims.evidence import Evidence, check, tail
from jaxfl.claims.study import Arm, Inequality, Score, Setting, Study
from jaxfl.core import Shards
from jaxfl.data import partition, sets
from jaxfl.data.corrupt import flipped_labels
from jaxfl.data.cut import in_order
from jaxfl.data.sets import generator
from jaxfl.exchange import attacks, rules
from jaxfl.exchange.network import Network
from jaxfl.learn.task import Task, from_functions, logistic_regression
from jaxfl.measure.metrics import distance_to, shared_test
from jaxfl.world.scenario import scenario

N, D, FEW, MANY, OURS = 25, 50, 5, 11, "clipping, momentum"
RULES = ("mean", "median", "trimmed mean", "Krum", "geometric median", "clipping")
ATTACKS = ("none", "bit flip", "label flip", "ALIE", "IPM")
BROKEN = {  # rules without history that the paper says fail, by attack
    "none": ("median", "Krum"),
    "bit flip": ("mean",),
    "label flip": ("mean",),
    "ALIE": RULES,
    "IPM": ("median", "trimmed mean", "Krum", "geometric median"),
}
AS_PLANNED = "the plan asks it at one rate"


def server(task: Task, *, rule, attack, f, flip, lr, beta, radius, batch: int):
    """Any rule under any attack, both traced numbers: one program for all."""
    tau = radius * jnp.sqrt((1 - beta) / (1 + beta))
    every = (
        rules.mean,
        rules.median(),
        rules.trimmed_mean(f),
        rules.krum(f),
        rules.geometric_median(8),
        rules.centered_clipping(tau),
    )
    honest = attacks.honesty()
    lies = (honest, attacks.sign_flip(flip), honest, attacks.alie(1.5), attacks.ipm(0.1))
    net = Network(rules.one_of(rule, *every), attack=attacks.one_of(attack, *lies))
    return robust_sgd(task, net, lr=lr, beta=beta, batch=batch)


def sphere(seed: int, samples: int = 512) -> Shards:
    """Standard normal targets of every worker, each with its negative, so that the optimum is 0."""
    half = generator(seed).normal(size=(N, samples // 2, D))
    y = np.concatenate([half, -half], 1).reshape(-1, D).astype(np.float32)
    return in_order(y, N)


def long_tail(data: sets.Dataset, least: float, seed: int) -> sets.Dataset:
    """The train samples of class `k` thinned to a share `least^(k / 9)`."""
    keep = generator(seed).random(len(data.y)) < least ** (data.y / 9)
    return data._replace(x=data.x[keep], y=data.y[keep])


def liars(attack: str) -> int:
    """How many lie."""
    return 0 if attack == "none" else MANY if attack == "IPM" else FEW


def on_sphere(attack: str, seed: int) -> dict[str, Setting]:
    """Noise of another draw."""
    world = scenario(sphere(seed), byz=liars(attack))
    return {f"sphere, {attack}": Setting(world, distance_to(jnp.zeros(D)))}


def on_digits(task: Task, attack: str, seed: int, least: float = 1 / 20) -> dict[str, Setting]:
    """Digits dealt out anew; without an attack the rarest class has a share `least` of its samples."""
    found = sets.digits()
    data = partition.iid(long_tail(found, least, seed) if attack == "none" else found, N, seed)
    if attack == "label flip":
        data = flipped_labels(data, np.arange(FEW), 10)
    world = scenario(data, byz=0 if attack == "label flip" else liars(attack))
    return {
        f"digits, {attack}": Setting(world, shared_test(task, jnp.asarray(found.test_x), jnp.asarray(found.test_y)))
    }


def study(attack: str, make, settings, flip: float, own: dict, point: dict, late: dict, **rest) -> Study:
    """All rules without history under one attack, clipping with momentum, and `late`: (rule, momentum) by name."""
    kind = {"attack": ATTACKS.index(attack), "f": max(liars(attack), 1), "flip": flip}
    plain = {rule: kind | {"rule": i, "beta": 0.0} for i, rule in enumerate(RULES)}
    late = {name: kind | {"rule": RULES.index(rule), "beta": beta} for name, (rule, beta) in late.items()}
    grid, at = {"radius": own["radius"]}, {"radius": point["radius"]}
    arms = {name: Arm(make, hyper | ({} if hyper["rule"] == 5 else at)) for name, hyper in (plain | late).items()}
    arms |= {name: arm._replace(grid=grid, paper=at) for name, arm in arms.items() if arm.hyper["rule"] == 5}
    arms[OURS] = Arm(make, kind | {"rule": RULES.index("clipping")}, grid=own, paper=point)
    ends = {
        "lr low": "towards 0 nothing moves, which is best for a rule that fails",
        "lr high": "a rule that fails ends as far away at any rate; no rule that learns is best there",
        "radius high": "a large one is the mean, an arm of its own",
        "beta low": "0 is an arm of its own",
        "beta high": "towards 1 momentum is the mean over the whole run",
    }
    return Study(settings=partial(settings, attack), arms=arms, ablations=RULES, ends=ends, **rest)


def studies() -> list[Study]:
    """One study an attack, on the sphere and on digits."""
    ball = from_functions(lambda key: jnp.ones(D), lambda p, x, y: 0.5 * ((p - y) ** 2).sum(1))
    net = logistic_regression(64, 10)
    on_ball, on_net = partial(server, ball, batch=1), partial(server, net, batch=4)
    late = {"median, momentum": ("median", 0.99), "Krum, momentum": ("Krum", 0.99)}
    beside = {"bit flip": {}, "ALIE": {"clipping, momentum 0.9": ("clipping", 0.9)}, "IPM": late}
    plan = partial(Inequality, "error", op="/", headline=False)
    more = {
        "bit flip": (),
        "ALIE": (
            plan("clipping, momentum 0.9", theirs="clipping", bound=2 / 19, untuned=AS_PLANNED),
            plan("clipping", theirs="clipping, momentum 0.9", bound=38, untuned=AS_PLANNED),
            plan("Krum", theirs="clipping", bound=0.2, untuned=AS_PLANNED),
        ),
        "IPM": tuple(plan(OURS, theirs=name, bound=0.1) for name in late),
    }
    bound = {("ALIE", "clipping"): 1 / 20, ("bit flip", "mean"): 1e-6 / 0.025}
    found = []
    for attack in more:
        beats = (Inequality("error", OURS, "/", rule, bound.get((attack, rule))) for rule in BROKEN[attack])
        found.append(
            study(
                attack,
                on_ball,
                on_sphere,
                10.0,
                {"beta": (0.9, 0.99), "radius": (0.5 * D**0.5,)},
                {"beta": 0.99, "radius": 0.5 * D**0.5},
                beside[attack],
                model=ball.init,
                rounds=2000,
                every=25,
                grid={"lr": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)},
                paper={"lr": 0.01},
                scores={"error": Score(lambda h: tail(h, "error", 500))},
                says=(*beats, *more[attack]),
                picture={"y": "error", "log": True},
            )
        )
    for attack in ATTACKS:
        beats = (Inequality("accuracy", OURS, "-", rule) for rule in BROKEN[attack])
        found.append(
            study(
                attack,
                on_net,
                partial(on_digits, net),
                1.0,
                {"beta": (0.9, 0.97), "radius": (0.03, 0.1, 0.3, 1.0)},
                {"beta": 0.9, "radius": 1.0},
                {},
                stand_in=partial(on_digits, net, attack, least=1.0),  # as many samples as under attacks
                model=net.init,
                rounds=400,
                every=10,
                grid={"lr": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)},
                paper={"lr": 0.1},
                scores={"accuracy": Score(lambda h: tail(h, "accuracy", 100), "high")},
                says=tuple(beats),
            )
        )
    return found


def extra(seeds: int, small: bool) -> Evidence:
    """25 numbers of 1 or -1, nobody lies: the mean squared error of each rule as an estimate of their mean, 0."""
    import pandas as pd

    draws, one = 50 if small else 4000, jnp.zeros(1)
    coins = jax.random.rademacher(jax.random.key(0), (draws, N, 1), jnp.float32)
    made = {
        "mean": rules.mean,
        "median": rules.median(),
        "Krum": rules.krum(2),
        "geometric median": rules.geometric_median(100),
        "clipping": rules.centered_clipping(2.0),
    }

    @jax.jit
    def errors(coins):
        of = lambda rule: (jax.vmap(lambda x: rule(one, x, jnp.full(N, 1 / N)))(coins) ** 2).mean()
        return {name: of(rule) for name, rule in made.items()}

    found = errors(coins)
    error = {name: float(found[name]) for name in made}
    rows = pd.DataFrame({"setting": "coins", "error": error}).rename_axis("system").set_index("setting", append=True)
    checks = [check("coins: 25 times the error of clipping", N * error["clipping"], "<=", 1.15)]
    failing = ("median", "Krum", "geometric median")
    return Evidence(rows, checks + [check(f"coins: error of {rule}", error[rule], ">=", 0.95) for rule in failing])
