"""Settings of the whole suite."""

from hypothesis import settings

settings.register_profile("jaxfl", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("jaxfl")
