"""All journeys that a client can set off, as one value to hand around."""

from dataclasses import dataclass

from proxy.service.api import Api
from proxy.service.crates import Crates
from proxy.service.indexes import Indexes
from proxy.service.insistence import Insistence
from proxy.service.upstream_configs import UpstreamConfigs


@dataclass(frozen=True, slots=True)
class Journeys:
    """What the rim can set off."""

    indexes: Indexes
    crates: Crates
    api: Api
    insistence: Insistence
    configs: UpstreamConfigs
