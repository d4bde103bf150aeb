"""The registry web API, read through us: `cargo search` and what else only asks.

Passed on to the upstream's own `api`, with the upstream's credentials where the origin is its own
and with nobody else's. Nothing is cached, and nothing is changed: publishing goes another way.
"""

from proxy.core.events import Kind
from proxy.ports import ApiAnswer
from proxy.service.source import Source
from proxy.service.upstream_configs import UpstreamConfigs


class Api:
    """Reads of the web APIs of all upstreams."""

    def __init__(self, configs: UpstreamConfigs) -> None:
        self._configs = configs

    async def get(self, source: Source, rest: str, query: str) -> ApiAnswer | None:
        """Ask for `/api/v1<rest>?<query>`, both percent-encoded; None if there is no API.

        Raises UpstreamFailure. An error status of the API is an answer, not a failure.
        """
        config = await self._configs.get(source)
        if config.api is None:
            return None
        url = f"{config.api}/api/v1{rest}"
        if query:
            url = f"{url}?{query}"
        return await source.ask(
            Kind.API,
            "api",
            lambda endpoint: endpoint.upstream.api_get(url),
            has_copy=False,
            received_bytes=lambda answer: len(answer.body),
            endpoints=lambda: (source.first,),
        )
