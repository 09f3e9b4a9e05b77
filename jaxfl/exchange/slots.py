"""Whether every slot of a network holds what belongs there, and what goes beside what."""

import inspect
from typing import Any

from jaxfl.errors import InputError, require
from jaxfl.exchange import rules
from jaxfl.exchange.attacks import Attack
from jaxfl.exchange.codecs import Codec, Collective
from jaxfl.exchange.noise import Noise
from jaxfl.learn.layers import Part


def check(net: Any) -> None:
    """Raise `InputError` for a `Network` whose slots do not hold what they must, or not beside one another."""
    if not callable(net.rule):
        raise InputError(f"rule is {net.rule!r}, but must be a function such as exchange.rules.median().")
    try:
        inspect.signature(net.rule).bind(1, 2, 3)
    except TypeError:
        word = getattr(net.rule, "__name__", net.rule)
        raise InputError(f"rule is {word}, but must take (own, heard, weight), as {word}(...) does.") from None
    for name, kind, example in (("codec", Codec, "half()"), ("attack", Attack, "sign_flip()")):
        value = getattr(net, name)
        if not isinstance(value, kind) and not (name == "attack" and value is None):
            where = f"exchange.{name}s.{example}"
            raise InputError(f"{name} is {value!r}, but must be {kind.__name__}(...) such as {where}.")
    if not isinstance(net.collective, Collective | None):
        raise InputError(f"collective is {net.collective!r}, but must be a Collective such as low_rank(...).")
    if not isinstance(net.personal, Part | None):
        raise InputError(f"personal is {net.personal!r}, but must be a Part such as part(task, 'layers/1/*').")
    if net.noise is not None:
        if not isinstance(net.noise, Noise):
            raise InputError(f"noise is {net.noise!r}, but must be Noise(up=0.1, down=0.1).")
        for side, deviation in net.noise._asdict().items():
            require(f"noise.{side}", deviation, least=0)
    for slot in ("personal", "noise"):
        if getattr(net, slot) is not None and net.collective is not None:
            raise InputError(f"net.{slot} is set, but a collective is for whole models that arrive as they are sent.")
    _check_submodel(net)
    if type(net.repeats) is not int or net.repeats < 1:
        raise InputError(f"repeats is {net.repeats!r}, but must be a whole number of at least 1.")
    if net.collective is not None:
        net._replace(collective=None).fill("the network", collective=net.collective)


def require_whole(net: Any, why: str) -> None:
    """Raise `InputError`, with `why`, for a `Network` in which nodes keep, or are handed, a part of the model alone."""
    for slot in ("personal", "submodel"):
        if getattr(net, slot) is not None:
            raise InputError(f"net.{slot} is set, but {why}.")


def _check_submodel(net: Any) -> None:
    if net.submodel is None:
        return
    if not callable(net.submodel):
        raise InputError(f"submodel is {net.submodel!r}, but must be a policy such as submodels.width(task, 0.5).")
    for slot in ("personal", "collective"):
        if getattr(net, slot) is not None:
            raise InputError(f"net.submodel is set beside net.{slot}, which is a matter of whole models.")
    if net.rule is not rules.mean:
        raise InputError("net.submodel is set beside net.rule, but rules compare whole models: leave one out.")
    if not net.codec.by_number:
        raise InputError("net.submodel is set beside a codec that chooses or remembers numbers of whole models.")


def require_each(net: Any) -> None:
    """Raise `InputError` for a `Network` in which no server can look at each message."""
    if net.collective is not None:
        raise InputError("net.collective is set, but this server looks at each message, and not at the mean alone.")
    if net.submodel is not None:
        raise InputError("net.submodel is set, but this server looks at each message, which must be a whole one.")
