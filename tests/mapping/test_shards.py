"""Rows over devices that do not divide them: where they are, and what moves."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxfl.core import Cohort, Env, node_keys
from jaxfl.engine.hlo import counts
from jaxfl.engine.sharding import node_mesh
from jaxfl.mapping.at import at
from jaxfl.mapping.nodes import put_rows, rows_of
from jaxfl.mapping.shards import AXIS, P, fill, over_shards

ON_THREE = """
import json, sys, jax
jax.config.update("jax_num_cpu_devices", 3)
sys.path[:0] = sys.argv[1:]
import test_shards
print(json.dumps([test_shards.members_on_a_mesh(n, c) for n, c in ((7, 4), (6, 4), (7, 3), (6, 6))]))
print(json.dumps(test_shards.keys_on_a_mesh(7)))
print(json.dumps([test_shards.a_log_on_a_mesh(n) for n in (6, 7)]))
"""


def members_on_a_mesh(n, c):
    """Whether the rows of a cohort in no order arrive and go back, of every type, and what that took."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(n)[:c].astype(np.int32)
    rows = {"float": rng.normal(size=(n, 2)), "int": rng.integers(-9, 9, n), "bool": rng.random((n, 1)) < 0.5}
    rows = {name: jnp.asarray(a) for name, a in rows.items()}
    rows |= {name: rows["int"].astype(name) for name in ("bfloat16", "float16", "int8", "complex64")}
    rows |= {"key": jax.random.split(jax.random.key(0), n)}
    new = jax.tree.map(lambda a: a[::-1][:c], rows)
    bare = lambda tree: jax.tree.map(np.asarray, tree | {"key": jax.random.key_data(tree["key"])})

    def both(ids, rows, new):
        who = Cohort(ids, jnp.ones(c))
        return rows_of(who, rows), put_rows(who, rows, new)

    with jax.set_mesh(node_mesh()):
        compiled = jax.jit(both).lower(jnp.asarray(ids), rows, new).compile()
        mine, put = map(bare, compiled(jnp.asarray(ids), rows, new))
    whole, new = bare(rows), bare(new)
    for name, a in whole.items():
        np.testing.assert_array_equal(mine[name], a[ids], err_msg=name)
        a = a.copy()
        a[ids] = new[name]
        np.testing.assert_array_equal(put[name], a, err_msg=name)
    return sorted(dict(counts(compiled.as_text() or "").collectives))


def keys_on_a_mesh(n):
    """What moves when keys of all nodes, made outside, are used by the shards."""

    def draw(key):
        keys = node_keys(key, jnp.arange(n))
        return fill(over_shards(jax.vmap(jax.random.uniform), n, (P(AXIS),), P(AXIS))(keys))

    key = jax.random.key(1)
    with jax.set_mesh(node_mesh()):
        compiled = jax.jit(draw).lower(key).compile()
        got = compiled(key)
    np.testing.assert_array_equal(got[:n], draw(key))
    return dict(counts(compiled.as_text() or "").collectives)


def a_log_on_a_mesh(n):
    """How often devices meet for the log of a round in which node `i` has the loss `i`, and nodes below 2 no step."""

    def learn(key, data, i, x):
        steps = (i >= 2).astype(jnp.float32)
        return x + i, {"loss": i.astype(jnp.float32), "steps": steps, "gradients": 3 * steps}

    def a_round(key, x):
        env = Env(jnp.int32(0), jnp.float32(0), (), None, None, jnp.zeros(n, bool))
        got = at(jnp.arange(n), learn)(key, env, x)
        return fill(got.rows), dict(got.log)

    with jax.set_mesh(node_mesh()):
        compiled = jax.jit(a_round).lower(jax.random.key(0), jnp.zeros(4)).compile()
        log = compiled(jax.random.key(0), jnp.zeros(4))[1]
    assert log == {"loss": np.arange(2, n).mean(), "gradients": 3 * (n - 2)}
    return dict(counts(compiled.as_text() or "").collectives)


def test_rows_of_members_travel_once_keys_stay_where_they_are_made_and_sums_meet_once():
    command = [sys.executable, "-W", "error", "-c", ON_THREE, str(Path(__file__).parent)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert not ran.returncode, ran.stderr
    members, keys, logs = map(json.loads, ran.stdout.splitlines())
    assert members == [["all-gather", "reduce-scatter"]] * 4
    assert keys == {}
    assert logs == [{"all-reduce": 1}] * 2
