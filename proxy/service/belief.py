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
    """Compare what came with what is held. Raises Misbehaved against a mirror.

    Between the upstream and its mirror the upstream is right; a mirror that was contradicted is
    set aside. What the upstream itself changes of its own word is its right; a mirror's right is to
    add, also to what it has said itself.
    """
    if held is None or held.body == body:
        return
    by_mirror = endpoint is not source.first
    if held.body is None:
        if by_mirror:
            raise Misbehaved(
                f"{endpoint.upstream.name} still has {name}, which {source.name} has removed"
            )
        return
    if not by_mirror and not held.validators.mirror:
        return
    agreement = await _compared(held.body, body)
    if agreement is sparse.Agreement.CONTRADICTS:
        accused = endpoint if by_mirror else source.endpoint(held.validators.mirror)
        if accused is None:
            return  # It is configured no more.
        failure = Misbehaved(f"{accused.upstream.name} gives {name} other checksums than are known")
        source.set_aside(accused, failure)
        if by_mirror:
            raise failure
    elif agreement is sparse.Agreement.BEHIND and by_mirror:
        raise Misbehaved(f"{endpoint.upstream.name} lacks versions of {name} that are known")


async def _compared(held: bytes, body: bytes) -> sparse.Agreement:
    if len(body) > _OFF_LOOP_BYTES:
        return await asyncio.to_thread(sparse.compare, held, body)
    return sparse.compare(held, body)
