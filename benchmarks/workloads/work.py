"""What a workload is made of, and what its arithmetic and its memory traffic come to by formula."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Array, Shards
from jaxfl.data.sets import Dataset, fashion_mnist, from_arrays
from jaxfl.engine.run import Carry, run
from jaxfl.engine.sharding import node_mesh, put
from jaxfl.errors import InputError
from jaxfl.learn.task import Task, classification
from jaxfl.models.networks import MLP


class Matmul(NamedTuple):
    """`count` products `[m, k] @ [k, n]` a round, every one with matrices of its own."""

    m: int
    k: int
    n: int
    count: int


class Stream(NamedTuple):
    """`bytes` read and written a round, in arrays of `size` bytes in all."""

    bytes: float
    size: float


class Cost(NamedTuple):
    """What no program of a round can do without."""

    matmuls: tuple[Matmul, ...]
    streams: tuple[Stream, ...]

    @property
    def flops(self) -> float:
        """Products and sums of a round."""
        return float(sum(2 * a.m * a.k * a.n * a.count for a in self.matmuls))

    @property
    def bytes(self) -> float:
        """Bytes read and written in a round."""
        return float(sum(s.bytes for s in self.streams))


class Program(NamedTuple):
    """What jaxfl runs. All but W4 have an algorithm, a world, a task and a data set."""

    algorithm: Any
    world: Any  # Scenario
    task: Any  # Task
    data: Any  # Dataset


class Side(NamedTuple):
    """One side of a race: `step()` runs a block of rounds, waits, and returns what `models` reads models from."""

    step: Callable[[], Any]
    models: Any = None  # (state) -> models with a leading axis; None: no accuracy
    predict: Any = None  # (one model, x [b, ...]) -> logits [b, classes]


def afresh(program: Program, rounds: int) -> Any:
    """The state after `rounds` rounds from the start, run one at a time as a user does who looks at each."""
    done = run(program.algorithm, program.world, program.task.init, rounds, every=1)
    return jax.block_until_ready(done.state)


def held(program: Program) -> Any:
    """Samples, shards, graph and test set."""
    return program.world.data, program.world.arrays, program.data.test_x, program.data.test_y


class Work(NamedTuple):
    """One row of the suite."""

    workload: str
    nodes: int
    cohort: int | None
    rounds: int  # of a block: a time is that of a block, divided
    build: Callable[[], Program]
    cost: Callable[[Program], Cost]
    rival: Callable[[Program], Side] | None = None  # what it races against
    scored: bool = False  # whether accuracy after one block is taken
    ours: Callable[[Program], Side] | None = None  # None: `ours` below, by the engine
    afresh: Callable[[Program, int], Any] = afresh  # (program, rounds) -> the state after a run from the start
    held: Callable[[Program], Any] = held  # the data, which no run can do without
    imports: tuple[str, ...] = ("pandas",)  # modules that `build` and `afresh` load late


def dense(batch: int, inputs: int, outputs: int, count: int, first: bool = False) -> Iterator[Matmul]:
    """Forward, gradient of the weights and, but for the `first` layer, of the inputs of `count` dense layers."""
    yield Matmul(batch, inputs, outputs, count)
    yield Matmul(inputs, batch, outputs, count)
    if not first:
        yield Matmul(batch, outputs, inputs, count)


def perceptron(batch: int, sizes: tuple[int, ...], count: int) -> tuple[Matmul, ...]:
    """`count` gradients of an MLP."""
    return tuple(a for i, (n, m) in enumerate(pairwise(sizes)) for a in dense(batch, n, m, count, first=i == 0))


def local_steps(program: Program, count: int, batch: int) -> tuple[Stream, Stream]:
    """`count` steps read a batch each, and read and write one model, which may stay in cache."""
    sample = program.data.x[0].nbytes
    model = 4 * program.task.dim
    return Stream(count * batch * sample, program.data.x.nbytes), Stream(2.0 * count * model, model)


def gossip_round(program: Program, nodes: int, batch: int) -> tuple[Stream, Stream]:
    """A round reads a batch a node, and reads and writes the stacked models once."""
    state = 4.0 * nodes * program.task.dim
    return Stream(nodes * batch * program.data.x[0].nbytes, program.data.x.nbytes), Stream(2 * state, state)


def images() -> Dataset:
    """Fashion-MNIST where its files are installed, else random numbers of the same shape: no time depends on them."""
    try:
        return fashion_mnist()
    except InputError:
        rng = np.random.default_rng(0)
        x, test = rng.random((60_000, 784), np.float32), rng.random((10_000, 784), np.float32)
        labels = rng.integers(0, 10, 70_000)
        return from_arrays(x, labels[:60_000], test, labels[60_000:], classes=10, name="random numbers")


def even_shards(data: Dataset, n: int, m: int) -> Shards:
    """Node `i` has `m` samples from `i * m` on; beyond the end of the data set it starts again, and shards overlap."""
    x, y = jax.device_put(data.x), jnp.asarray(data.y)  # as `partition.shards` does
    start = (np.arange(n) * m % (len(y) - m + 1)).astype(np.int32)
    order = jnp.arange(len(y), dtype=jnp.int32)
    return Shards(x, y, order, jnp.asarray(start), jnp.full(n, m, jnp.int32), m)


def mlp(sizes: tuple[int, ...], compute: str | None = None) -> Task:
    """Classification by a perceptron of these sizes."""
    return classification(partial(MLP, sizes), jax.ShapeDtypeStruct((1, sizes[0]), np.float32), compute=compute)


def named(name: str, compute: str | None) -> str:
    """A workload whose arithmetic is of another type."""
    return name if compute is None else f"{name} {compute}"


def ours(program: Program, rounds: int, scored: bool) -> Side:
    """jaxfl's side of a race. The data go to the devices beforehand, as they do once in a run of many rounds."""
    algorithm, world, task, _ = program
    if jax.device_count() > 1:
        world = world._replace(data=put(node_mesh(), world.data))
    carry = None

    def step():
        nonlocal carry
        result = run(algorithm, world, task.init, rounds, every=rounds, carry=carry)
        carry = Carry(0, jax.block_until_ready(result.carry.state), {})
        return result.state

    if not scored:
        return Side(step)
    predict = lambda row, x: task.predict(task.unravel(row), x)
    return Side(step, lambda state: jnp.atleast_2d(algorithm.read(state)), predict)


def by_hand(program: Callable, models: Any, x: Array, y: Array, predict: Callable, stacked: bool) -> Side:
    """The side of a program `(models, t, x, y) -> models` of `bound.py`; it takes over the memory of `models`."""

    def step():
        nonlocal models
        models = jax.block_until_ready(program(models, 0, x, y))
        return models

    return Side(step, lambda m: m if stacked else jax.tree.map(lambda a: a[None], m), predict)
