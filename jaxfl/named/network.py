"""How messages travel, by the names of rule, attack and codec."""

import math

from jaxfl.config import Setup
from jaxfl.exchange import attacks, codecs, rules
from jaxfl.exchange.network import Network

KEPT = 0.05  # share of the entries that top_k sends


def network_of(setup: Setup) -> Network:
    """How messages travel in this setup."""
    share = setup.byzantine / setup.nodes
    heard = min(setup.nodes, max(setup.cohort or 1, setup.degree + 1))
    f = max(1, math.ceil(share * heard))
    rule = {
        "mean": lambda: rules.mean,
        "median": rules.median,
        "trimmed_mean": lambda: rules.trimmed_mean(f),
        "krum": lambda: rules.krum(f),
        "multi_krum": lambda: rules.multi_krum(f),
        "geometric_median": rules.geometric_median,
        "centered_clipping": lambda: rules.centered_clipping(rules.adaptive_radius(min(0.5, max(0.1, 1.5 * share)))),
    }[setup.rule]()
    lie = {
        "sign_flip": attacks.sign_flip,
        "alie": attacks.alie,
        "ipm": attacks.ipm,
        "mimic": attacks.mimic,
        "gaussian": attacks.gaussian,
    }[setup.attack or "sign_flip"]
    codec = {
        None: codecs.plain,
        "half": codecs.half,
        "int8": lambda: codecs.quantize(8),
        "int4": lambda: codecs.error_feedback(codecs.quantize(4)),
        "sign": lambda: codecs.error_feedback(codecs.sign()),
        "top_k": lambda: codecs.error_feedback(codecs.top_k(KEPT)),
    }[setup.codec]()
    return Network(rule=rule, codec=codec, attack=lie() if setup.byzantine else None)
