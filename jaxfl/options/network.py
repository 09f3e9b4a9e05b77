"""How messages travel, by the names of rule, attack and codec."""

from typing import Any

from jaxfl import plugins
from jaxfl.errors import InputError
from jaxfl.exchange import attacks, codecs, rules
from jaxfl.exchange.network import Network
from jaxfl.exchange.noise import Noise
from jaxfl.learn.layers import part
from jaxfl.learn.task import Task
from jaxfl.options.config import Setup

KEPT = 0.05  # share of the entries that top_k sends


def network_of(setup: Setup, heard: int, task: Task | None = None) -> Network:
    """How messages travel in this setup, where a receiver combines `heard` of them, its own included.

    `task` is what is learned; its layers are what `setup.personal` names.

    A rule that wants a number of liars is given those expected among so many messages, rounded up, and at least one.

    Raises:
        InputError: more of them than the rule stands, or a personal part that the model does not have.
    """
    share = setup.byzantine / setup.nodes
    f = max(1, -(-setup.byzantine * heard // setup.nodes))
    needed = {"krum": 2 * f + 3, "multi_krum": 2 * f + 3, "trimmed_mean": 2 * f + 1}.get(setup.rule, 0)
    if heard < 2 and setup.rule != "mean":
        raise InputError(f"rule is {setup.rule}, but one message is heard, which any rule takes as it is.")
    if heard < needed:
        raise InputError(f"rule is {setup.rule}, but with {f} liars it needs {needed} messages, and {heard} are heard.")
    combine = {
        "mean": lambda: rules.mean,
        "median": rules.median,
        "trimmed_mean": lambda: rules.trimmed_mean(f),
        "krum": lambda: rules.krum(f),
        "multi_krum": lambda: rules.multi_krum(f),
        "geometric_median": rules.geometric_median,
        "centered_clipping": lambda: rules.centered_clipping(rules.adaptive_radius(min(0.5, max(0.1, 1.5 * share)))),
    }
    lies = {
        "sign_flip": attacks.sign_flip,
        "alie": attacks.alie,
        "ipm": attacks.ipm,
        "mimic": attacks.mimic,
        "gaussian": attacks.gaussian,
    }
    coded = {
        None: codecs.plain,
        "half": codecs.half,
        "int8": lambda: codecs.quantize(8),
        "int4": lambda: codecs.error_feedback(codecs.quantize(4)),
        "sign": lambda: codecs.error_feedback(codecs.sign()),
        "top_k": lambda: codecs.error_feedback(codecs.top_k(KEPT)),
    }
    rule = combine.get(setup.rule) or plugins.find("rule", setup.rule)
    lie = lies.get(setup.attack or "sign_flip") or plugins.find("attack", str(setup.attack))
    codec = coded.get(setup.codec) or plugins.find("codec", str(setup.codec))
    own = part(task, *setup.personal.split(",")) if setup.personal and task is not None else None
    made: dict[str, Any] = {}
    for what, name, make in (("rule", setup.rule, rule), ("codec", setup.codec, codec), ("attack", setup.attack, lie)):
        with plugins.making(what, str(name)):
            made[what] = make() if what != "attack" or setup.byzantine else None
    if setup.byzantine and made["attack"] is None:
        raise InputError(f"attack {setup.attack!r} makes nothing, but must make an Attack.")
    links = Noise(setup.link_noise, setup.link_noise) if setup.link_noise else None
    return Network(**made, personal=own, noise=links)
