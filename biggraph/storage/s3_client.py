"""Requests to an S3-compatible store: the client, how objects are sent, what errors mean.

Credentials, region and endpoint come from the environment, as for every program that uses boto3,
which is imported only here and only when a store is used. Knows nothing of runs.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from biggraph.errors import StorageError

PART = 1 << 24  # bytes of one request; larger objects are sent in parts
_MOST_PARTS = 10_000
_THREADS = 4  # parts that are sent at the same time

# Sends the whole of a file as a new object; options name the object and its metadata.
Send = Callable[[Any, Mapping[str, Any], io.BufferedIOBase], None]

_MISSING = {"404", "NoSuchKey"}
_TAKEN = {"412", "PreconditionFailed", "NoSuchUpload"}  # the last: it may be completed already
_CREDENTIALS = (
    "check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) and that they "
    "allow to list the bucket and to get, put and delete objects"
)
_NETWORK = "check the network and the endpoint (AWS_ENDPOINT_URL_S3, AWS_REGION), then resume"
_REFUSED = ("401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_REMEDIES = {
    **dict.fromkeys((*_REFUSED, "ExpiredToken", "InvalidToken"), _CREDENTIALS),
    "NoSuchBucket": "create the bucket, or correct the address",
    "NotImplemented": "a run needs conditional writes (If-None-Match); choose another store",
}


class Conflict(StorageError):
    """Another request for the same name was under way; asking again tells who won."""


def connect() -> Any:
    """Return a client; it asks again, a bounded number of times, after passing errors.

    Raises:
        StorageError: boto3 is not installed, or the environment's settings cannot be.
    """
    try:
        from boto3.session import Session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise StorageError("s3:// needs boto3; pip install 'biggraph[s3]'") from None
    settings = Config(retries={"mode": "standard"}, connect_timeout=10, read_timeout=60)
    try:
        return Session().client("s3", config=settings)
    except (BotoCoreError, ValueError) as error:
        raise StorageError(f"s3://: {error}; {_NETWORK}") from None


@contextmanager
def request(verb: str, where: str) -> Iterator[None]:
    """Name the enclosed request, and say clearly what the store refused.

    Raises:
        FileNotFoundError: no such object.
        FileExistsError: the condition did not hold: the name is taken.
        Conflict: it was neither free nor taken.
        StorageError: everything else, after what botocore tried again.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from s3transfer.exceptions import RetriesExceededError

    try:
        yield
    except ClientError as error:
        raise _translated(error.response.get("Error", {}), verb, where) from error
    except NoCredentialsError as error:
        raise StorageError(f"{where}: cannot {verb}: no credentials; {_CREDENTIALS}") from error
    except (BotoCoreError, Boto3Error, RetriesExceededError) as error:
        raise StorageError(f"{where}: cannot {verb}: {error}; {_NETWORK}") from error


def _translated(error: Mapping[str, str], verb: str, where: str) -> Exception:
    code = error.get("Code", "")
    if code in _MISSING:
        return FileNotFoundError(errno.ENOENT, "no such object", where)
    if code in _TAKEN:
        return FileExistsError(errno.EEXIST, "the name is taken", where)
    said = f"{where}: cannot {verb}: {error.get('Message') or code}"
    if code == "ConditionalRequestConflict":
        return Conflict(f"{said}; another process writes this run; resume the run")
    return StorageError(f"{said}; {_REMEDIES.get(code, _NETWORK)}")


def send_whole(client: Any, options: Mapping[str, Any], file: io.BufferedIOBase) -> None:
    """Send a new object in one request."""
    file.seek(0)
    client.put_object(**options, Body=file, IfNoneMatch="*")


def send_parts(client: Any, options: Mapping[str, Any], file: io.BufferedIOBase) -> None:
    """Send a new object in parts; it appears when the last request puts them together."""
    options = dict(options)
    metadata = options.pop("Metadata")
    size = file.seek(0, os.SEEK_END)
    length, turn = max(PART, -(-size // _MOST_PARTS)), threading.Lock()
    upload = options | {
        "UploadId": client.create_multipart_upload(**options, Metadata=metadata)["UploadId"]
    }

    def send(number: int) -> dict[str, Any]:
        with turn:
            file.seek((number - 1) * length)
            data = file.read(length)
        sent = client.upload_part(**upload, PartNumber=number, Body=data)
        return {"PartNumber": number, "ETag": sent["ETag"]}

    try:
        with ThreadPoolExecutor(_THREADS, "biggraph-s3") as pool:
            parts = list(pool.map(send, range(1, max(1, -(-size // length)) + 1)))
        client.complete_multipart_upload(
            **upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )
    except BaseException:
        with suppress(Exception):  # else the bucket's rule for unfinished uploads removes the parts
            client.abort_multipart_upload(**upload)
        raise
