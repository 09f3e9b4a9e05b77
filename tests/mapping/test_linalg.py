"""LAPACK in compiled programs: one matrix a call, right results and derivatives, and nobody passes the block by."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from lapack import stacks

import jaxfl
from jaxfl.mapping import linalg

RNG = np.random.default_rng(0)
TALL = RNG.normal(size=(3, 2, 4, 3)).astype(np.float32)
SQUARE = TALL.swapaxes(-1, -2) @ TALL  # symmetric, positive
RIGHT = np.float32(RNG.normal(size=(3, 2)))
SOLVE = linalg.alone(lambda a, b: jnp.linalg.solve(a, b), "(n,n),(n,k)->(n,k)")
BLOCKS = {
    "eigvalsh": (linalg.eigvalsh, jnp.linalg.eigvalsh, SQUARE),
    "eigh": (linalg.eigh, lambda x: tuple(jnp.linalg.eigh(x)), SQUARE),
    "qr": (linalg.qr, lambda x: tuple(jnp.linalg.qr(x)), TALL),
    "alone": (lambda x: SOLVE(x, RIGHT), lambda x: jnp.linalg.solve(x, RIGHT), SQUARE),
}


def scalar(f):
    """A number that depends on all that `f` returns, signs of vectors included."""
    return lambda x: sum((jnp.arange(1.0, 1 + y.shape[-1]) * y + y**3).sum() for y in jax.tree.leaves(f(x)))


def test_results_against_float64():
    x, s = np.float64(TALL), np.float64(SQUARE)
    solution, (w, v), (q, r), wide, values = jax.jit(
        lambda x, s: (SOLVE(s, RIGHT), linalg.eigh(s), linalg.qr(x), linalg.qr(x.mT), linalg.eigvalsh(s)),
    )(TALL, SQUARE)
    np.testing.assert_allclose(w, np.linalg.eigvalsh(s), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(values, w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(s @ v, np.asarray(v) * np.asarray(w)[..., None, :], atol=2e-5)
    np.testing.assert_allclose(np.float64(q) @ r, x, atol=2e-6)
    np.testing.assert_allclose(
        np.asarray(q, np.float64).swapaxes(-1, -2) @ q, np.broadcast_to(np.eye(3), (3, 2, 3, 3)), atol=1e-6
    )
    assert not np.tril(r, -1).any()
    assert [a.shape for a in wide] == [(3, 2, 3, 3), (3, 2, 3, 4)]
    np.testing.assert_allclose(s @ solution, np.broadcast_to(RIGHT, (3, 2, 3, 2)), atol=1e-4)
    assert jax.eval_shape(linalg.eigvalsh, jnp.zeros((0, 3, 3))).shape == (0, 3)


@pytest.mark.parametrize("name", BLOCKS)
def test_one_matrix_a_call_under_every_transformation(name):
    block, plain, x = BLOCKS[name]
    mesh = jax.make_mesh((1,), ("nodes",), axis_types=(jax.sharding.AxisType.Auto,))

    def everywhere(f):
        scanned = lambda x: jax.lax.scan(lambda s, x: (s, jax.vmap(f)(x)), 0, x)[1]
        spread = jax.shard_map(jax.vmap(f), mesh=mesh, in_specs=P("nodes"), out_specs=P("nodes"), check_vma=False)
        blocks = lambda x: jax.lax.map(f, x, batch_size=2)
        return lambda x: [f(x), jax.vmap(jax.vmap(f))(x), scanned(x), spread(x), blocks(x)]

    lowered = jax.jit(everywhere(block)).lower(x)
    assert stacks(lowered) == {1}
    assert max(stacks(jax.jit(everywhere(plain)).lower(x))) > 1
    want = jax.jit(plain)(x)
    for got in lowered.compile()(x):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.parametrize("name", ["eigvalsh", "eigh", "qr"])
def test_derivatives_are_those_of_the_namesakes(name):
    block, plain, x = BLOCKS[name]
    way = jnp.asarray(RNG.normal(size=x.shape), jnp.float32)

    def both(f):
        h = scalar(f)
        return lambda x: (
            jax.vmap(jax.grad(h))(x),
            jax.vmap(lambda x, t: jax.jvp(h, (x,), (t,))[1])(x, way),
            jax.jvp(jax.grad(h), (x[0, 0],), (way[0, 0],))[1],
        )

    lowered = jax.jit(both(block)).lower(x)
    assert stacks(lowered) == {1}
    for got, want in zip(lowered.compile()(x), jax.jit(both(plain))(x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_a_function_alone_differentiates_forward():
    block, plain, x = BLOCKS["alone"]
    both = lambda x: [jax.jvp(scalar(f), (x,), (x,))[1] for f in (block, plain)]
    np.testing.assert_allclose(*jax.jit(both)(x), rtol=1e-3)


def test_a_wide_qr_has_no_derivative():
    with pytest.raises(NotImplementedError, match=r"shape \[2, 3\]"):
        jax.grad(lambda x: linalg.qr(x)[1].sum())(jnp.ones((2, 3)))


NEEDS_LAPACK = {"orthogonal", "delta_orthogonal", "multivariate_normal", "roots", "polyfit"}
NO_LAPACK = {"norm", "vector_norm", "matmul", "multi_dot", "outer", "tensordot", "cross", "diagonal", "trace"}


def calls_of_lapack(source):
    """`(line, name)` of what a module takes from JAX that calls LAPACK: `linalg.*`, decompositions behind other names.

    A norm without `ord` is not one; with it, it may be of singular values.
    """
    tree, full = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full |= {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}

    def name_of(node):
        if isinstance(node, ast.Name):
            return full.get(node.id, "")
        return f"{name_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""

    plain = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and len(node.args) < 2
        and all(k.arg in ("axis", "keepdims") for k in node.keywords)
    }
    used = [(node, name_of(node)) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)]
    for node, name in sorted(used, key=lambda u: u[0].lineno):
        *path, last = name.split(".")
        if path[:1] not in (["jax"], ["flax"]) or (last == "norm" and id(node) in plain):
            continue
        if last in NEEDS_LAPACK or ("linalg" in path and (last not in NO_LAPACK - {"norm"})):
            yield node.lineno, name


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import jax.numpy as jnp\njnp.linalg.qr(x)", ["jax.numpy.linalg.qr"]),
        ("from jax.numpy import linalg as la\nla.eigh(x)", ["jax.numpy.linalg.eigh"]),
        ("from jax.scipy.linalg import cho_solve\ncho_solve(x)", ["jax.scipy.linalg.cho_solve"]),
        (
            "import jax\njax.lax.linalg.svd(x)\njax.random.orthogonal(k)",
            ["jax.lax.linalg.svd", "jax.random.orthogonal"],
        ),
        ("import jax.numpy as jnp\nf = jnp.linalg.inv", ["jax.numpy.linalg.inv"]),
        ("import jax.numpy as jnp\njnp.linalg.norm(x, 2)", ["jax.numpy.linalg.norm"]),
        ("import jax.numpy as jnp\njnp.linalg.norm(x, ord='nuc')", ["jax.numpy.linalg.norm"]),
        ("import jax.numpy as jnp\njnp.linalg.norm(x, axis=1, keepdims=True)\njnp.linalg.norm(x)", []),
        ("import numpy as np, scipy.linalg\nnp.linalg.qr(x)\nscipy.linalg.qr(x)", []),
        ("from jaxfl import linalg\nlinalg.qr(x)", []),
    ],
)
def test_the_search_finds_what_it_should(source, found):
    assert [name for _, name in calls_of_lapack(source)] == found


def test_nobody_passes_the_block_by():
    house = Path(jaxfl.__file__).parent
    for path in house.rglob("*.py"):
        for line, name in calls_of_lapack(path.read_text()) if path != Path(linalg.__file__) else ():
            raise AssertionError(
                f"{path.relative_to(house.parent)}:{line} calls {name}, which on two cores may wait for its own thread "
                "pool for ever: take it from jaxfl.mapping.linalg (or add it there, with `alone`), which says why."
            )
