"""Who is calling: the scope of a client's jobs and cached tensors."""

from __future__ import annotations

from typing import Any

import grpc.aio

ANONYMOUS = "anonymous"


def identity(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The certificate's common name under mutual TLS; otherwise everybody is one client."""
    for name in context.auth_context().get("x509_common_name", ()):
        return name.decode(errors="replace")
    return ANONYMOUS
