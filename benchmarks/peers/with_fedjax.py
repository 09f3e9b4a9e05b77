"""W1 and W2 in FedJAX: its own federated averaging on its jit backend, the client step compiled, on one device."""

from functools import partial

import jax
import numpy as np
from common import arguments, clock, load, report, take, work

jax.tree_map = jax.tree_util.tree_map  # FedJAX 0.0.17 calls it, and newer JAX has it no more
import fedjax  # noqa: E402
import jax.numpy as jnp  # noqa: E402


def start(key: jax.Array, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """Normal weights of variance 1 / inputs, and zeros for the names that begin with b."""
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    normal = lambda k, shape: jax.random.normal(keys[k], shape) * np.prod(shape[:-1]) ** -0.5
    return {k: jnp.zeros(s) if k[0] == "b" else normal(k, s) for k, s in shapes.items()}


def mlp(p: dict, x: jax.Array) -> jax.Array:
    """Logits of 784-64-10."""
    return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def cnn(p: dict, x: jax.Array) -> jax.Array:
    """Logits of the CNN; a step of its own at top level, where XLA's convolution is fast."""
    conv = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    layer = lambda x, k, b: jax.nn.relu(conv(x, k, dimension_numbers=("NHWC", "HWIO", "NHWC")) + b)
    pool = lambda x: x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))
    x = pool(layer(x.reshape(-1, 28, 28, 1), p["k1"], p["b1"]))
    x = pool(layer(x, p["k2"], p["b2"]))
    return x.reshape(len(x), -1) @ p["w"] + p["b"]


NETWORKS = {
    "w1": (mlp, {"w1": (784, 64), "b1": (64,), "w2": (64, 10), "b2": (10,)}),
    "w2": (cnn, {"k1": (3, 3, 1, 16), "b1": (16,), "k2": (3, 3, 16, 32), "b2": (32,), "w": (1568, 10), "b": (10,)}),
}


def main() -> None:
    """Both workloads."""
    args = arguments("w1", "w2")
    data, todo = load(args.data), work(args.workload, args.nodes)
    network, shapes = NETWORKS[args.workload]

    def loss(p: dict, batch: dict, key: jax.Array) -> jax.Array:
        logits = network(p, batch["x"])
        return (jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, batch["y"][:, None], 1)[:, 0]).mean()

    m = todo.samples
    rows = lambda i: {"x": data.x[i * m : (i + 1) * m], "y": data.y[i * m : (i + 1) * m]}
    clients = fedjax.InMemoryFederatedData({i: rows(i) for i in range(args.nodes)})
    sampler = fedjax.client_samplers.UniformGetClientSampler(clients, args.cohort, seed=0)
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(todo.lr),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=todo.batch, num_epochs=None, num_steps=todo.steps, seed=0),
    )
    state = algorithm.init(start(jax.random.key(0), **shapes))

    def step() -> None:
        nonlocal state
        state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)

    with fedjax.for_each_client_backend("jit"):
        mark, marks = clock(args.rounds)
        take(step, args.rounds, mark)
    blocks = zip(np.split(data.test_x, 20), np.split(data.test_y, 20), strict=True)
    right = [(jax.jit(network)(state.params, x).argmax(1) == y).mean() for x, y in blocks]
    report(args, "FedJAX", "fedjax", marks, float(np.mean(right)), jax=jax.__version__)


if __name__ == "__main__":
    main()
