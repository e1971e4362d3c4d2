"""Where the coordinator is, and the secret that its workers share with it.

Reading and writing bytes is apart from what they mean. Knows no sockets beyond names of
addresses, and no messages.
"""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from biggraph.errors import ConfigError, FormatError
from biggraph.storage import fsops
from biggraph.storage.flight import is_loopback, option
from biggraph.storage.secret import SECRET_VARIABLE, environment_secret, read_secret

ENDPOINT_FILE = "endpoint.json"
SECRET_FILE = "secret"


class Endpoint(BaseModel):
    """Where one start of the coordinator listens.

    Args:
        term: id of the start.
        host: name or address that workers connect to.
        port: of the mailbox.
        job: id of the job.
        transport: what is spoken there.
        certificate: PEM that it shows, for those who were given no other; None: without TLS.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    term: str = Field(min_length=1, max_length=200)
    host: str = Field(min_length=1, max_length=253)
    port: int = Field(ge=1, le=65535)
    job: str = Field(min_length=1, max_length=200)
    transport: Literal["torch", "flight"] = "torch"
    certificate: str | None = None


class Secret(NamedTuple):
    """The job secret, and whether the user gave it."""

    key: bytes
    explicit: bool


def new_id() -> str:
    """Return an id that was never used, for a job or a term."""
    return secrets.token_hex(8)


def encode_endpoint(endpoint: Endpoint) -> bytes:
    """Return the content of endpoint.json."""
    return endpoint.model_dump_json(indent=2).encode() + b"\n"


def parse_endpoint(data: bytes, source: object) -> Endpoint:
    """Return the endpoint that `encode_endpoint` wrote.

    Args:
        data: content of the file.
        source: where it is from, for messages.

    Raises:
        FormatError: it is damaged or of another version.
    """
    try:
        return Endpoint.model_validate_json(data)
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(map(str, found["loc"])) or "content"
        raise FormatError(
            f"{source}: damaged: {where}: {found['msg']}; remove it and start the coordinator again"
        ) from error


def find_secret(run: Path | None, secret_file: Path | None, *, create: bool) -> Secret:
    """Return the job secret: from the file given, else the environment, else the run directory.

    White space at its ends does not count.

    Args:
        run: run directory; None where the run is in no folder.
        secret_file: `cluster.secret_file`.
        create: make one in the run directory where none is found.

    Raises:
        ConfigError: there is none, it is too short, or others could read it.
        StorageError: the file system refused.
    """
    if secret_file is not None:
        return Secret(read_secret(secret_file), explicit=True)
    if (key := environment_secret()) is not None:
        return Secret(key, explicit=True)
    if run is None:
        raise ConfigError(
            f"no job secret: a run in no folder has none of its own; set {SECRET_VARIABLE} or "
            "cluster.secret_file"
        )
    path = run / SECRET_FILE
    if create:
        with suppress(FileExistsError):
            _create_secret(path)
    return Secret(read_secret(path), explicit=False)


def _create_secret(path: Path) -> None:
    """Publish a random secret, which nobody else can ever open."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}{fsops.TEMPORARY}")
    try:
        with fsops.operation("write", temporary):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_hex(32).encode() + b"\n")
                fsops.sync(file, temporary)
        with fsops.operation("link", path):
            os.link(temporary, path)
    finally:
        fsops.unlink(temporary)
    fsops.sync_folder(path.parent)


def require_secret_beyond_loopback(bind: str, secret: Secret, prefix: str = "cluster.") -> None:
    """Refuse to listen where other machines can connect, unless the user gave a secret.

    Args:
        bind: address to listen on.
        secret: as found.
        prefix: of the keys or options that gave it, for messages.

    Raises:
        ConfigError: the address is not loopback and the secret was made by us.
    """
    if not secret.explicit and not is_loopback(bind):
        raise ConfigError(
            f"{option(prefix, 'bind')} = {bind!r} lets other machines connect; give all of them "
            f"the same secret: set {SECRET_VARIABLE}, or {option(prefix, 'secret_file')} to a file "
            "of mode 0600"
        )


def advertised_host(bind: str) -> str:
    """Return what workers connect to: the address listened on, or that of the default route.

    >>> advertised_host("127.0.0.1")
    '127.0.0.1'
    """
    if bind in ("", "0.0.0.0"):
        return address_towards("192.0.2.1", 9)  # reserved for documentation; nothing is sent
    return address_towards("2001:db8::1", 9) if bind == "::" else bind


def address_towards(host: str, port: int) -> str:
    """Return this machine's address on the way to another one; sends nothing.

    >>> address_towards("127.0.0.1", 9)
    '127.0.0.1'
    """
    with suppress(OSError):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    return socket.gethostname()
