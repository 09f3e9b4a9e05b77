"""jaxfl: federated and decentralized machine learning in JAX.

    import jaxfl as fl
    from jaxfl.algorithms import fedavg, dsgd

What a script needs is here by name and loaded when it is first used: `fl.run`, `fl.scenario`, `fl.data`,
`fl.partition`, `fl.graph`, `fl.mixing`, `fl.cohort`, `fl.shared_test`, `fl.plots`, ... The contract for systems of your own is
`fl.Algorithm`, `fl.State` and their verbs `fl.at` and `fl.Network`.
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("jaxfl")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
