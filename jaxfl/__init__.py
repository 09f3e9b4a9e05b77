"""jaxfl: federated and decentralized machine learning in JAX."""

from importlib.metadata import version

__version__ = version("jaxfl")
