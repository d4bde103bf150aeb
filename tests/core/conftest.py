"""The laws run on the same examples every time, so that a red suite is red again when looked at.

To look for new counterexamples: `pytest tests/core --hypothesis-profile=search`.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("laws", derandomize=True, deadline=None)
settings.register_profile(
    "search", max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("laws")
