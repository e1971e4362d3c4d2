"""A run on partition servers, where machines share no storage: `Place` over `FarFolder`.

Files of partition i lie on server i modulo the number of servers, everything else on the first;
with replicas, files of partitions and relations lie on the servers after it too. A server that
does not answer is asked again for a while; reads go on with a replica. Knows nothing of what files
hold.
"""

from __future__ import annotations

import errno
import io
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from operator import methodcaller
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from biggraph.errors import ConfigError, FormatError, InputError, LinkLost, StorageError
from biggraph.sections import parse_duration
from biggraph.storage import fsops
from biggraph.storage.far_folder import BLOCK, PURPOSE, FarFolder
from biggraph.storage.flight import Caller, is_loopback, read_pem, token
from biggraph.storage.place import check_inside, wrong_size
from biggraph.storage.scratch import length, scratch
from biggraph.storage.secret import SECRET_VARIABLE, environment_secret, read_secret

T = TypeVar("T")

_FORM = "flight://host:port[,host:port…]/run[?replicas=2]"
_ADDRESS = re.compile(r"flight://([^/?]+)/([^?\0]+?)/*(?:\?(.*))?")
_SERVER = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:,]+)):(\d{1,5})")
_PARTITION = re.compile(r"parts/[^/]+/(\d+)/")
_DATA = ("parts/", "relations/")  # files that replicas are kept of
_PAUSE_S = 0.2  # between two rounds of attempts
_AVOID_S = 10.0  # how long a server that did not answer is asked last


class Options(NamedTuple):
    """What follows the question mark of an address.

    Args:
        replicas: servers that have each data file.
        wait_s: how long servers that do not answer are asked again.
        secret_file: default: the environment's secret.
        tls_ca: PEM of the servers' certificate, or of who signed it; required beyond loopback.
    """

    replicas: int = 1
    wait_s: float = 60.0
    secret_file: Path | None = None
    tls_ca: Path | None = None


class Far:
    """The files of a run on partition servers; see `Place` for the methods.

    Args:
        servers: host and port of each; their order and number decide where files lie.
        run: name of the run's folder there.
        options: see there.
    """

    def __init__(self, servers: list[tuple[str, int]], run: str, options: Options) -> None:
        self._servers, self._run, self._options = servers, run, options
        self._avoided = [0.0] * len(servers)  # until when each is asked last

    @classmethod
    def parse(cls, address: str) -> Far:
        """Return the place of an address such as "flight://a:7070,b:7070/run?replicas=2".

        Raises:
            InputError: not of that form.
        """
        match = _ADDRESS.fullmatch(address)
        found = [_SERVER.fullmatch(server) for server in match[1].split(",")] if match else []
        if match is None or not all(found) or {"", ".", ".."} & set(match[2].split("/")):
            raise InputError(f"{address}: expected an address of the form {_FORM}")
        servers = [(m[1] or m[2], int(m[3])) for m in found if m]
        if not all(0 < port < 65536 for _, port in servers):
            raise InputError(f"{address}: ports are numbers from 1 to 65535")
        if len(set(servers)) < len(servers):
            raise InputError(f"{address}: names a server twice")
        return cls(servers, match[2], _options(address, match[3] or "", len(servers)))

    def __str__(self) -> str:
        servers = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in
                   self._servers)  # fmt: skip
        return f"flight://{','.join(servers)}/{self._run}"

    def where(self, name: str) -> str:
        """Return the address of a name, for messages."""
        return f"{self}/{name}"

    def exists(self) -> bool:
        """Tell whether the first server has a folder of this run."""
        return self._patiently(self._folders[0].exists)

    def check_put_if_absent(self) -> None:
        """Refuse servers whose file systems let two writers have the same name."""
        for folder in self._folders:
            self._patiently(folder.check_put_if_absent)

    def lock(self) -> Callable[[], None]:
        """Keep nobody away: where two write, the log lets one of them go on."""
        return lambda: None

    def make_folder(self, name: str) -> None:
        """Do nothing: servers make the folders of files that come."""

    def remove_folder(self, name: str) -> None:
        """Remove a folder from every server, as far as it holds no file."""
        for folder in self._folders:
            self._patiently(partial(folder.remove_folder, name))

    @contextmanager
    def create(self, name: str, room: int) -> Iterator[io.BufferedIOBase]:
        """Write a new file, by way of an unnamed local one; every replica has it in the end."""
        holders = self._holders(name)
        with scratch(room) as file:
            yield file
            size, request = length(file), uuid.uuid4().hex
            for index in reversed(holders):  # who looks at the first one finds it complete
                folder = self._folders[index]
                upload = partial(folder.upload, name, file, size, request)
                if not self._claim(upload, partial(folder.holds, name, file, size)):
                    taken = f"exists already on {folder}"
                    raise FileExistsError(errno.EEXIST, taken, self.where(name))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Publish a file on the first server, unless the name is taken."""
        folder, request = self._folders[self._holders(name)[0]], uuid.uuid4().hex
        put = partial(folder.put_if_absent, name, data, request)
        return self._claim(put, partial(folder.holds, name, io.BytesIO(data), len(data)))

    def replace(self, name: str, data: bytes) -> None:
        """Put this content under the name."""
        folder = self._folders[self._holders(name)[0]]
        self._patiently(lambda: folder.replace(name, data))

    @contextmanager
    def open(self, name: str, size: int) -> Iterator[io.BufferedIOBase]:
        """Copy a file into an unnamed local one to read."""
        with self._fetch(name, size) as file:
            yield file

    def map(self, name: str, size: int) -> NDArray[np.uint8]:
        """Copy a file into an unnamed local one that lasts as long as the array."""
        with self._fetch(name, size) as file:
            return fsops.map_file(file, size)

    def read(self, name: str) -> bytes:
        """Return the content of a small file."""
        return self._read(name, lambda folder: folder.read(name))

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, or None where there is none."""
        try:
            return self._size(name)
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Return the name of every file below a folder, sorted."""
        if not f"{folder}/".startswith(_DATA):
            return self._patiently(lambda: self._folders[0].names(folder))
        return self._patiently(lambda: self._gather(methodcaller("names", folder)))

    def top(self) -> list[str]:
        """Return what lies directly in the run's folders, sorted; folders end with a slash."""
        return self._patiently(lambda: self._gather(methodcaller("top")))

    def remove(self, name: str) -> None:
        """Remove a file from every server that has it."""
        for index in self._holders(name):
            self._patiently(partial(self._folders[index].remove, name))

    @cached_property
    def _folders(self) -> list[FarFolder]:
        secret_file, tls_ca = self._options.secret_file, self._options.tls_ca
        secret = read_secret(secret_file) if secret_file else environment_secret()
        if secret is None:
            raise ConfigError(
                f"{self}: no secret of its servers; set {SECRET_VARIABLE}, or add "
                "?secret_file=PATH to the address"
            )
        exposed = [host for host, _ in self._servers if not is_loopback(host)]
        if exposed and tls_ca is None:
            raise ConfigError(
                f"{self}: {exposed[0]} is another machine; add ?tls_ca=PATH, the certificate of "
                "the servers or of who signed it, to the address"
            )
        certificate = read_pem(tls_ca, "tls_ca") if tls_ca else None
        shown = token(secret, PURPOSE)
        callers = [Caller(server, shown, certificate) for server in self._servers]
        return [FarFolder(caller, self._run, str(self)) for caller in callers]

    def _holders(self, name: str) -> list[int]:
        """Return which servers have a file, the one that counts first."""
        check_inside(self, name)
        match = _PARTITION.match(name)
        first = int(match[1]) if match else 0
        copies = self._options.replicas if name.startswith(_DATA) else 1
        return [(first + copy) % len(self._servers) for copy in range(copies)]

    def _patiently(self, attempt: Callable[[], T]) -> T:
        deadline = time.monotonic() + self._options.wait_s
        while True:
            try:
                return attempt()
            except LinkLost as error:
                if time.monotonic() >= deadline:
                    raise StorageError(
                        f"{self}: a partition server has not answered for "
                        f"{self._options.wait_s:g} s ({error}); start it again with `biggraph "
                        "partition-server`, then resume"
                    ) from error
            time.sleep(_PAUSE_S)

    def _claim(self, attempt: Callable[[], bool | None], holds: Callable[[], bool]) -> bool:
        """Return whether a name was free and is now one's own.

        Args:
            attempt: tells it, or None: it got on, and wants as much time again.
            holds: tells whether what has the name is the same. It counts after a lost answer: a
                server that was killed and started again no longer knows whose file it took.
        """
        lost = False

        def once() -> bool | None:
            nonlocal lost
            try:
                return attempt()
            except FileExistsError:
                return False
            except LinkLost:
                lost = True
                raise

        while (won := self._patiently(once)) is None:
            pass
        return won or (lost and self._patiently(holds))

    def _size(self, name: str, expected: int | None = None) -> int:
        def look(folder: FarFolder) -> int:
            if (found := folder.size(name)) is None:
                raise FileNotFoundError(errno.ENOENT, "no such file", self.where(name))
            if expected is not None and found != expected:
                raise wrong_size(self.where(name), expected, found)
            return found

        return self._read(name, look)

    def _read(self, name: str, attempt: Callable[[FarFolder], T]) -> T:
        """Read from a server that has the file; missing or damaged only if all say so."""
        return self._patiently(lambda: self._read_once(name, attempt))

    def _read_once(self, name: str, attempt: Callable[[FarFolder], T]) -> T:
        now = time.monotonic()
        lost: LinkLost | None = None
        missing: FileNotFoundError | FormatError | None = None
        for index in sorted(self._holders(name), key=lambda index: self._avoided[index] > now):
            try:
                return attempt(self._folders[index])
            except (FileNotFoundError, FormatError) as error:
                missing = missing or error
            except LinkLost as error:
                lost, self._avoided[index] = error, now + _AVOID_S
        if lost is not None:
            raise lost
        assert missing is not None
        raise missing

    def _gather(self, attempt: Callable[[FarFolder], list[str]]) -> list[str]:
        """Return names of all servers; so many may be lost as leave one replica of each file."""
        found: set[str] = set()
        lost = 0
        for index, folder in enumerate(self._folders):
            try:
                found.update(attempt(folder))
            except LinkLost:
                lost += 1
                if index == 0 or lost >= self._options.replicas:
                    raise
        return sorted(found)

    @contextmanager
    def _fetch(self, name: str, size: int) -> Iterator[io.BufferedRandom]:
        self._size(name, size)
        with scratch(size) as file:
            for position in range(0, size, BLOCK):
                read = methodcaller("read_block", name, position, size)
                file.write(self._read(name, read))
            file.flush()
            file.seek(0)
            yield file


def _options(address: str, query: str, servers: int) -> Options:
    given = parse_qsl(query, keep_blank_values=True)
    values = dict(given)
    known = {"replicas", "wait", "secret_file", "tls_ca"}
    if len(values) < len(given) or not values.keys() <= known:
        raise InputError(
            f"{address}: after the question mark, each once: {', '.join(sorted(known))}"
        )
    try:
        replicas, wait_s = int(values.get("replicas", "1")), parse_duration(values.get("wait", 60))
    except ValueError as error:
        raise InputError(f"{address}: {error}") from None
    if not 1 <= replicas <= servers:
        raise InputError(f"{address}: replicas = {replicas}, but {servers} servers")
    paths = [Path(values[key]) if values.get(key) else None for key in ("secret_file", "tls_ca")]
    return Options(replicas, wait_s, *paths)
