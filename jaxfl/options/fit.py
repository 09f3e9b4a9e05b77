"""The law of slots: an option changes what a system computes, or one sentence refuses it before anything is compiled.

Which options a system reads is found by tracing it (`engine.law`), in a world with that option and without it; nobody
lists what a system ignores. In a comparison an option is fine if one of the systems hears it, and a line says which do
not.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxfl import plugins, zoo
from jaxfl.engine import law
from jaxfl.errors import InputError
from jaxfl.options.build import Arm, World, build, changed, example_of
from jaxfl.options.config import KINDS, SLOTS, Setup, spoken, usual
from jaxfl.options.systems import accepted, settings_of, system_options, takes_of
from jaxfl.paper import Example

GRAPH = ("topology", "degree", "mixing")  # judged at once: a topology may exist in one degree alone
UNREAD = {"plan": ("checkpoints", "out")}  # options by commands that do not read them


class Fit(NamedTuple):
    """A system with the options it hears, and those it does not, each with the sentence that says so."""

    arm: Arm
    unheard: dict[str, str]


def fit(world: World, label: str, options: Mapping[str, Any], swept: Mapping[str, Sequence[float]] = {}) -> Fit:
    """The system as `build` makes it, in a world of the options it hears. `options` has those in its label too.

    Raises:
        InputError: what the system refuses for another reason than one of `config.SLOTS`.
    """
    name, _ = plugins.split(label)
    system, setup, usually = zoo.find(name), world.setup, usual(world.setup)
    takes = accepted(system.make)
    usually["lr"] = takes.get("lr")
    given = {n: v for n, v in vars(setup).items() if v is not None and v not in (usually[n], Setup.__dict__.get(n))}
    unheard = {
        n: f"{n} is {v}, but changes nothing in {name}, of kind {system.kind}: {' and '.join(KINDS[n])} ones read it."
        for n, v in given.items()
        if system.kind not in KINDS.get(n, (system.kind,))
    }
    judged = [n for n in SLOTS if n in given and n not in unheard]
    heard = {n: Setup.__dict__[n] for n in SLOTS}
    plain = changed(world, **heard) if judged or unheard else world
    own = example_of(plain, name)
    if "hold_out" in given and "hold_out" not in unheard and own.data is not None:
        unheard["hold_out"] = f"hold_out is {setup.hold_out}, but {name} brings its own data."
    arm = build(plain, name, options, swept, own)
    if not judged:
        return Fit(arm, unheard)
    hyper, known = {key: values[0] for key, values in swept.items()}, law.Known({}, {}, {}, {})

    def word_of(arm: Arm) -> str:
        return law.program(arm.algorithm, arm.scenario, arm.model, hyper, known)

    word = word_of(arm)
    graph = {n: given[n] for n in GRAPH if n in judged}
    for tried in [graph] * bool(graph) + [{n: given[n]} for n in judged if n not in GRAPH]:
        if "attack" in tried and "byzantine" in unheard:
            unheard["attack"] = unheard["byzantine"]
            continue
        try:
            there = changed(world, **heard | tried)
            mine = example_of(there, name) if tried is graph else own
            new = build(there, name, options, swept, mine)
            said = word_of(new)
            if "byzantine" in tried:  # an attack is computed, but does it matter who lies?
                others = new.scenario._replace(byz=~new.scenario.byz)
                said = word if said == word_of(new._replace(scenario=others)) else said
        except InputError as error:
            unheard |= {n: _refusal(n, v, name, str(error)) for n, v in tried.items()}
            continue
        if said == word:
            unheard |= {n: _silence(n, v, label, takes, options, swept, own) for n, v in tried.items()}
        else:
            heard, arm, word, own = heard | tried, new, said, mine
    return Fit(arm, unheard)


def _refusal(option: str, value: Any, name: str, says: str) -> str:
    """What a system says to an option, in the words of the command line."""
    slot = "attack" if option == "byzantine" else option
    says = says.replace(f"net.{slot} is set", f"{option} is {value}")
    return says if option in says else f"{option} is {value}, but {name} takes none: {says}"


def _silence(
    option: str, value: Any, label: str, takes: Mapping, options: Mapping, swept: Mapping, own: Example
) -> str:
    """The sentence for an option without effect."""
    (name, _), why = plugins.split(label), ""
    if option in settings_of(label):
        why = f", as {label} gives its own"
    elif option in swept or option in options:
        why = f", as {'--grid' if option in swept else '--set'} gives another"
    elif option in ("steps", "batch") and "epochs" in options:
        why = f", as {label if 'epochs' in settings_of(label) else '--set'} gives epochs"
    elif option in ("lr", "steps", "batch") and option not in takes:
        why = ", which has no such option"
    elif option in ("concurrency", "goal") and own.clock is not None:
        why = ", whose clock decides it"
    return f"{option} is {value}, but changes nothing in {name}{why}."


def arms(
    world: World,
    systems: Sequence[str],
    setup: Setup,
    earlier: Setup | None = None,
    swept: Mapping[str, Sequence[float]] = {},
) -> dict[str, Arm]:
    """Every system with the options it hears; a line on stderr for each option that some do not.

    Args:
        world: what the systems share.
        systems: their labels, `NAME` or `NAME:KEY=VALUE,...`.
        setup: what was asked for.
        earlier: the setup of the config it began with: what comes from there may be for systems that do not run now.
        swept: options with several values.

    Raises:
        InputError: an option that no system hears.
    """
    options = system_options(setup, systems)
    fits = {name: fit(world, name, options[name], swept) for name in systems}
    lines = []
    for option in {n: None for f in fits.values() for n in f.unheard}:
        says = [f.unheard[option] for f in fits.values() if option in f.unheard]
        inherited = earlier is not None and getattr(earlier, option) == getattr(setup, option)
        if len(says) == len(fits) and not inherited:
            raise InputError(says[0])
        who = [name for name, f in fits.items() if option in f.unheard]
        why = "; ".join(said.rstrip(".") for said in says)
        lines.append(f"jaxfl: without {spoken(option)} runs {', '.join(who)}: {why}.")
    asked = {o.partition("=")[0].strip(): o for o in setup.options}
    for key in {key: None for found in options.values() for key in found if key in asked}:
        none = [name for name in options if key not in takes_of(name)]
        own = [name for name in options if key in settings_of(name)]
        for who, why in ((none, "no such option"), (own, f"it gives its own {key}")):
            lines += [f"jaxfl: without --set {asked[key]} runs {', '.join(who)}: {why}."] * bool(who)
    for line in lines:
        print(line, file=sys.stderr, flush=True)
    return {name: f.arm for name, f in fits.items()}


def check_command(word: str, setup: Setup, earlier: Setup | None = None) -> None:
    """Raise `InputError` for an option that the command does not read, unless it comes from an earlier run's config."""
    for option in UNREAD.get(word, ()):
        value = getattr(setup, option)
        if value != Setup.__dict__[option] and (earlier is None or value != getattr(earlier, option)):
            raise InputError(f"{option} is {value}, but {word} does not read it: run, compare and sweep do.")
