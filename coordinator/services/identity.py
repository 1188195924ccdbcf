"""Who is calling: the scope of a client's jobs and cached tensors."""

from __future__ import annotations

from typing import Any

import grpc.aio

from ditmesh.reloading import Reloading
from ditmesh.security import Tokens

ANONYMOUS = "anonymous"


class Identities:
    """Names callers: by token where there are tokens, else by certificate, else all alike."""

    def __init__(self, tokens: Reloading[Tokens] | None = None) -> None:
        self._tokens = tokens

    def of(self, context: grpc.aio.ServicerContext[Any, Any]) -> str:
        """The caller's name. Raises Unauthenticated when a token is needed and not given."""
        if self._tokens is not None:
            return self._tokens.current().identify(context.invocation_metadata() or ())
        for name in context.auth_context().get("x509_common_name", ()):
            return name.decode(errors="replace")
        return ANONYMOUS
