"""One run's files on one partition server, as its client sees them.

Every method is one attempt and raises LinkLost where the server does not answer; sending it again
does no harm. Knows nothing of other servers.
"""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from biggraph.errors import FormatError, LinkLost, StorageError
from biggraph.storage.flight import Caller, join, split

PURPOSE = "partitions"  # of the token
BLOCK = 1 << 22  # bytes of a file in one call
SMALL = 1 << 28  # most bytes of a file that goes in one call
MAX_HEAD = 1 << 16

# How errors are named in an answer.
MISSING, TAKEN, BROKEN_OFF = "missing", "taken", "broken off"

_BLOCKS = 4  # that go in one attempt
_ANSWER_S = 15.0
_SYNC_S = 120.0  # for what has to be made durable

Fields = Mapping[str, Any]  # JSON values


class FarFolder:
    """The files of a run below the folder of a partition server.

    Args:
        caller: of the server.
        run: name of the run's folder there.
        place: as users write it, for messages.
    """

    def __init__(self, caller: Caller, run: str, place: str) -> None:
        self._caller, self._run, self._place = caller, run, place

    def __str__(self) -> str:
        return str(self._caller)

    def exists(self) -> bool:
        """Tell whether the run's folder is there."""
        return bool(self._ask("exists")["found"])

    def check_put_if_absent(self) -> None:
        """Refuse a server whose file system lets two writers have the same name."""
        self._ask("check")

    def remove_folder(self, name: str) -> None:
        """Remove a folder and those below it, as far as they hold no file."""
        self._ask("remove_folder", {"name": name})

    def names(self, folder: str) -> list[str]:
        """Return the name of every file below a folder."""
        return self._list("names", {"name": folder})

    def top(self) -> list[str]:
        """Return what lies directly in the run's folder; folders end with a slash."""
        return self._list("top", {})

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, or None where there is none."""
        found: int | None = self._ask("size", {"name": name})["found"]
        return found

    def read(self, name: str) -> bytes:
        """Return the content of a small file."""
        return self._call("read", {"name": name})[1].tobytes()

    def read_block(self, name: str, position: int, size: int) -> memoryview:
        """Return up to `BLOCK` bytes of a file that has to have `size` of them."""
        fields = {"name": name, "position": position, "size": size}
        _, data = self._call("read_block", fields)
        if len(data) != min(BLOCK, size - position):
            raise LinkLost(f"{self}: {len(data):,} bytes came instead of a block")
        return data

    def put_if_absent(self, name: str, data: bytes, token: str) -> bool:
        """Publish a file, unless the name is taken.

        Args:
            name: of the file.
            data: its content.
            token: of this request; the server knows it again if it is sent twice.
        """
        fields = {"name": name, "token": token}
        return bool(self._call("put_if_absent", fields, _small(data), _SYNC_S)[0]["won"])

    def replace(self, name: str, data: bytes) -> None:
        """Put this content under the name."""
        self._call("replace", {"name": name}, _small(data), _SYNC_S)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._ask("remove", {"name": name})

    def holds(self, name: str, file: io.BufferedIOBase, size: int) -> bool:
        """Tell whether a file there has the `size` bytes of this one."""
        if self.size(name) != size:
            return False
        file.seek(0)
        blocks = (self.read_block(name, start, size) for start in range(0, size, BLOCK))
        return all(block.tobytes() == file.read(BLOCK) for block in blocks)

    def upload(self, name: str, file: io.BufferedIOBase, size: int, token: str) -> bool | None:
        """Send some blocks more of a new file; publish it and return True once all have come.

        An upload that was broken off goes on where it was.

        Args:
            name: of the file.
            file: its content.
            size: bytes of it.
            token: of this file, the same in every attempt.

        Raises:
            FileExistsError: the name is taken.
            LinkLost: no answer, or the server has forgotten the upload.
        """
        position = self._ask("begin", {"name": name, "token": token, "size": size})["position"]
        end = min(size, position + _BLOCKS * BLOCK)
        while position < end:
            file.seek(position)
            fields = {"name": name, "token": token, "position": position}
            position = self._call("write", fields, file.read(BLOCK))[0]["position"]
        if position < size:
            return None
        self._call("publish", {"name": name, "token": token, "size": size}, b"", _SYNC_S)
        return True

    def _ask(self, action: str, fields: Fields = {}) -> Fields:  # noqa: B006
        return self._call(action, fields)[0]

    def _list(self, action: str, fields: Fields) -> list[str]:
        found = json.loads(self._call(action, fields)[1].tobytes())
        return [str(name) for name in found]

    def _call(
        self, action: str, fields: Fields, data: bytes = b"", timeout_s: float = _ANSWER_S
    ) -> tuple[Fields, memoryview]:
        head = json.dumps({"run": self._run, **fields}).encode()
        answer = self._caller.call(action, join(head, data), timeout_s)
        try:
            head, content = split(answer, MAX_HEAD)
            found: dict[str, Any] = json.loads(head)
        except ValueError:
            raise LinkLost(f"{self}: answers with garbage; is it a partition server?") from None
        if "error" in found:
            self._raise(found["error"], str(found.get("message")), fields.get("name", ""))
        return found, content

    def _raise(self, kind: str, message: str, name: str) -> NoReturn:
        where = f"{self._place}/{name}"
        if kind == MISSING:
            raise FileNotFoundError(errno.ENOENT, f"no such file on {self}", where)
        if kind == TAKEN:
            raise FileExistsError(errno.EEXIST, f"exists already on {self}", where)
        if kind == BROKEN_OFF:
            raise LinkLost(f"{self}: {message}")
        raise (FormatError if kind == "FormatError" else StorageError)(f"{self}: {message}")


def _small(data: bytes) -> bytes:
    if len(data) > SMALL:
        raise StorageError(f"a file of {len(data):,} bytes to send at once; {SMALL:,} at most")
    return data
