"""What a world says of a round's members is heard by the system, or one sentence refuses it before it is compiled.

A cohort may leave nodes out, or say that its members are not fresh ones who all do the same work (`core.Cohort`): they
answer late, run fewer steps, were asked in vain. A system that does not look would compute something else, and nobody
would see it. Who looks need not say so: these fields bear names in the traced rounds, from which all is removed that
reaches neither state nor log; a name that is then gone was not read.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

from jax.ad_checkpoint import checkpoint_name
from jax.interpreters import partial_eval

from jaxfl.core import LEFT_OUT, Cohort, Now
from jaxfl.errors import InputError
from jaxfl.mapping.nodes import programs_in
from jaxfl.world.events import Events

SAID = {
    "weight": "who takes part",
    "age": "that members may answer late, from models of earlier versions",
    "steps": "how many local steps members run",
    "selected": "who is asked in vain",
    "total": "what weights are divided by in a mean",
    "updates": "that a round has several updates",
}
GIVEN = "given "  # begins the names of what a world says
_sound: WeakSet = WeakSet()  # programs that were looked at: a run that compiles nothing looks no more


def marked(now: Now) -> Cohort:
    """The cohort of a round, whose fields that a system has to hear bear names.

    Steps that churn or clocks of nodes decide are said elsewhere too: in weights and in the graph.
    """
    c = now.cohort
    elsewhere = ["steps"] * (now.alive is not None or isinstance(now.graph, Events)) + ["weight"] * c.strata.everyone
    fields = {name: a for name in SAID if name not in elsewhere and (a := getattr(c, name)) is not None}
    named = {name: checkpoint_name(a, GIVEN + name) for name, a in fields.items()}
    if "weight" in named:
        named["ids"] = checkpoint_name(c.ids, GIVEN + "weight")
    return c._replace(**named)


def require_heard(traced: Any) -> None:
    """Raise `InputError` if the rounds of a program, a closed jaxpr, do not read what bears a name in it."""
    if traced.jaxpr in _sound:
        return
    given = set(_names(traced.jaxpr))
    live, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    read = set(_names(live))
    for name, words in SAID.items():
        if GIVEN + name in given and not read & {GIVEN + name, LEFT_OUT + name}:
            raise InputError(f"cohort says {words} ({name}), but this system does not read it: leave it out.")
    _sound.add(traced.jaxpr)


def _names(jaxpr: Any) -> Iterator[str]:
    """The names in a program that are of a world or of a system that knows."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name" and eqn.params["name"].startswith((GIVEN, LEFT_OUT)):
            yield eqn.params["name"]
        for part in programs_in(eqn):
            yield from _names(part)
