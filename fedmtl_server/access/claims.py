"""What a call's opening message says of its caller, and wants, by method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.wire.chunks import Chunk
from fedmtl_server.access.identities import Claim

SERVICE = pb.DESCRIPTOR.services_by_name["FederatedMtlService"].full_name


def _claim_of_update(opening: pb.PushUpdateRequest | Chunk) -> Claim:
    """What an upload's header claims; nothing if the upload begins with something else, which the servicer refuses."""
    if isinstance(opening, Chunk):
        return Claim()
    header = opening.header
    return Claim(header.client_id, header.task, tasks=(header.next_task,))


CLAIMS: Mapping[str, Callable[[Any], Claim]] = {
    f"/{SERVICE}/GetSlice": lambda request: Claim(request.client_id, request.task, request.all_tasks),
    f"/{SERVICE}/PushUpdate": _claim_of_update,
    f"/{SERVICE}/QueryUpload": lambda request: Claim(request.client_id),
    f"/{SERVICE}/WatchRounds": lambda request: Claim(request.client_id, request.task, tasks=tuple(request.tasks)),
    f"/{SERVICE}/GetStatus": lambda request: Claim(),
}
"""By method, what a call's opening message claims. A method of the service that isn't here is closed to everybody."""


def claim_of(method: str, opening: object) -> Claim:
    """What a call's opening message claims; nothing where the method is another service's.

    Args:
        method: its full name, `/SERVICE/METHOD`.
        opening: the request, or a stream's first message, as the method's handler reads it.
    """
    claim = CLAIMS.get(method)
    return claim(opening) if claim else Claim()
