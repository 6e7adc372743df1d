"""By method, the claim in a call's opening message: the caller's client id, and the tasks that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.wire.chunks import Chunk
from fedmtl_server.access.identities import Claim

SERVICE = pb.DESCRIPTOR.services_by_name["FederatedMtlService"].full_name


def _claim_of_update(opening: pb.PushUpdateRequest | Chunk) -> Claim:
    """Return the claim in an upload's header. An upload without a header claims nothing; the servicer refuses it."""
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
"""By method, how to read the claim of a call's opening message. No caller can use a method of the service without an
entry here."""


def claim_of(method: str, opening: object) -> Claim:
    """Return the claim in a call's opening message; an empty claim for a method of another service.

    Args:
        method: the method's full name, `/SERVICE/METHOD`.
        opening: the request, or a stream's first message, as the method's handler reads it.
    """
    claim = CLAIMS.get(method)
    return claim(opening) if claim else Claim()
