"""A registry: one namespace that we serve at `/<name>/`, and who answers for it.

For now each has one source; a merged namespace will order several and own names.
"""

from dataclasses import dataclass

from proxy.service.source import Source


@dataclass(frozen=True, slots=True)
class Registry:
    """One namespace. `auth_required` is what our `config.json` says to cargo."""

    name: str
    source: Source
    auth_required: bool = False
