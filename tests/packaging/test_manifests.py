"""Kubernetes manifests: valid where a schema is at hand, and consistent by rules of our own."""

import copy
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from biggraph.config import load_config

yaml = pytest.importorskip("ruamel.yaml", reason="needs ruamel.yaml, which the dev extra installs")

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "docker/kubernetes"
WITH_SERVERS = ["jobs-parameter-servers", "jobset-parameter-servers"]
VARIANTS = ["jobs", "jobset", *WITH_SERVERS]
RUN = KUBERNETES / "common/run.toml"
SERVER = "parameter-server"
ROLES = {"coordinator", "worker", SERVER}
SEPARATE = "cluster.parameter_servers="
LABEL = "app.kubernetes.io/"

Object = dict[str, Any]


def parse(text: str) -> list[Any]:
    """Return the documents of a YAML text; duplicate keys are errors."""
    return list(yaml.YAML(typ="safe", pure=True).load_all(text))


def built(variant: str) -> list[Object]:
    """Return the objects that a kustomization collects, without kustomize itself."""
    folders, objects, patches = [KUBERNETES / variant], [], []
    for folder in folders:
        (kustomization,) = parse((folder / "kustomization.yaml").read_text())
        for name in kustomization["resources"]:
            path = folder / name
            if path.is_dir():
                folders.append(path)
            else:
                objects += parse(path.read_text())
        for kind, key in (("ConfigMap", "configMapGenerator"), ("Secret", "secretGenerator")):
            for made in kustomization.get(key, []):
                data = dict.fromkeys(made.get("files", []), "")
                data |= {"BIGGRAPH_SECRET": ""} if "envs" in made else {}
                objects.append({"kind": kind, "metadata": {"name": made["name"]}, "data": data})
        for patch in kustomization.get("patches", []):
            text = patch.get("patch") or (folder / patch["path"]).read_text()
            patches.append((patch["target"], parse(text)[0]))
    for target, operations in patches:
        for found in objects:
            if found["kind"] == target["kind"]:
                add_to(found, operations)
    return objects


def add_to(found: Object, operations: list[Object]) -> None:
    """Apply a JSON patch that only appends to lists."""
    for operation in operations:
        *path, last = operation["path"].strip("/").split("/")
        node: Any = found
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node[part]
        assert (operation["op"], last) == ("add", "-")
        node.append(copy.deepcopy(operation["value"]))


def jobs(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Yield name and specification of every Job, those inside JobSets too."""
    for found in objects:
        if found["kind"] == "Job":
            yield found["metadata"]["name"], found["spec"]
        if found["kind"] == "JobSet":
            for job in found["spec"]["replicatedJobs"]:
                yield job["name"], job["template"]["spec"]


def named(objects: list[Object], kind: str) -> dict[str, Object]:
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def matches(selector: Object, labels: Object) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def volume_problems(pod: Object, container: Object, objects: list[Object]) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    if set(mounts) != set(volumes):
        yield f"volumes {sorted(volumes)} but mounts {sorted(mounts)}"
    for volume in volumes.values():
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        config = volume.get("configMap", {}).get("name")
        if claim and claim not in named(objects, "PersistentVolumeClaim"):
            yield f"no claim {claim}"
        if config and config not in named(objects, "ConfigMap"):
            yield f"no config map {config}"
    writable = [volumes[n] for n, path in mounts.items() if path == "/tmp" and n in volumes]
    if not writable or "emptyDir" not in writable[0]:
        yield "nothing writable at /tmp"


def environment_problems(container: Object, objects: list[Object]) -> Iterator[str]:
    names = [entry["name"] for entry in container["env"]]
    for entry in container["env"]:
        if wanted := entry.get("valueFrom", {}).get("secretKeyRef"):
            secret = named(objects, "Secret").get(wanted["name"])
            if secret is None or wanted["key"] not in secret["data"]:
                yield f"no secret {wanted['name']} with {wanted['key']}"
        used = re.findall(r"\$\((\w+)\)", entry.get("value", ""))
        if set(used) - set(names[: names.index(entry["name"])]):
            yield f"{entry['name']} uses {used} before they are set"
        if "SECRET" in entry["name"] and "value" in entry:
            yield "a secret in plain sight"
    used = re.findall(r"\$\((\w+)\)", " ".join(container["args"]))
    if set(used) - set(names):
        yield f"the arguments use {used}, which are not set"


def security_problems(pod: Object, container: Object) -> Iterator[str]:
    inside, outside = container["securityContext"], pod["securityContext"]
    if not outside.get("runAsNonRoot") or not outside.get("runAsUser"):
        yield "may run as root"
    if outside.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if inside.get("allowPrivilegeEscalation") is not False or not inside.get(
        "readOnlyRootFilesystem"
    ):
        yield "may gain privileges or write its root file system"
    if inside.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps capabilities"
    if pod.get("automountServiceAccountToken") is not False:
        yield "gets a token for the cluster"
    if pod.get("terminationGracePeriodSeconds", 0) < 60:
        yield "too little time to release the lease"


def failure_problems(role: str, spec: Object) -> Iterator[str]:
    if spec["template"]["spec"]["restartPolicy"] != "Never":
        yield "podFailurePolicy takes restartPolicy Never"
    rules = spec.get("podFailurePolicy", {}).get("rules", [])
    disrupted = {"type": "DisruptionTarget", "status": "True"}
    if not rules or rules[0] != {"action": "Ignore", "onPodConditions": [disrupted]}:
        yield "a drained node counts as a failure"
    codes = {"containerName": role, "operator": "In", "values": [2]}
    if {"action": "FailJob", "onExitCodes": codes} not in rules:
        yield "a mistake in the run file is repeated"
    if not spec.get("backoffLimit", spec.get("backoffLimitPerIndex")):
        yield "a crash is not repeated"


def job_problems(spec: Object, objects: list[Object]) -> Iterator[str]:
    template = spec["template"]
    (container,) = template["spec"]["containers"]
    role = template["metadata"]["labels"].get(LABEL + "component")
    if role not in ROLES or container["name"] != role or container["args"][0] != role:
        yield f"role {role}, container {container['name']}, verb {container['args'][0]}"
    if container["args"][1] != "/config/run.toml":
        yield "not the run file of the config map"
    if not {"cpu", "memory"} <= container["resources"]["requests"].keys():
        yield "no resources requested"
    yield from volume_problems(template["spec"], container, objects)
    yield from environment_problems(container, objects)
    yield from security_problems(template["spec"], container)
    yield from failure_problems(role, spec)


def network_problems(objects: list[Object]) -> Iterator[str]:
    pods = [spec["template"]["metadata"]["labels"] for _, spec in jobs(objects)]
    port = tomllib.loads(RUN.read_text())["cluster"]["port"]
    for service in named(objects, "Service").values():
        selected = [labels for labels in pods if matches(service["spec"]["selector"], labels)]
        if [labels[LABEL + "component"] for labels in selected] != ["coordinator"]:
            yield "the service does not select the coordinator alone"
        if [entry["port"] for entry in service["spec"]["ports"]] != [port]:
            yield f"the service has another port than cluster.port = {port}"
        if service["spec"]["clusterIP"] != "None":
            yield "the service is not headless"
    ports = [
        entry["containerPort"]
        for _, spec in jobs(objects)
        for entry in spec["template"]["spec"]["containers"][0].get("ports", [])
    ]
    if ports != [port]:
        yield f"the coordinator declares {ports}, cluster.port is {port}"
    allowed = set()
    for policy in named(objects, "NetworkPolicy").values():
        for target in pods:
            if not matches(policy["spec"]["podSelector"]["matchLabels"], target):
                continue
            for rule in policy["spec"]["ingress"]:
                for peer in rule.get("from", [{}]):
                    labels = peer.get("podSelector", {}).get("matchLabels", {})
                    sources = [pod[LABEL + "component"] for pod in pods if matches(labels, pod)]
                    sources = sources if labels else ["anyone"]
                    allowed |= {(source, target[LABEL + "component"]) for source in sources}
    roles = {pod[LABEL + "component"] for pod in pods}
    served = {(role, "worker") for role in roles - {"worker"}}
    if allowed != served | {pair[::-1] for pair in served}:
        yield f"connections allowed: {sorted(allowed)}"


def pods_of(role: str, objects: list[Object]) -> int:
    """Return how many pods of a role are started."""
    sets = [found["spec"]["replicatedJobs"] for found in named(objects, "JobSet").values()]
    replicas = {job["name"]: job["replicas"] for found in sets for job in found}
    return sum(
        replicas.get(name, 1) * spec.get("completions", 1)
        for name, spec in jobs(objects)
        if spec["template"]["metadata"]["labels"][LABEL + "component"] == role
    )


def server_problems(objects: list[Object]) -> Iterator[str]:
    """Yield what is wrong with the number of parameter servers."""
    started, said = pods_of(SERVER, objects), set()
    for _, spec in jobs(objects):
        arguments = spec["template"]["spec"]["containers"][0]["args"]
        said.add(tuple(word for word in arguments if word.startswith(SEPARATE)))
        if arguments[0] == SERVER and "--index=$(INDEX)" not in arguments:
            yield "a parameter server without its index"
    if said != ({(f"{SEPARATE}{started}",)} if started else {()}):
        yield f"{started} parameter servers, and overrides {sorted(said)}"


def problems(objects: list[Object]) -> list[str]:
    """Return everything that our rules find in the objects of one launch."""
    found = [
        f"{name}: {text}" for name, spec in jobs(objects) for text in job_problems(spec, objects)
    ]
    containers = [spec["template"]["spec"]["containers"][0] for _, spec in jobs(objects)]
    if len({container["image"] for container in containers}) != 1:
        found.append("more than one image")
    if any(not re.fullmatch(r"[\w./-]+:\d[\w.-]*", c["image"]) for c in containers):
        found.append("an image without a version")
    return [*found, *network_problems(objects), *server_problems(objects)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_manifests_fit_together(variant: str) -> None:
    objects = built(variant)
    assert {
        spec["template"]["metadata"]["labels"][LABEL + "component"] for _, spec in jobs(objects)
    } == (ROLES if variant in WITH_SERVERS else ROLES - {SERVER})
    assert problems(objects) == []


def _job(objects: list[Object], role: str = "worker") -> Object:
    specs = [spec for _, spec in jobs(objects)]
    (found,) = [s for s in specs if s["template"]["spec"]["containers"][0]["name"] == role]
    return found


def _pod(objects: list[Object]) -> Object:
    return _job(objects)["template"]["spec"]


BREAKS: dict[str, tuple[Callable[[list[Object]], Any], str]] = {
    "image": (lambda o: _pod(o)["containers"][0].update(image="other:1"), "more than one image"),
    "latest": (lambda o: _pod(o)["containers"][0].update(image="biggraph:latest"), "a version"),
    "port": (lambda o: named(o, "Service").popitem()[1]["spec"]["ports"][0].update(port=1), "port"),
    "mount": (lambda o: _pod(o)["volumes"].pop(0), "volumes"),
    "claim": (
        lambda o: _pod(o)["volumes"][0]["persistentVolumeClaim"].update(claimName="x"),
        "no claim x",
    ),
    "secret": (
        lambda o: _pod(o)["containers"][0]["env"][-1]["valueFrom"]["secretKeyRef"].update(key="x"),
        "no secret biggraph-secret with x",
    ),
    "plain": (
        lambda o: _pod(o)["containers"][0]["env"].append({"name": "A_SECRET", "value": "x"}),
        "in plain sight",
    ),
    "order": (lambda o: _pod(o)["containers"][0]["env"].pop(0), "before they are set"),
    "verb": (lambda o: _pod(o)["containers"][0]["args"].__setitem__(0, "train"), "verb train"),
    "root": (lambda o: _pod(o)["securityContext"].pop("runAsUser"), "root"),
    "grace": (lambda o: _pod(o).pop("terminationGracePeriodSeconds"), "too little time"),
    "retry": (lambda o: _job(o).pop("podFailurePolicy"), "is repeated"),
    "policy": (
        lambda o: named(o, "NetworkPolicy")["biggraph-worker"]["spec"]["ingress"].append({}),
        "anyone",
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", BREAKS)
def test_what_does_not_fit_is_found(variant: str, name: str) -> None:
    objects = copy.deepcopy(built(variant))
    spoil, message = BREAKS[name]
    spoil(objects)
    assert any(message in problem for problem in problems(objects))


@pytest.mark.parametrize("variant", WITH_SERVERS)
@pytest.mark.parametrize("role", sorted(ROLES))
def test_all_agree_on_the_number_of_parameter_servers(variant: str, role: str) -> None:
    objects = copy.deepcopy(built(variant))
    arguments = _job(objects, role)["template"]["spec"]["containers"][0]["args"]
    arguments[arguments.index(f"{SEPARATE}2")] = f"{SEPARATE}3"
    assert any("2 parameter servers, and" in problem for problem in problems(objects))


def test_a_worker_keeps_its_name_when_it_is_replaced() -> None:
    index = {
        "jobs": "metadata.annotations['batch.kubernetes.io/job-completion-index']",
        "jobset": "metadata.annotations['jobset.sigs.k8s.io/job-index']",
    }
    for variant in VARIANTS:
        kind = variant.split("-")[0]
        env = {entry["name"]: entry for entry in _pod(built(variant))["containers"][0]["env"]}
        assert env["INDEX"]["valueFrom"]["fieldRef"]["fieldPath"] == index[kind]
        assert env["BIGGRAPH_WORKER"]["value"] == "worker-$(INDEX)"


def test_workers_fail_and_recover_one_by_one() -> None:
    workers = dict(jobs(built("jobs")))["biggraph-workers"]
    assert workers["completionMode"] == "Indexed"
    assert workers["completions"] == workers["parallelism"] > 1
    assert workers["backoffLimitPerIndex"] > 0
    (jobset,) = named(built("jobset"), "JobSet").values()
    actions = [rule["action"] for rule in jobset["spec"]["failurePolicy"]["rules"]]
    assert actions == ["FailJobSet", "RestartJob"]
    assert [job["replicas"] for job in jobset["spec"]["replicatedJobs"]] == [1, 3]


@pytest.mark.parametrize("path", [RUN, ROOT / "docker/run.toml"], ids=str)
def test_the_run_files_load(path: Path) -> None:
    config = load_config(path)
    assert config.checkpoint.path == "/data/runs/first"
    assert config.cluster.bind == "127.0.0.1"  # the launchers say what else


def test_workers_use_the_threads_that_their_containers_have() -> None:
    wanted = load_config(RUN).train.threads
    for variant in VARIANTS:
        requests = _pod(built(variant))["containers"][0]["resources"]["requests"]
        assert int(requests["cpu"]) == wanted
    (compose,) = parse((ROOT / "docker/compose.yaml").read_text())
    cpus = compose["services"]["worker"]["deploy"]["resources"]["limits"]["cpus"]
    assert int(cpus) == load_config(ROOT / "docker/run.toml").train.threads


def rendered(variant: str, tmp_path: Path) -> list[Object]:
    """Return what kubectl itself makes of a kustomization, with a secret."""
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("needs kubectl")
    folder = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    (folder / "common/secret.env").write_text("BIGGRAPH_SECRET=0123456789abcdef\n")
    done = subprocess.run(
        [kubectl, "kustomize", folder / variant], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return parse(done.stdout)


@pytest.mark.parametrize("variant", VARIANTS)
def test_kustomize_builds_the_same_objects(variant: str, tmp_path: Path) -> None:
    objects = rendered(variant, tmp_path)
    assert problems(objects) == []
    ours = sorted((o["kind"], o["metadata"]["name"]) for o in built(variant))
    assert sorted((o["kind"], o["metadata"]["name"]) for o in objects) == ours
    assert all(found["metadata"]["namespace"] == "biggraph" for found in objects)


def test_kustomize_refuses_to_build_without_a_secret(tmp_path: Path) -> None:
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("needs kubectl")
    folder = shutil.copytree(
        KUBERNETES, tmp_path / "kubernetes", ignore=shutil.ignore_patterns("secret.env")
    )
    done = subprocess.run([kubectl, "kustomize", folder / "jobs"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "secret.env" in done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_objects_follow_the_schema_of_kubernetes(variant: str, tmp_path: Path) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    checked = 0
    for found in rendered(variant, tmp_path):
        if found["kind"] != "JobSet":
            validator.validate(found, "1.33", strict=True)
            checked += 1
    assert checked >= 6


@pytest.mark.parametrize("variant", ["jobset", "jobset-parameter-servers"])
def test_the_jobset_follows_its_api(variant: str) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="needs kubeflow-trainer-api")
    (jobset,) = named(built(variant), "JobSet").values()
    model = models.JobsetV1alpha2JobSet.from_dict(copy.deepcopy(jobset))
    assert model.to_dict() == jobset  # what the model does not know would be missing
