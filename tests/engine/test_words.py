"""The word of a system (`engine.law`): what makes another one, and what does not."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Algorithm, State
from jaxfl.engine import law
from jaxfl.mapping.blocks import block_of
from jaxfl.mapping.canonical import once
from jaxfl.mapping.nodes import map_nodes
from jaxfl.world.scenario import scenario

DATA = jnp.arange(8.0)


def word(f, known=None, data=DATA):
    """Of a system that answers `f(data, x)`."""

    def round(key, env, s):
        return State({"x": f(env.data, s.shared["x"])}), {}

    system = Algorithm(lambda key, env, x: State({"x": x}), round, lambda s: s.shared["x"])
    return law.program(system, scenario(data, nodes=2), jnp.ones(8), known=known)


def loop(times, step):
    return lambda data, x: jax.lax.scan(lambda c, a: (step(c, a), None), x, jnp.stack([data] * times))[0]


TABLE, OTHER = np.arange(8.0, dtype=np.float32), np.arange(8.0, dtype=np.float32)[::-1].copy()


def inside(table):
    """A table within a program within a loop."""
    return loop(2, lambda c, a: jax.jit(lambda c: c + table)(c) + a)


def test_another_computation_has_another_word():
    near = float(np.nextafter(np.float32(0.1), np.float32(1)))
    systems = [
        lambda data, x: x + data,
        lambda data, x: x - data,
        lambda data, x: data - x,
        lambda data, x: x + 0.1,
        lambda data, x: x + near,
        lambda data, x: (x + data)[::-1],
        loop(2, lambda c, a: c + a),
        loop(3, lambda c, a: c + a),
        loop(2, lambda c, a: c - a),
        inside(TABLE),
        inside(OTHER),
        lambda data, x: jax.lax.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, x),
        lambda data, x: jax.lax.cond(x.sum() > 0, lambda a: a - 1, lambda a: a + 1, x),
        lambda data, x: jax.lax.while_loop(lambda a: a.sum() < 9, lambda a: a + 1, x),
        lambda data, x: jax.lax.while_loop(lambda a: a.sum() < 8, lambda a: a + 1, x),
        lambda data, x: jnp.stack([data, x])[0],
        lambda data, x: jnp.stack([x, data])[1] * 1,
    ]
    words = [word(f) for f in systems]
    assert len(set(words)) == len(words)
    known = law.Known({}, {}, {}, {})
    assert [word(f, known) for f in systems] == words  # also where one remembers what came before
    assert word(systems[0], data=DATA + 1) != words[0]
    assert word(systems[0], known, DATA + 1) != words[0]


def test_an_order_a_program_within_and_what_nobody_reads_make_no_other():
    plain = lambda data, x: jnp.sin(x) + jnp.cos(data)

    def turned(data, x):
        b = jnp.cos(data)
        return jnp.sin(x) + b

    def unread(data, x):
        jnp.exp(data).sum()
        return plain(data, x)

    alike = [plain, turned, unread, jax.jit(plain), lambda data, x: jax.jit(jnp.sin)(x) + jax.jit(jnp.cos)(data)]
    assert len({word(f) for f in alike}) == 1
    assert word(inside(TABLE)) == word(inside(TABLE.copy()))
    assert word(lambda data, x: x, data=DATA) == word(lambda data, x: x, data=DATA + 1)
    both = lambda *order: lambda data, x: jax.jit(lambda a, b: a - b)(*(x, data)[:: order[0]])
    assert word(both(1)) != word(both(-1))


def test_a_function_is_traced_anew_where_it_may_be_another():
    """A user's own function may read what has changed; of the package's, blocks that are forced are seen within."""
    scale, sums = [1.0], lambda s, a: a + s
    scaled = lambda x: scale[0] * x
    text = lambda: str(jax.make_jaxpr(lambda x: once(scaled)(x))(1.0))
    first = text()
    scale[0] = 2.0
    assert text() != first

    def of_blocks(size, f):
        with block_of(size):
            return str(jax.make_jaxpr(lambda x: map_nodes(f, jnp.float32(1), x))(jnp.zeros((1, 6, 3))))

    nested = lambda s, row: map_nodes(sums, s, row)
    nested.__module__ = sums.__module__ = "jaxfl"
    assert len({of_blocks(size, nested) for size in (1, 2, 3)}) == 3
    assert of_blocks(2, nested) == of_blocks(2, nested)
