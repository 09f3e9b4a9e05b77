"""What `run`, `rollout` and `plan` are given, looked at before anything is compiled: one sentence for what is wrong."""

import contextlib
import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from weakref import WeakSet

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from jaxfl.core import Algorithm, Metric, Program, Scenario, Shards, Tree
from jaxfl.engine import distribution
from jaxfl.engine.history import EVALUATED, TOTALS
from jaxfl.errors import InputError, nearest, require
from jaxfl.exchange.attacks import Attack
from jaxfl.exchange.network import Network
from jaxfl.learn.task import Task, check_labels
from jaxfl.mapping.canonical import once

INT32 = 2**31
_sound: WeakSet = WeakSet()  # functions that draw models, as was found before
OWN = ("system", "round", "diverged", EVALUATED, *TOTALS.values())  # what no measurement may be called


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int. Raises InputError unless it is a whole number, of NumPy perhaps and no bool, of `least`."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise InputError(f"{name} is {_shown(value)}, but must be a whole number of at least {least}.")
    return number


def check_counts(seed: Any, seeds: Any, **counts: Any) -> None:
    """Raise InputError unless all `counts` are None or at least 1, and the seeds are numbers of 32 bits."""
    if isinstance(seeds, list | tuple | range):
        raise InputError(f"seeds is {_shown(seeds)}, but must be how many: seeds=3 with seed=5 runs seeds 5, 6 and 7.")
    for name, value in ({"seeds": seeds} | counts).items():
        if value is not None:
            whole(name, value)
    if whole("seed", seed, -INT32) + (seeds or 1) > INT32:
        raise InputError(f"seed is {seed} with seeds = {seeds}, but seeds must be below {INT32}.")


def check_parts(algorithm: Any, scenario: Any, model: Any, evaluate: Any, hyper: Any, mesh: Any) -> None:
    """Raise InputError for an argument that is not what its place is for."""
    check_algorithm(algorithm, hyper)
    check_hyper(algorithm, hyper)
    if not isinstance(scenario, Scenario):
        raise InputError(
            f"scenario is {_shown(scenario)}, but must be a Scenario, as `world.scenario.scenario(shards)` makes it."
        )
    check_liars(algorithm, scenario)
    for task in _parts(algorithm, Task) if isinstance(scenario.data, Shards) else ():
        check_labels(task, scenario.data, "data")
    check_model(model)
    check_metric(evaluate)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise InputError(
            f"mesh is {_shown(mesh)}, but must be a Mesh, such as `engine.sharding.node_mesh(4)`, or None."
        )


def check_liars(algorithm: Any, scenario: Scenario) -> None:
    """Raise InputError if a network of the algorithm, as far as closures show it, attacks in a world without liars."""
    if not any(isinstance(net.attack, Attack) for net in _parts(algorithm, Network)):
        return
    if not isinstance(scenario.byz, Tracer) and not np.asarray(scenario.byz).any():
        raise InputError("the network has an attack, but nobody lies in this world: say who by scenario(byz=).")


def _parts(algorithm: Any, kind: type) -> Iterator[Any]:
    """Everything of a kind in an algorithm, as far as closures show it."""
    seen, found = set(), [algorithm]
    while found:
        part = found.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, kind):
            yield part
        elif isinstance(part, partial):
            found += [part.func, *part.args, *part.keywords.values()]
        elif isinstance(part, tuple | list):
            found += part
        elif isinstance(part, dict):
            found += part.values()
        elif inspect.isfunction(part):
            found += [cell.cell_contents for cell in part.__closure__ or () if _filled(cell)]


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def check_algorithm(algorithm: Any, hyper: Any) -> None:
    """Raise InputError unless it is an `Algorithm`, or a factory that `hyper` completes."""
    if not isinstance(hyper, Mapping | None):
        raise InputError(f"hyper is {_shown(hyper)}, but must be a dict of numbers by name.")
    if isinstance(algorithm, Algorithm):
        if hyper:
            raise InputError(
                f"hyper is {_shown(hyper)}, but the algorithm is built already: give a factory that takes "
                f"{', '.join(hyper)}, such as functools.partial(fedavg, task)."
            )
        return
    if isinstance(algorithm, Program):
        raise InputError("algorithm is a Program of one node: `exchange.program.program` makes an Algorithm of it.")
    if isinstance(algorithm, tuple) or not callable(algorithm):
        raise InputError(f"algorithm is {_shown(algorithm)}, but must be an Algorithm or a factory of one.")
    try:
        signature = inspect.signature(algorithm)
    except (TypeError, ValueError):  # of what Python cannot look into
        return
    try:
        signature.bind(**(hyper or {}))
    except TypeError as error:
        unknown = [name for name in hyper or {} if f"'{name}'" in str(error)]
        says = f": {nearest(unknown[0], signature.parameters)}" if unknown else ", such as functools.partial(it, task)."
        raise InputError(
            f"algorithm is {_shown(algorithm)}, which with hyper = {_shown(dict(hyper or {}))} is {error}"
            f"; give an Algorithm, or a factory that hyper completes{says}"
        ) from error


def check_hyper(algorithm: Any, hyper: Any) -> None:
    """Raise InputError for a value of `hyper` that is no number, or that the factory refuses; traced ones pass.

    Compiled programs see traced values, of which a factory knows nothing: it is tried here with each of them.
    """
    if not hyper or any(isinstance(v, Tracer) for v in jax.tree.leaves(dict(hyper))):
        return
    tried = {}
    for name, given in hyper.items():
        values: list[Any] = list(given) if isinstance(given, list | tuple | range) else np.ravel(given).tolist()
        for i, v in enumerate(values):
            if isinstance(v, list | tuple):
                return  # `runs.lay_out` says so
            if isinstance(v, bool | np.bool_):
                values[i] = bool(v)
            else:
                require(name, v, most=math.inf)
                values[i] = int(v) if float(v).is_integer() else float(v)
        tried[name] = values
    most = max(map(len, tried.values()))
    if not most or any(len(values) not in (1, most) for values in tried.values()):
        return
    points = zip(*(values * (most // len(values)) for values in tried.values()), strict=True)
    for point in dict.fromkeys(points):
        try:
            algorithm(**dict(zip(tried, point, strict=True)))
        except InputError:
            raise
        except Exception:  # of a factory that takes traced values alone
            continue


def check_model(model: Any) -> None:
    """Raise InputError unless it is a tree of numbers or a function that draws one from a key."""
    kind = type(model)
    if isinstance(model, Task):
        raise InputError("model is a Task, but must be a row [d] or a function of a key: give its `init`.")
    if any(c.__module__.startswith("flax.") for c in (*kind.__mro__, *(model.__mro__ if kind is type else ()))):
        raise InputError(
            f"model is the flax module {_shown(model)}, but must be a row [d] or a function of a key: make a task of "
            "it, `learn.task.classification(module, x)`, and give its `init`."
        )
    drawn = model
    if callable(model):
        with contextlib.suppress(TypeError):  # what nobody can refer to weakly is looked at anew
            if model in _sound:
                return
        try:
            drawn = jax.eval_shape(once(model), jax.random.key(0))
        except TypeError as error:
            raise InputError(f"model is {_shown(model)}, which draws no model from a key: {_line(error)}") from error
    leaves = jax.tree.leaves(drawn)
    if not leaves or not all(map(_numbers, leaves)):
        raise InputError(f"model is {_shown(model)}, but must be one or more arrays of numbers, or draw such.")
    if callable(model):
        with contextlib.suppress(TypeError):
            _sound.add(model)


def check_metric(evaluate: Any) -> None:
    """Raise InputError unless it is a `Metric` or None."""
    if evaluate is None or (isinstance(evaluate, Metric) and callable(evaluate.measure)):
        return
    says = "must be a Metric or None"
    if isinstance(evaluate, list | tuple) and not isinstance(evaluate, Metric):
        says = "must be one Metric: `measure.metrics.together(a, b)` makes one of several"
    elif callable(evaluate):
        says = "must be a Metric: `Metric(f)` of a function f(arrays, answer) that returns a dict of numbers"
    raise InputError(f"evaluate is {_shown(evaluate)}, but {says}.")


def check_scores(scores: Any) -> tuple[dict, dict]:
    """What a metric returned: the columns of the history, and what it measured by node `[n]`.

    The columns are its numbers and the distribution over nodes of what it measured by node (`engine.distribution`),
    unless it gives a number of that name itself.

    Raises:
        InputError: it is no dict of numbers and rows of them.
    """
    if not isinstance(scores, dict):
        raise InputError(f"evaluate returns {_shown(scores)}, but must return a dict of numbers by name.")
    for name, value in scores.items():
        if not _numbers(value) or jnp.ndim(value) > 1 or not jnp.size(value):
            raise InputError(
                f"evaluate measures {name} as {_shown(value)}, but must measure one number, or one a node [n]."
            )
        if name in OWN:
            raise InputError(_taken("evaluate measures", name, "a column of every history"))
    by_node = {name: value for name, value in scores.items() if jnp.ndim(value)}
    spread = {column: v for name in by_node for column, v in distribution.columns(name, by_node[name]).items()}
    return spread | {name: value for name, value in scores.items() if name not in by_node}, by_node


def check_names(labels: Mapping, logs: Mapping, scores: Mapping) -> None:
    """Raise InputError if a swept value, a log or a score is called as another column of the history.

    `scores` are the columns of `check_scores`, perhaps with the engine's own `diverged`.
    """
    held = dict.fromkeys(OWN, "a column of every history")
    columns = [("hyper sweeps", name, "a swept value") for name in labels if name != "seed"]
    columns = [("", "seed", "the run's seed"), *columns, *(("algorithm logs", name, "a log") for name in logs)]
    columns += [("evaluate measures", name, "") for name in scores if name != "diverged"]
    for who, name, what in columns:
        if name in held:
            raise InputError(_taken(who, name, held[name]))
        held[name] = what


def check_carry(carry: Any, like: Tree, runs: int) -> None:
    """Raise InputError unless the arrays of a carry have the shapes of those of `like`."""
    shapes = lambda tree: [(jnp.shape(a), jnp.result_type(a)) for a in jax.tree.leaves(tree)]
    same = jax.tree.structure(carry.state) == jax.tree.structure(like) and shapes(carry.state) == shapes(like)
    if not same or any(len(v) != runs for v in carry.spent.values()):
        raise InputError("carry is of another run: its arrays are not those of this system, world and seeds.")


def built(factory: Callable, hyper: Mapping) -> Algorithm:
    """The algorithm a factory makes. Raises InputError for a number it does not take, and if it makes another thing."""
    try:
        made = factory(**hyper)
    except TypeError as error:
        if not any(f"argument '{name}'" in str(error) for name in hyper):
            raise
        raise InputError(f"hyper has {', '.join(hyper)}, but the algorithm does not take all: {error}.") from error
    if not isinstance(made, Algorithm):
        raise InputError(f"algorithm is {_shown(factory)}, which makes {_shown(made)} and no Algorithm.")
    return made


def _taken(who: str, name: str, what: str) -> str:
    return f"{who} {name!r}, but this is the name of {what}: call it otherwise."


def _numbers(a: Any) -> bool:
    try:
        dtype = jnp.result_type(a)
    except (TypeError, ValueError):
        return False
    return jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)


def _shown(value: Any) -> str:
    """A value on one short line, a thing of a class by its name."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, bool | int | float | str | list | tuple | range | dict) and not hasattr(value, "_fields"):
        text = repr(value).replace("\n", " ")
        return text if len(text) <= 60 else f"{text[:57]}..."
    name = getattr(value, "__qualname__", None) or getattr(getattr(value, "func", None), "__qualname__", None)
    return name.split(".<locals>.")[-1] if name else f"a {type(value).__name__}"


def _line(error: Exception) -> str:
    return f"{(str(error).splitlines() or [''])[0][:160].rstrip('.')}."
