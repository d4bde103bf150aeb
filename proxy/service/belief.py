"""What may be believed of an index file that came, and who is accused where two sources differ.

The rules are `proxy.core.sparse`'s; here they meet the endpoints. Large files are looked at in a
thread.
"""

import asyncio
from typing import Final

from proxy.core import sparse
from proxy.core.answers import Snapshot
from proxy.core.failures import Misbehaved
from proxy.service.endpoint import Endpoint
from proxy.service.source import Source

_OFF_LOOP_BYTES: Final = 64 * 1024


async def believe(source: Source, name: str, body: bytes) -> None:
    """Raise Misbehaved unless a body that came is this crate's index file."""
    if len(body) > _OFF_LOOP_BYTES:
        problem = await asyncio.to_thread(sparse.check, body, name)
    else:
        problem = sparse.check(body, name)
    if problem is not None:
        raise Misbehaved(
            f"{source.name} sent something else than the index file of {name}: {problem.reason}"
        )


async def agree(
    source: Source, endpoint: Endpoint, name: str, held: Snapshot | None, body: bytes
) -> None:
    """Compare what came with what is held from elsewhere. Raises Misbehaved against a mirror.

    Between the upstream and its mirror the upstream is right; a mirror that was contradicted is
    set aside.
    """
    if held is None or held.body is None or held.body == body:
        return
    if endpoint.mirror == held.validators.mirror:
        return
    if len(body) > _OFF_LOOP_BYTES:
        agreement = await asyncio.to_thread(sparse.compare, held.body, body)
    else:
        agreement = sparse.compare(held.body, body)
    if agreement is sparse.Agreement.AGREES:
        return
    if agreement is sparse.Agreement.BEHIND:
        if endpoint is not source.first:
            raise Misbehaved(f"{endpoint.upstream.name} lacks versions of {name} that are known")
        return
    accused = endpoint
    if endpoint is source.first:
        accused = source.endpoint(held.validators.mirror) or endpoint
    failure = Misbehaved(
        f"{accused.upstream.name} gives {name} another checksum than {source.name} does"
    )
    source.set_aside(accused, failure)
    if endpoint is not source.first:
        raise failure
