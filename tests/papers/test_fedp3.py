"""FedP3 against its round in float64; all layers and no pruning are FedAvg; what nobody has never changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pieces import ENDS, FIRST, KW, LAYER, SHAPES, TASK, between, by_hand, key_of, random_share, world

from jaxfl.algorithms.server.fedavg import fedavg
from jaxfl.algorithms.server.fedp3 import fedp3, layered
from jaxfl.core import stream
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.learn.task import classification
from jaxfl.models.networks import MLP

KEEP = 0.5


def end(make, **more):
    return run(make(TASK, **KW, **more), world(), FIRST, 3, every=1)


def pruned(x):
    """The larger half of each matrix, and the offsets."""
    parts = [np.asarray(a) for a in np.split(x, ENDS[:-1])]
    keep = lambda a: np.abs(a) >= np.sort(np.abs(a))[-int(np.ceil(KEEP * len(a)))]
    pairs = zip(parts, SHAPES, strict=True)
    return np.concatenate([keep(a) if len(s) > 1 else np.ones(len(a), bool) for a, s in pairs])


def left(local, t, i):
    """Local pruning, with the share that is drawn."""
    if local == "fixed":
        return np.ones(TASK.dim, bool)
    share = float(jax.random.uniform(stream(key_of(t, i), "share"), minval=0.3))
    return between(share) if local == "ordered" else random_share(stream(key_of(t, i), "left"), share)


@pytest.mark.parametrize("local", ["fixed", "uniform", "ordered"])
def test_three_rounds_by_hand(local):
    """Even clients have the first layer, odd ones the second; also what each keeps, as it trained it last."""
    own = lambda t, i: ((i % 2 == LAYER) | (LAYER == 2)) & left(local, t, i)
    held = lambda t, i, x: own(t, i) | (pruned(x) & left(local, t, i))
    least = {} if local == "fixed" else {"least": 0.3}
    got = end(fedp3, layers=1, keep=KEEP, local=local, keep_models=True, **least)
    x, models = by_hand(held, sent=lambda t, i, x: own(t, i))
    np.testing.assert_allclose(got.state.shared["x"], x, atol=1e-5)
    want = np.stack([models.get(i, FIRST) for i in range(len(got.state.nodes))])
    np.testing.assert_allclose(got.state.nodes, want, atol=1e-5)
    assert 2 <= len(models) < len(want)


def test_all_layers_and_no_pruning_are_fedavg_to_the_last_bit():
    one, other = end(fedp3, layers=2, keep=1.0), end(fedavg)
    np.testing.assert_array_equal(one.state.shared["x"], other.state.shared["x"])
    both = ["loss", "gradients", "up_bits", "down_bits"]
    np.testing.assert_array_equal(one.history[both], other.history[both])


def test_a_layer_that_is_nobodys_never_changes_and_is_never_sent():
    got = end(fedp3, layers=0, keep=KEEP)
    x, head = got.state.shared["x"], LAYER == 2
    np.testing.assert_array_equal(x[~head], FIRST[~head])
    assert (x[head] != FIRST[head]).all()
    assert got.history["up_bits"].sum() == 3 * 3 * 32 * head.sum()
    assert got.history["down_bits"].sum() == 3 * 3 * 32 * (head | pruned(FIRST)).sum()


def test_layers_in_turns_and_drawn():
    """Four layers and a head: whose they are, by layer and client."""
    task = classification(functools.partial(MLP, (5, 4, 4, 4, 4, 3)), np.zeros((1, 5), np.float32))
    x, ends = task.init(jax.random.key(0)), np.cumsum([4 + 20, 20, 20, 20, 15])

    def sent(count, t=0, drawn=False):
        policy = layered(task, count, drawn, keep=0.5)
        keys = jax.random.split(jax.random.key(t), 8)
        rows = jax.jit(jax.vmap(lambda key, i: policy(key, i, t, x).sent))(keys, jnp.arange(8))
        parts = np.split(np.asarray(rows), ends[:-1], 1)
        assert all((p == p[:, :1]).all() for p in parts), "whole layers"
        return np.stack([p[:, 0] for p in parts], 1).astype(int)

    one = np.eye(4, dtype=int)[np.arange(8) % 4]
    np.testing.assert_array_equal(sent(1), np.c_[one, np.ones(8)])
    np.testing.assert_array_equal(sent(2)[:, :4], one + np.roll(one, 1, 1))
    assert (sent(4) == 1).all()
    other = [sent(2, t, drawn=True) for t in range(3)]
    assert all((a.sum(1) == 3).all() and (a[:, 4] == 1).all() for a in other)
    assert not np.array_equal(other[0], other[1])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"local": "random"}, "local is 'random', but must be one of fixed, uniform, ordered"),
        ({"least": 0.5}, "least is set"),
        ({"keep": 0.0}, "keep is 0.0"),
        ({"layers": 1.5}, "layers is 1.5"),
    ],
)
def test_what_makes_no_sense_is_refused(more, says):
    with pytest.raises(InputError, match=says):
        fedp3(TASK, **more)
