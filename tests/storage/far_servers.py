"""Partition servers of a test, which may be stopped and started again where they were."""

from pathlib import Path

from biggraph.dist.partition_server import PartitionServer

SECRET = b"a secret of the tests"


class Servers:
    """As many servers as asked for, each with a folder of its own.

    Args:
        folder: above those folders.
        count: of servers.
    """

    def __init__(self, folder: Path, count: int):
        self.folders = [folder / f"server-{index}" for index in range(count)]
        self.running: list[PartitionServer | None] = [None] * count
        self.ports = [0] * count
        for index in range(count):
            self.start(index)

    def start(self, index: int) -> None:
        server = self.running[index] = PartitionServer(self.folders[index])
        self.ports[index] = server.open(SECRET, "127.0.0.1", self.ports[index], None)

    def stop(self, index: int) -> None:
        if (server := self.running[index]) is not None:
            self.running[index] = None
            server.close()

    def address(self, run: str = "runs/a", options: str = "") -> str:
        listed = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"flight://{listed}/{run}{options}"

    def files(self, index: int, run: str = "runs/a") -> set[str]:
        root = self.folders[index] / run
        return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}

    def close(self) -> None:
        for index in range(len(self.running)):
            self.stop(index)
