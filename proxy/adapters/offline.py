"""An upstream that must not be asked: the `Upstream` port for `offline = true`."""

from contextlib import AbstractAsyncContextManager

from proxy.core.answers import Absent, Answer, Validators
from proxy.core.failures import Offline
from proxy.ports import ApiAnswer, CrateBody, Upstream


class OfflineUpstream(Upstream):
    """An upstream that must not be asked: `offline = true`. Opens no socket."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        """The name it is configured under."""
        return self._name

    async def index_file(
        self, path: str, validators: Validators, *, new_connection: bool = False
    ) -> Answer:
        """Refuse."""
        del validators, new_connection
        raise self._offline(path)

    def crate(self, url: str) -> "_Refusal":
        """Refuse."""
        return _Refusal(self._offline(url.rpartition("/")[2]))

    async def api_get(self, url: str) -> ApiAnswer:
        """Refuse."""
        del url
        raise self._offline("its web API")

    def _offline(self, what: str) -> Offline:
        return Offline(f"{self._name} is offline and {what} is not held here")


class _Refusal(AbstractAsyncContextManager[CrateBody | Absent]):
    def __init__(self, reason: Offline) -> None:
        self._reason = reason

    async def __aenter__(self) -> CrateBody | Absent:
        raise self._reason

    async def __aexit__(self, *_: object) -> None:
        return None
