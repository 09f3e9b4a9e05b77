"""MAS against its equations in float64, what parts at the split, and FedAvg before it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import one_sample_each
from members import WEIGHT, N, absent, changed, cohorts, idle

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.mas import joint_test, mas
from jaxfl.claims import mas as claim
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.exchange import codecs, rules
from jaxfl.exchange.network import Network
from jaxfl.learn import multitask
from jaxfl.learn.layers import part
from jaxfl.learn.multitask import joint, multi_task
from jaxfl.learn.task import from_functions, linear_regression
from jaxfl.world import cohort
from jaxfl.world.scenario import scenario

D, W, T, LR, STEPS = 3, 2, 3, 0.05, 2
SPLITS = [[(0, 1), (2,)], [(0, 2), (1,)], [(1, 2), (0,)]]


def tasks():
    """Three linear tasks on a linear encoder of two units."""
    encoder = from_functions(
        lambda key: jax.random.normal(key, (D, W)) * 0.5, lambda p, x, y: 0 * x[:, 0], lambda p, x: x @ p
    )
    return multi_task(encoder, [linear_regression(W)] * T, jnp.zeros((1, D)))


def data(seed=0):
    """One sample a node, its inputs, and targets of the three tasks."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, D)).astype(np.float32), rng.normal(size=(N, T)).astype(np.float32)


def world(change):
    x, y = data()
    return scenario(one_sample_each(x, y), cohort=changed(cohort.uniform(N, 4, weight=WEIGHT), change))


def first(multi):
    """A start in which no decoder is zero, as trees of the test: encoder `[D, W]`, decoders `[T, W]`."""
    rng = np.random.default_rng(1)
    encoder, decoders = rng.normal(size=(D, W)), rng.normal(size=(T, W))
    params = {"decoders": {"kernel": jnp.asarray(decoders)}, "encoder": jnp.asarray(encoder)[None]}
    return encoder, decoders, joint(multi).ravel(params).astype(jnp.float32)


def descend(encoders, decoders, group, x, y):
    """The gradient of `sum_i (x a_{g(i)} . b_i - y_i)^2 / 2` in all encoders and decoders."""
    da, db = np.zeros_like(encoders), np.zeros_like(decoders)
    for i in range(T):
        e = x @ encoders[group[i]]
        gap = e @ decoders[i] - y[i]
        da[group[i]] += gap * np.outer(x, decoders[i])
        db[i] += gap * e
    return da, db


def affinity(encoder, decoders, x, y):
    """One look of one client."""
    loss = lambda a, j: (x @ a @ decoders[j] - y[j]) ** 2 / 2
    s = np.zeros((T, T))
    for i in range(T):
        ahead = encoder - LR * (x @ encoder @ decoders[i] - y[i]) * np.outer(x, decoders[i])
        s[i] = [(1 - loss(ahead, j) / loss(encoder, j)) / LR for j in range(T)]
    return s


def best(s):
    """The best split into two, by a loop over lists."""

    def score(split):
        total = 0
        for group in split:
            for j in group:
                others = [i for i in group if i != j]
                alone = [s[i, j] for i in range(T) if i != j] + [s[j, i] for i in range(T) if i != j]
                total += np.mean([s[i, j] for i in others] if others else alone)
        return total

    return max(SPLITS, key=score)


def equations(rounds, merge, looks):
    x, y = (v.astype(float) for v in data())
    encoder, decoders, _ = first(tasks())
    encoders, group, s = np.stack([encoder] * 2), [0] * T, np.zeros((T, T))
    for t, members in enumerate(rounds):
        if t == merge:
            encoders, split = np.stack([encoders[0]] * 2), best(s)
            group = [next(k for k, g in enumerate(sorted(split)) if i in g) for i in range(T)]
        weight, da, db, seen = sum(p for _, p, _ in members), 0.0, 0.0, np.zeros((T, T))
        for i, p, steps in members:
            if steps and t in looks and t < merge:
                seen += p / weight * affinity(encoders[0], decoders, x[i], y[i])
            a, b = encoders.copy(), decoders.copy()
            for _ in range(steps):
                ga, gb = descend(a, b, group, x[i], y[i])
                a, b = a - LR * ga, b - LR * gb
            da, db = da + p / weight * (a - encoders), db + p / weight * (b - decoders)
        encoders, decoders, s = encoders + da, decoders + db, s + seen
        if t < merge:
            encoders = np.stack([encoders[0]] * 2)
    return encoders, decoders, group, s


def test_five_rounds_from_the_equations_in_float64():
    """Unequal weights, partial cohorts, one absent, one who runs no step; the affinities choose, and later stay."""
    multi = tasks()
    f, w = mas(multi, lr=LR, merge=3, first=1, last=9, steps=STEPS, batch=None), world(idle)
    encoders, decoders, group, s = equations(list(cohorts(w, 5)), 3, range(1, 9))
    result = run(f, w, first(multi)[2], 5, every=1)
    state = result.state.shared
    got = joint(multi, 2).unravel(state["x"])
    np.testing.assert_allclose(state["affinity"], s, rtol=2e-4, atol=1e-4)
    np.testing.assert_array_equal(got["group"], group)
    np.testing.assert_allclose(got["encoder"], encoders, atol=1e-5)
    np.testing.assert_allclose(got["decoders"]["kernel"], decoders, atol=1e-5)
    ran = np.array([sum(k for *_, k in members) for members in cohorts(w, 5)])
    looks = np.array([0, *[sum(k > 0 for *_, k in m) for m in list(cohorts(w, 5))[1:3]], 0, 0])
    log, merged = result.history.iloc[1:], np.array([1, 1, 1, 2, 2])
    np.testing.assert_allclose(log["encoder_passes"], merged * ran + looks * (1 + T))
    np.testing.assert_allclose(log["decoder_passes"], T * ran + looks * (T + T * T))
    np.testing.assert_allclose(log["gradients"], merged * ran + looks * T)
    members = np.array([len(m) for m in cohorts(w, 5)])
    sent = np.where(merged == 1, D * W + T * W + T * T, 2 * D * W + T * W)
    np.testing.assert_allclose(log["up_bits"] / 32, members * sent)
    assert set(np.unique(group)) == {0, 1}


def test_before_the_split_it_is_fedavg_bit_for_bit():
    multi, w = tasks(), world(absent)
    kw = {"lr": LR, "steps": STEPS, "batch": None}
    x = first(multi)[2]
    ours = run(mas(multi, merge=9, **kw), w, x, 4, every=4).state.shared["x"]
    theirs = run(fedavg(joint(multi), **kw), w, x, 4, every=4).state.shared["x"]
    np.testing.assert_array_equal(joint(multi).ravel(multitask.shared(joint(multi, 2).unravel(ours))), theirs)


def test_a_codec_and_a_rule_hear_it_in_both_phases_and_what_cannot_be_is_refused():
    multi, w = tasks(), world(absent)
    kw, x = {"merge": 2, "last": 2, "steps": 1, "batch": None}, first(multi)[2]
    net = Network(codec=codecs.quantize(8), rule=rules.median())
    log = run(mas(multi, net, split=[(2,), (0, 1)], **kw), w, x, 4, every=1)
    members = np.array([len(m) for m in cohorts(w, 4)])
    sent = np.repeat([D * W + T * W + T * T, 2 * D * W + T * W], 2)
    np.testing.assert_allclose(log.history["up_bits"].iloc[1:], members * (8 * sent + 32))
    np.testing.assert_array_equal(joint(multi, 2).unravel(log.state.shared["x"])["group"], [1, 1, 0])
    metric = joint_test(multi, *data(2))
    both = [metric.measure(metric.arrays, row)["test_loss"] for row in (x, joint(multi, 3).ravel(
        multitask.parted(joint(multi).unravel(x), 3, jnp.arange(3))))]  # fmt: skip
    np.testing.assert_allclose(*both, rtol=1e-6)
    for bad, words in (
        ({"merge": 0}, "must be below merge, 0"),
        ({"groups": 4}, "groups"),
        ({"split": [(0, 1)]}, "exactly one group"),
    ):
        with pytest.raises(InputError, match=words):
            mas(multi, **bad)
    with pytest.raises(InputError, match="several encoders"):
        mas(multi, Network(personal=part(joint(multi), "encoder")))


def test_the_claims_metric_is_the_loss_of_its_tasks_and_knows_the_right_pairs():
    multi = claim.tasks()
    setting, test, two = claim.settings(multi, 0)[""], claim.drawn(0), joint(multi, 2)
    rng = np.random.default_rng(0)
    bias, kernel = rng.normal(size=(2, claim.WIDTH)), rng.normal(size=(2, claim.INPUTS, claim.WIDTH)) / 6
    b, B = rng.normal(size=4), rng.normal(size=(4, claim.WIDTH))
    for group, right in (([0, 0, 1, 1], 1), ([0, 1, 0, 1], 0), ([0, 0, 0, 0], 0)):
        params = {"decoders": {"bias": b, "kernel": B}, "encoder": {"bias": bias, "kernel": kernel}}
        row = two.ravel(jax.tree.map(jnp.float32, params | {"group": np.array(group)}))
        seen = [np.tanh(test.test_x.astype(float) @ kernel[g] + bias[g]) for g in group]
        gaps = np.stack([seen[i] @ B[i] + b[i] for i in range(4)], 1) - test.test_y
        got = setting.evaluate.measure(setting.evaluate.arrays, row)
        np.testing.assert_allclose(got["test_loss"], (gaps**2 / 2).sum(1).mean(), rtol=1e-5)
        assert got["right"] == right
