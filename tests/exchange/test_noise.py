"""Noisy links: how much noise each message bears, who shares it, and who hears none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import ring

from jaxfl.core import Cohort, Env, Graph
from jaxfl.errors import InputError
from jaxfl.exchange import attacks, codecs, rules
from jaxfl.exchange.network import Network
from jaxfl.exchange.noise import Noise

N, M = 4, 20000
UP, DOWN = np.array([0.5, 1.0, 2.0, 0.0], np.float32), np.array([0.1, 0.0, 0.3, 0.2], np.float32)
NET = Network(noise=Noise(jnp.asarray(UP), jnp.asarray(DOWN)))


def env(graph=None, byz=()):
    ids = jnp.arange(N)
    liars = jnp.isin(ids, jnp.asarray(byz, int))
    cohort = Cohort(ids, jnp.array([1.0, 2, 3, 4]))
    return Env(jnp.int32(0), jnp.float32(0), (), graph, cohort, liars)


def echo(key, data, i, x, *, extra, secret, mine):
    """A member that says what it was handed."""
    heard = {"heard": x, "extra": extra, "secret": secret, "mine": mine}
    return x, {"steps": jnp.float32(1), **heard}


def collected(net, world, m=M):
    x = jnp.ones(m)
    handed = {"extra": jnp.zeros(m)}, {"known": {"secret": jnp.zeros(m)}, "mine": jnp.zeros((N, m))}
    return net.collect(jax.random.key(0), world, net.init(world, x), echo, x, handed[0], **handed[1])


def spread(a):
    return np.asarray(a, np.float64).std(-1)


def test_a_member_hears_all_that_travels_with_noise_of_its_own_and_its_message_bears_its_own():
    got = collected(NET, env())
    for name, wanted in (("heard", DOWN), ("extra", DOWN), ("mine", DOWN), ("secret", 0 * DOWN)):
        np.testing.assert_allclose(spread(got.each[name]), wanted, rtol=0.03, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(np.corrcoef(got.each["heard"][0], got.each["extra"][0])[0, 1], 0, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(got.each["heard"][0], got.each["heard"][2])[0, 1], 0, atol=0.03)
    weight = np.array([1, 2, 3, 4]) / 10
    np.testing.assert_allclose(spread(got.mean), np.sqrt((weight**2 * (UP**2 + DOWN**2)).sum()), rtol=0.03)
    up = got.mean - weight @ np.asarray(got.each["heard"])  # the noise of the messages alone
    np.testing.assert_allclose(spread(up), np.sqrt((weight**2 * UP**2).sum()), rtol=0.03)
    assert float(got.log["up_bits"]) == N * 32 * M


def test_no_noise_is_no_noise_to_the_last_bit_and_liars_and_codecs_go_first():
    plain, none = (collected(net, env(), 5).mean for net in (Network(), Network(noise=Noise())))
    np.testing.assert_array_equal(plain, none)
    lie = attacks.sign_flip()
    only = collected(NET._replace(attack=lie, rule=rules.trimmed_mean(1)), env(byz=[1]), 5)
    assert np.isfinite(only.mean).all()
    coded = collected(Network(codec=codecs.sign(), noise=Noise(up=0.1)), env(), M)
    np.testing.assert_allclose(spread(coded.mean), 0.1 * np.sqrt(0.3), rtol=0.03)
    assert float(coded.log["up_bits"]) < N * 1.1 * M


def test_a_neighbours_message_bears_its_noise_up_for_all_who_hear_it_and_noise_down_of_each():
    world, messages = env(ring(N)), jnp.zeros((N, M))
    weight = 1 / 3

    def mixed(net):
        out, _, log = net.gossip(jax.random.key(1), world, net.init(world, messages[0]), messages)
        return np.asarray(out), log

    out, log = mixed(NET)
    both = [(i, [(i - 1) % N, (i + 1) % N]) for i in range(N)]
    wanted = [weight * np.sqrt(sum(UP[j] ** 2 + DOWN[i] ** 2 for j in near)) for i, near in both]
    np.testing.assert_allclose(spread(out), wanted, rtol=0.03)
    only_up, _ = mixed(Network(noise=Noise(up=jnp.asarray(UP))))
    # 0 and 2 hear the same neighbours, 1 and 3, who sent one message each
    np.testing.assert_allclose(only_up[0], only_up[2], atol=1e-6)
    np.testing.assert_array_equal(mixed(Network())[0], 0)
    assert float(log["up_bits"]) == 2 * N * 32 * M
    only_down, _ = mixed(Network(noise=Noise(down=0.5)))
    np.testing.assert_allclose(np.corrcoef(only_down[0], only_down[2])[0, 1], 0, atol=0.03)


def test_what_cannot_be_is_refused():
    world = env(Graph(jnp.zeros((N, 1), jnp.int32), jnp.zeros((N, 1))))
    for net, words in (
        (Network(noise=0.1), "must be Noise"),  # pyright: ignore
        (Network(noise=Noise(up=-1.0)), "noise.up"),
        (Network(noise=Noise(up=1.0), collective=codecs.Collective(lambda m: ((), ()), lambda *a: a)), "net.noise"),
    ):
        with pytest.raises(InputError, match=words):
            net.init(world, jnp.zeros(3))
    with pytest.raises(InputError, match="by itself"):
        NET.combine(jax.random.key(0), world, NET.init(world, jnp.zeros(3)), jnp.zeros((N, 3)))
