"""Options that every command has which talks to a coordinator."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ditmesh.client import TLS, Client
from ditmesh.client.connection import DEFAULT_ADDRESS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the coordinator is and how to reach it."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--address",
        default=os.environ.get("DITMESH_ADDRESS", DEFAULT_ADDRESS),
        metavar="HOST:PORT",
        help="of the coordinator (default: $DITMESH_ADDRESS or %(default)s)",
    )
    group.add_argument("--tls", action="store_true", help="encrypt; implied by those below")
    group.add_argument("--ca", type=Path, metavar="PEM", help="who signs the server's certificate")
    group.add_argument("--cert", type=Path, metavar="PEM", help="the client's certificate")
    group.add_argument("--key", type=Path, metavar="PEM", help="its key")
    group.add_argument("--tls-name", default="", help="name in the server's certificate")


def connect(args: argparse.Namespace, *, timeout_s: float = 60.0) -> Client:
    """The client. A token is read from $DITMESH_TOKEN, never from the command line."""
    encrypted = args.tls or args.ca or args.cert or args.key or args.tls_name
    tls = TLS(args.ca, args.cert, args.key, args.tls_name) if encrypted else None
    token = os.environ.get("DITMESH_TOKEN")
    return Client(args.address, tls=tls, token=token, timeout_s=timeout_s)
