"""What a user mixes up gets one sentence, before anything is compiled."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from common import digits_world, ring
from flax import linen, nnx

from jaxfl.algorithms.gossip.dsgd import dsgd
from jaxfl.algorithms.server.fedprox import fedprox
from jaxfl.core import Metric, Outbox, Program
from jaxfl.data.sets import digits
from jaxfl.engine.plan import plan
from jaxfl.engine.rollout import rollout
from jaxfl.engine.run import run
from jaxfl.errors import InputError
from jaxfl.measure.metrics import shared_test
from jaxfl.models.networks import MLP

TASK, WORLD = digits_world(n=4, topology=ring(4))
SYSTEM = dsgd(TASK, lr=0.1, steps=1, batch=4)
GIVEN = {"algorithm": SYSTEM, "scenario": WORLD, "model": TASK.init, "rounds": 2}
TEST = shared_test(TASK, jnp.zeros((3, 64)), jnp.zeros(3, jnp.int32))
WHOLE = "must be a whole number of at least"


def measuring(**arguments):
    return Metric(lambda arrays, answer: {name: jnp.asarray(v) for name, v in arguments.items()})


def logging(**arguments):
    def round(key, env, s):
        s, log = SYSTEM.round(key, env, s)
        return s, dict(log) | {name: jnp.asarray(v) for name, v in arguments.items()}

    return SYSTEM._replace(round=round)


CASES = [
    # numbers
    ({"rounds": 2.5}, f"rounds is 2.5, but {WHOLE} 1"),
    ({"rounds": True}, f"rounds is True, but {WHOLE} 1"),
    ({"rounds": np.float64(2)}, f"rounds is float64.*, but {WHOLE} 1"),
    ({"rounds": TASK.init}, f"rounds is init, but {WHOLE} 1"),
    ({"every": 1.0}, f"every is 1.0, but {WHOLE} 1"),
    ({"seeds": 2.0}, f"seeds is 2.0, but {WHOLE} 1"),
    ({"seeds": True}, f"seeds is True, but {WHOLE} 1"),
    ({"seeds": [0, 1]}, r"seeds is \[0, 1\], but must be how many"),
    ({"seeds": range(3)}, r"seeds is range\(0, 3\), but must be how many"),
    ({"seed": 1.5}, f"seed is 1.5, but {WHOLE}"),
    ({"seed": 2**31 - 1, "seeds": 2}, "seeds must be below 2147483648"),
    ({"seed": 2**40}, "seeds must be below 2147483648"),
    ({"seed_block": 0.5}, f"seed_block is 0.5, but {WHOLE} 1"),
    ({"block": 0}, f"block is 0, but {WHOLE} 1"),
    ({"mesh": 4}, "mesh is 4, but must be a Mesh"),
    # hyper
    ({"hyper": {"lr": 0.3}}, "the algorithm is built already: give a factory that takes lr"),
    ({"hyper": {"lr": [0.1, 0.3]}}, "the algorithm is built already"),
    ({"hyper": [0.1]}, r"hyper is \[0.1\], but must be a dict"),
    ({"algorithm": partial(dsgd, TASK, steps=1), "hyper": {"lr": "fast"}}, "lr is 'fast', but must be a number"),
    ({"algorithm": partial(dsgd, TASK, steps=1), "hyper": {"rate": 0.1}}, "'rate'"),
    ({"algorithm": partial(fedprox, TASK), "hyper": {"nu": 0.1}}, "'nu'"),
    *[
        ({"algorithm": partial(dsgd, TASK, steps=1), "hyper": {"lr": lr}}, says)
        for lr, says in (
            (-0.1, "lr is -0.1, but must be above 0"),
            (np.int64(-1), "lr is -1, but must be above 0"),
            (jnp.float32(-1), "lr is -1, but must be above 0"),
            (None, "lr is None, but must be a number"),
            (True, "lr is True, but must be a number"),
            (float("inf"), "lr is inf, but must be finite and above 0"),
            ([0.1, float("nan")], "lr is nan, but must be finite"),
            ([0.1, "0.3"], "lr is '0.3', but must be a number"),
            ([0.1, None], "lr is None, but must be a number"),
            (np.array([0.1, 0.0]), "lr is 0, but must be above 0"),
        )
    ],
    # algorithm
    ({"algorithm": dsgd}, "algorithm is dsgd, which with hyper = {} is missing a required argument: 'task'"),
    ({"algorithm": TASK}, "algorithm is a Task, but must be an Algorithm"),
    ({"algorithm": Program(lambda key, data, i, link: (0, Outbox(0)), None, None)}, "exchange.program.program"),
    ({"algorithm": lambda: TASK}, "which makes a Task and no Algorithm"),
    ({"algorithm": "fedavg"}, "algorithm is 'fedavg', but must be an Algorithm"),
    # scenario
    ({"scenario": WORLD.data}, "scenario is a Shards, but must be a Scenario"),
    ({"scenario": digits()}, "scenario is a Dataset, but must be a Scenario"),
    ({"scenario": ring(4)}, "scenario is a Graph, but must be a Scenario"),
    # model
    ({"model": TASK}, "model is a Task, .*give its `init`"),
    ({"model": linen.Dense(3)}, "model is the flax module a Dense"),
    ({"model": MLP}, "model is the flax module MLP"),
    ({"model": nnx.Linear(2, 3, rngs=nnx.Rngs(0))}, "model is the flax module a Linear"),
    ({"model": partial(MLP, (64, 10))}, "which draws no model from a key"),
    ({"model": lambda: jnp.zeros(650)}, "which draws no model from a key"),
    ({"model": TASK.predict}, "model is predict, which draws no model from a key"),
    ({"model": None}, "model is a NoneType, but must be one or more arrays"),
    ({"model": "mlp"}, "model is 'mlp', but must be one or more arrays"),
    # evaluate
    ({"evaluate": lambda arrays, answer: {}}, r"must be a Metric: `Metric\(f\)` of a function"),
    ({"evaluate": [TEST, TEST]}, r"`measure.metrics.together\(a, b\)` makes one of several"),
    ({"evaluate": (TEST, TEST)}, r"`measure.metrics.together\(a, b\)` makes one of several"),
    ({"evaluate": Metric(TEST)}, "evaluate is a Metric, but must be a Metric or None"),
    ({"evaluate": "accuracy"}, "evaluate is 'accuracy', but must be a Metric or None"),
    ({"evaluate": Metric(lambda arrays, answer: answer.sum())}, "must return a dict of numbers"),
    ({"evaluate": measuring(norms=jnp.ones((4, 2)))}, r"norms as float32\[4, ?2\], but must measure one number"),
    # names of columns
    ({"evaluate": measuring(loss=1.0)}, "evaluate measures 'loss', but this is the name of a log"),
    ({"evaluate": measuring(up_bits=1.0)}, "evaluate measures 'up_bits', but this is the name of a log"),
    ({"evaluate": measuring(round=1.0)}, "evaluate measures 'round', but this is the name of a column of every"),
    ({"evaluate": measuring(seed=1.0)}, "evaluate measures 'seed', but this is the name of the run's seed"),
    ({"evaluate": measuring(time=1.0)}, "evaluate measures 'time', but this is the name of a column of every"),
    ({"evaluate": measuring(total_up_bits=1.0)}, "evaluate measures 'total_up_bits', but this is"),
    ({"evaluate": measuring(diverged=1.0)}, "evaluate measures 'diverged', but this is the name of a column of every"),
    ({"algorithm": logging(round=1.0)}, "algorithm logs 'round', but this is the name of a column of every"),
    ({"algorithm": logging(time=1.0)}, "algorithm logs 'time', but this is the name of a column of every"),
    ({"algorithm": logging(seed=1.0)}, "algorithm logs 'seed', but this is the name of the run's seed"),
    (
        {"algorithm": lambda lr: logging(lr=lr), "hyper": {"lr": [0.1, 0.2]}},
        "algorithm logs 'lr', but this is the name of a swept value",
    ),
    (
        {"algorithm": lambda error: logging(), "hyper": {"error": [1, 2]}, "evaluate": measuring(error=0.0)},
        "evaluate measures 'error', but this is the name of a swept value",
    ),
    (
        {"algorithm": lambda loss: SYSTEM, "hyper": {"loss": [0.1, 0.2]}},
        "algorithm logs 'loss', but this is the name of a swept value",
    ),
]


@pytest.mark.parametrize(("wrong", "says"), CASES, ids=[says[:50] for _, says in CASES])
def test_one_sentence_before_anything_is_compiled(wrong, says, nothing_compiled, tmp_path):
    with pytest.raises(InputError, match=says) as caught:
        run(**GIVEN | wrong, out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"every": 2.5}, f"every is 2.5, but {WHOLE} 1"),
        ({"seeds": [0, 1]}, "but must be how many"),
        ({"scenario": WORLD.data}, "scenario is a Shards"),
        ({"model": TASK}, "model is a Task"),
        ({"evaluate": [TEST]}, "together"),
        ({"evaluate": measuring(loss=1.0)}, "evaluate measures 'loss'"),
        ({"hyper": {"lr": 0.1}}, "built already"),
    ],
)
def test_a_plan_refuses_what_a_run_refuses(wrong, says, nothing_compiled):
    given = {name: v for name, v in GIVEN.items() if name != "rounds"}
    with pytest.raises(InputError, match=says):
        plan(**given | wrong)


def test_numbers_for_a_built_algorithm_are_refused_by_a_rollout_too():
    with pytest.raises(InputError, match="built already"):
        rollout(SYSTEM, WORLD, jnp.zeros(650), 1, hyper={"lr": 0.1})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seed": 2**40}, f"seed is {2**40}, but must be at least -2147483648 and below 2147483648"),
        ({"seed": 1.5}, "seed is 1.5, but must be a whole number"),
        ({"rounds": 2.5}, f"rounds is 2.5, but {WHOLE} 0"),
        ({"hyper": {"lr": -1.0}}, "lr is -1.0, but must be above 0"),
    ],
)
def test_a_rollout_refuses_bad_numbers(wrong, says):
    factory = partial(dsgd, TASK, steps=1, batch=4)
    with pytest.raises(InputError, match=says):
        rollout(factory, WORLD, jnp.zeros(650), **{"rounds": 1, "hyper": {"lr": 0.1}} | wrong)


def test_what_is_right_in_another_form_is_taken():
    """Whole numbers of NumPy and JAX, a model as plain numbers, a factory without numbers, names apart."""
    numbers = {"rounds": np.int64(2), "seed": jnp.int32(1), "every": np.uint8(1), "seeds": None}
    result = run(partial(dsgd, TASK, steps=1, batch=4), WORLD, np.zeros(650), evaluate=measuring(mine=2.0), **numbers)
    assert list(result.history["mine"]) == [2.0, 2.0, 2.0]
    assert set(result.history["seed"]) == {1}
    assert jax.tree.structure(result.carry).num_leaves > 2
