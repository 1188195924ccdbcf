"""Certificates for tests, mounted as Kubernetes mounts a Secret: replaced all at once."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

from ditmesh.security import TlsFiles

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """An authority of its own; its files are in `folder`, which it makes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.certificate = folder / "ca.crt"
        self._key = folder / "ca.key"
        _openssl(
            *("req", "-x509", *_NEW_KEY, "-keyout", str(self._key), "-days", "1"),
            *("-out", str(self.certificate), "-subj", "/CN=authority"),
        )

    def issue(self, secret: Path, name: str, *trusted: Authority) -> Secret:
        """A new pair for `name` on this machine. It trusts this authority and `trusted`."""
        made = secret / f"..{uuid.uuid4().hex}"
        made.mkdir(parents=True)
        request = made / "request"
        _openssl(
            *("req", *_NEW_KEY, "-keyout", str(made / "tls.key"), "-out", str(request)),
            *("-subj", f"/CN={name}"),
        )
        (made / "names").write_text(f"subjectAltName=DNS:{name},DNS:localhost,IP:127.0.0.1\n")
        _openssl(
            *("x509", "-req", "-in", str(request), "-out", str(made / "tls.crt"), "-days", "1"),
            *("-CA", str(self.certificate), "-CAkey", str(self._key), "-CAcreateserial"),
            *("-extfile", str(made / "names")),
        )
        bundle = b"".join(a.certificate.read_bytes() for a in (self, *trusted))
        (made / "ca.crt").write_bytes(bundle)
        return Secret(secret, made)


class Secret:
    """A mounted Secret. Issuing another into the same folder renews it."""

    def __init__(self, folder: Path, version: Path) -> None:
        self.folder = folder
        # The kubelet swaps one link, through which all files are seen.
        link = folder / f"{version.name}.link"
        link.symlink_to(version.name)
        os.replace(link, folder / "..data")
        for name in ("tls.crt", "tls.key", "ca.crt"):
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(f"..data/{name}")
        self.files = TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)
