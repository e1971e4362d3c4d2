"""A partition server: the files of runs below one folder, for clients on other machines.

Every file goes in and out through `Folder`, so what that promises holds for clients. Knows nothing
of what files hold, nor of other servers.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from biggraph.dist.flight_server import ActionServer, Call, Tls, Unanswered, serve_actions
from biggraph.dist.uploads import BrokenOff, Done, Uploads
from biggraph.errors import BigGraphError, FormatError, StorageError
from biggraph.storage import fsops
from biggraph.storage.far_folder import BLOCK, BROKEN_OFF, MAX_HEAD, MISSING, PURPOSE, SMALL, TAKEN
from biggraph.storage.flight import join, split, token
from biggraph.storage.folder import Folder
from biggraph.storage.place import check_inside

_LOG = logging.getLogger(__name__)

Answer = tuple[Mapping[str, Any], bytes]  # JSON values, and data


class Request(BaseModel):
    """What a client asks for; which fields count depends on the action.

    Args:
        run: name of the run's folder.
        name: of a file or a folder in it.
        token: of this request or upload.
        position: of a block.
        size: of a file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    run: str = Field(max_length=4096)
    name: str = Field("", max_length=4096)
    token: str = Field("", max_length=200)
    position: int = Field(0, ge=0, lt=2**63)
    size: int = Field(0, ge=0, lt=2**63)


class PartitionServer:
    """Serves the folders of runs below one folder, after `open`.

    Args:
        root: path of the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = Folder(root)
        self._uploads = Uploads()
        self._put = Done()
        self._turn = threading.Lock()  # one small file at a time
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()
        self._server: ActionServer | None = None

    def open(self, secret: bytes, bind: str, port: int, tls: Tls | None) -> int:
        """Listen on one address and answer from now on; return the port.

        Args:
            secret: that clients have too.
            bind: address to listen on.
            port: 0 for any that is free.
            tls: required beyond loopback.

        Raises:
            ConfigError: cannot listen there, or must not.
            StorageError: the folder cannot be made.
        """
        self._root.make_folder("")
        actions: dict[str, Callable[[Folder, Request, memoryview], Answer]] = {
            "exists": self._exists, "check": self._check, "remove_folder": self._remove_folder,
            "names": self._names, "top": self._top, "size": self._size, "read": self._read,
            "read_block": self._read_block, "put_if_absent": self._put_if_absent,
            "replace": self._replace, "remove": self._remove, "begin": self._begin,
            "write": self._write, "publish": self._publish,
        }  # fmt: skip
        answers = {name: partial(self._answer, action) for name, action in actions.items()}
        shown = token(secret, PURPOSE)
        self._server = serve_actions(answers, shown, bind, port, tls, "--")
        return int(self._server.port)

    @property
    def refused(self) -> Counter[str]:
        """Requests that did not count, by reason."""
        with self._lock:
            found = Counter(self._refused)
        if self._server is not None and self._server.refused:
            found["token"] += self._server.refused
        return found

    def close(self) -> None:
        """Stop listening, and give up what was coming."""
        if self._server is not None:
            self._server.close()
        self._uploads.close()

    def _answer(self, action: Callable[[Folder, Request, memoryview], Answer], call: Call) -> bytes:
        try:
            head, data = split(call.body, MAX_HEAD)
            request = Request.model_validate_json(head)
        except (ValueError, ValidationError):
            raise self._refusal("not a request") from None
        if len(data) > SMALL:
            raise self._refusal("oversized")
        if call.left():
            raise Unanswered("too late")
        try:
            fields, content = action(self._folder(request), request, data)
        except FileNotFoundError:
            fields, content = {"error": MISSING}, b""
        except FileExistsError:
            fields, content = {"error": TAKEN}, b""
        except BrokenOff as error:
            fields, content = {"error": BROKEN_OFF, "message": str(error)}, b""
        except BigGraphError as error:
            kind = "FormatError" if isinstance(error, FormatError) else "StorageError"
            fields, content = {"error": kind, "message": str(error)}, b""
        return join(json.dumps(fields).encode(), content)

    def _refusal(self, reason: str) -> Unanswered:
        with self._lock:
            self._refused[reason] += 1
        _LOG.warning("refused a request: %s", reason)
        return Unanswered(f"refused: {reason}")

    def _folder(self, request: Request) -> Folder:
        """Return the run's folder; refuses what leads outside, through symbolic links too."""
        folder = Folder(self._root.root / request.run)
        try:
            check_inside(self._root, request.run)
            if request.name:
                check_inside(folder, request.name)
            root, target = self._root.root.resolve(), (folder.root / request.name).resolve()
            if root not in target.parents:
                raise FormatError(f"{target}: leads outside")
        except (FormatError, ValueError):
            raise self._refusal("leads outside") from None
        return folder

    def _exists(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        return {"found": folder.exists()}, b""

    def _check(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        folder.make_folder("")
        folder.check_put_if_absent()
        return {}, b""

    def _remove_folder(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        folder.remove_folder(request.name)
        return {}, b""

    def _names(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        return {}, json.dumps(folder.names(request.name)).encode()

    def _top(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        return {}, json.dumps(folder.top() if folder.exists() else []).encode()

    def _size(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        return {"found": folder.size(request.name)}, b""

    def _read(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        if (folder.size(request.name) or 0) > SMALL:
            raise StorageError(f"{folder.where(request.name)}: too large to send at once")
        return {}, folder.read(request.name)

    def _read_block(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        with folder.open(request.name, request.size) as file:
            file.seek(request.position)
            return {}, file.read(BLOCK)

    def _put_if_absent(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        with self._turn:
            if request.token in self._put:
                return {"won": True}, b""  # this very request has won before, its answer was lost
            self._make_room(folder, request)
            won = folder.put_if_absent(request.name, data.tobytes())
            if won:
                self._put.add(request.token)
            return {"won": won}, b""

    def _replace(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        with self._turn:
            self._make_room(folder, request)
            folder.replace(request.name, data.tobytes())
        return {}, b""

    def _remove(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        folder.remove(request.name)
        return {}, b""

    def _begin(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        position = self._uploads.begin(request.token, folder, request.name, request.size)
        return {"position": position}, b""

    def _write(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        return {"position": self._uploads.write(request.token, request.position, data)}, b""

    def _publish(self, folder: Folder, request: Request, data: memoryview) -> Answer:
        self._uploads.publish(request.token, request.size)
        return {}, b""

    def _make_room(self, folder: Folder, request: Request) -> None:
        fsops.make_folder((folder.root / request.name).parent)
