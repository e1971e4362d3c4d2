"""A run in an S3-compatible object store: `Place` by conditional requests.

An object appears at once with its whole content and is durable when the request returns. A request
with `If-None-Match: *` is refused where the name is taken. It carries a token in the object's
metadata, so a writer that lost the answer and asked again tells its own object from another's.
Knows nothing of what files hold.
"""

from __future__ import annotations

import io
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biggraph.errors import InputError, StorageError
from biggraph.storage import fsops
from biggraph.storage.place import check_inside, wrong_size
from biggraph.storage.s3_client import (
    PART,
    Conflict,
    Send,
    connect,
    request,
    send_parts,
    send_whole,
)
from biggraph.storage.scratch import length, scratch

_PAUSES_S = (0.1, 0.4, 1.6, 6.4)  # while another request for the same name is under way
_READS = 3  # attempts, where an answer breaks off
_WRITER = "biggraph-writer"  # metadata: the token of the attempt that made the object


class S3:
    """A prefix in a bucket; see `Place` for the methods.

    Args:
        bucket: its name.
        prefix: what the keys of all files begin with: "" or ending with a slash.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix

    @classmethod
    def parse(cls, address: str) -> S3:
        """Return the place of an address such as "s3://bucket/prefix".

        Raises:
            InputError: not of that form.
        """
        match = re.fullmatch(r"s3://([\w.-]+)((?:/[^/\0]+)*)/?", address)
        if match is None or {".", ".."} & set(match[2].split("/")):
            raise InputError(f"{address}: expected an address of the form s3://bucket/prefix")
        return cls(match[1], f"{match[2]}/"[1:])

    def __str__(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".removesuffix("/")

    def where(self, name: str) -> str:
        """Return the address of a name, for messages."""
        return f"{self}/{name}"

    def exists(self) -> bool:
        """Tell whether there is any object; finds out whether the bucket can be read."""
        with self._request("list") as client:
            found = client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        return bool(found.get("Contents"))

    def check_put_if_absent(self) -> None:
        """Refuse a store that ignores the condition, in one request or in parts."""
        for send in (send_whole, send_parts):
            probe = f"probe-{uuid.uuid4().hex[:12]}{fsops.TEMPORARY}"
            try:
                won = [self._put_if_absent(probe, send, data) for data in (b"first", b"second")]
                if won != [True, False] or self.read(probe) != b"first":
                    raise StorageError(
                        f"{self}: this store lets two writers have the same name (it ignores "
                        "If-None-Match), so a run is not safe in it; choose another one"
                    )
            finally:
                self.remove(probe)

    def lock(self) -> Callable[[], None]:
        """Keep nobody away: where two write, the log lets one of them go on."""
        return lambda: None

    def make_folder(self, name: str) -> None:
        """Do nothing: a folder is only the beginning of a name."""

    def remove_folder(self, name: str) -> None:
        """Do nothing: a folder is only the beginning of a name."""

    @contextmanager
    def create(self, name: str, room: int) -> Iterator[io.BufferedIOBase]:
        """Write a new object, by way of an unnamed local file."""
        self._target(name)
        with scratch(room) as file:
            yield file
            self._publish(name, file, send_parts if length(file) > PART else send_whole)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Publish an object, unless the name is taken."""
        return self._put_if_absent(name, send_whole, data)

    def replace(self, name: str, data: bytes) -> None:
        """Put this content under the name."""
        with self._request("write", name) as client:
            client.put_object(**self._target(name), Body=data)

    @contextmanager
    def open(self, name: str, size: int) -> Iterator[io.BufferedIOBase]:
        """Copy an object into an unnamed local file to read."""
        with self._fetch(name, size) as file:
            yield file

    def map(self, name: str, size: int) -> NDArray[np.uint8]:
        """Copy an object into an unnamed local file that lasts as long as the array."""
        with self._fetch(name, size) as file:
            return fsops.map_file(file, size)

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        for _ in range(_READS - 1):
            with suppress(StorageError):
                return self._read(name)
        return self._read(name)

    def size(self, name: str) -> int | None:
        """Return the bytes of an object, or None where there is none."""
        try:
            return int(self._head(name)["ContentLength"])
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Return the name of every object below a folder, sorted."""
        pages = self._pages(f"{self._prefix}{folder}/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return sorted(self._name(key) for key in keys if not key.endswith("/"))

    def top(self) -> list[str]:
        """Return the first parts of all names, sorted; those of folders end with a slash."""
        pages = list(self._pages(self._prefix, Delimiter="/"))
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        keys += [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        return sorted(self._name(key) for key in keys if key != self._prefix)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._request("remove", name) as client:
            client.delete_object(**self._target(name))

    @cached_property
    def _client(self) -> Any:
        return connect()

    def _target(self, name: str) -> dict[str, str]:
        check_inside(self, name)
        return {"Bucket": self._bucket, "Key": f"{self._prefix}{name}"}

    def _name(self, key: str) -> str:
        return key.removeprefix(self._prefix)

    def _pages(self, prefix: str, **options: object) -> Iterator[Mapping[str, Any]]:
        with self._request("list") as client:
            pages = client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self._bucket, Prefix=prefix, **options)

    @contextmanager
    def _request(self, verb: str, name: str = "") -> Iterator[Any]:
        client = self._client  # first: without boto3 there are no errors to name either
        with request(verb, self.where(name) if name else str(self)):
            yield client

    def _head(self, name: str) -> Mapping[str, Any]:
        with self._request("read", name) as client:
            found: Mapping[str, Any] = client.head_object(**self._target(name))
        return found

    def _read(self, name: str) -> bytes:
        with self._request("read", name) as client:
            data: bytes = client.get_object(**self._target(name))["Body"].read()
        return data

    def _put_if_absent(self, name: str, send: Send, data: bytes) -> bool:
        try:
            self._publish(name, io.BytesIO(data), send)
        except FileExistsError:
            return False
        return True

    def _publish(self, name: str, file: io.BufferedIOBase, send: Send) -> None:
        """Send a new object; raises FileExistsError where another writer has taken the name."""
        token = uuid.uuid4().hex
        options = self._target(name) | {"Metadata": {_WRITER: token}}
        for pause in (*_PAUSES_S, None):
            try:
                with self._request("write", name) as client:
                    send(client, options, file)
                return
            except FileExistsError:
                if self._writer(name) != token:
                    raise
                return  # an attempt whose answer was lost had made it
            except Conflict:
                if pause is None:
                    raise
                time.sleep(pause)

    def _writer(self, name: str) -> str | None:
        try:
            metadata: Mapping[str, str] = self._head(name)["Metadata"]
        except FileNotFoundError:
            return None
        return metadata.get(_WRITER)

    @contextmanager
    def _fetch(self, name: str, size: int) -> Iterator[io.BufferedRandom]:
        found = int(self._head(name)["ContentLength"])
        if found != size:
            raise wrong_size(self.where(name), size, found)
        with scratch(size) as file:
            with self._request("read", name) as client:
                client.download_fileobj(**self._target(name), Fileobj=file)
            if (found := length(file)) != size:
                raise wrong_size(self.where(name), size, found)
            file.flush()
            file.seek(0)
            yield file
