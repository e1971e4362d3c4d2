"""Hosts as network namespaces on one switch, whose cables a test may cut. Needs root and `ip`."""

import os
import shutil
import subprocess

HOSTS = ("c", "w0", "w1")


def missing() -> str | None:
    """Return why there can be no namespaces here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    tools = [tool for tool in ("ip", "iptables") if shutil.which(tool) is None]
    if tools:
        return f"needs {' and '.join(tools)}"
    name = f"bg{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    _run("ip", "netns", "del", name)
    return None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class Net:
    """A switch and the hosts on it."""

    def __init__(self) -> None:
        self._prefix = f"bg{os.getpid()}"
        self._made: list[str] = []
        self.switch = self._namespace("switch")
        self._in(self.switch, "ip", "link", "add", "bridge", "type", "bridge")
        self._in(self.switch, "ip", "link", "set", "bridge", "up")
        for number, host in enumerate(HOSTS, start=1):
            self._plug_in(host, number)

    def address(self, host: str) -> str:
        """Return the address of a host."""
        return f"10.77.0.{HOSTS.index(host) + 1}"

    def namespace(self, host: str) -> str:
        """Return the name of a host's namespace."""
        return f"{self._prefix}{host}"

    def cut(self, host: str, way: str) -> None:
        """Cut a host off: "both" ways, or only what goes "out" or comes "in"."""
        if way == "both":
            self._in(self.switch, "ip", "link", "set", f"to-{host}", "down")
        else:
            self._filter("-A", host, way)

    def heal(self, host: str, way: str) -> None:
        """Undo `cut`."""
        if way == "both":
            self._in(self.switch, "ip", "link", "set", f"to-{host}", "up")
        else:
            self._filter("-D", host, way)

    def close(self) -> None:
        """Remove everything."""
        for name in self._made:
            _run("ip", "netns", "del", name)

    def _namespace(self, host: str) -> str:
        name = self.namespace(host)
        _run("ip", "netns", "add", name)
        self._made.append(name)
        self._in(name, "ip", "link", "set", "lo", "up")
        return name

    def _plug_in(self, host: str, number: int) -> None:
        name = self._namespace(host)
        port = f"to-{host}"
        self._in(
            self.switch, "ip", "link", "add", port, "type", "veth", "peer", "eth0", "netns", name
        )
        self._in(self.switch, "ip", "link", "set", port, "master", "bridge", "up")
        self._in(name, "ip", "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
        self._in(name, "ip", "link", "set", "eth0", "up")

    def _filter(self, action: str, host: str, way: str) -> None:
        chain, option = ("OUTPUT", "-o") if way == "out" else ("INPUT", "-i")
        name = self.namespace(host)
        self._in(name, "iptables", action, chain, option, "eth0", "-j", "DROP")

    @staticmethod
    def _in(namespace: str, *command: str) -> None:
        _run("ip", "netns", "exec", namespace, *command)
