"""deploy/k8s against the schemas of Kubernetes, and against itself: what is named is there, settings are settings.

The overlays are rendered here (resources, labels left out, and JSON patches): kustomize itself was not at hand.
"""

from functools import cache
from pathlib import Path
from typing import Any

import jsonpatch
import kubernetes_validate
import pytest
import yaml

from streams.settings import load_settings

FOLDER = Path(__file__).parents[2] / "deploy" / "k8s"
OVERLAYS = sorted((FOLDER / "overlays").iterdir())
KUBERNETES = "1.33"
FOREIGN = {"ScaledObject", "TriggerAuthentication", "PodMonitor"}
"""Of KEDA and of Prometheus' operator: their schemas are not Kubernetes' own."""

Manifest = dict[str, Any]


@cache
def rendered(folder: Path) -> tuple[Manifest, ...]:
    """All manifests of a kustomization, patched."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    found: list[Manifest] = []
    for resource in kustomization["resources"]:
        path = (folder / resource).resolve()
        if path.is_dir():
            found += rendered(path)
        else:
            found += [manifest for manifest in yaml.safe_load_all(path.read_text("utf-8")) if manifest]
    for patch in kustomization.get("patches", []):
        target = patch["target"]
        hit = [n for n, m in enumerate(found) if (m["kind"], m["metadata"]["name"]) == (target["kind"], target["name"])]
        assert hit, f"{folder.name}: nothing is {target}"
        for n in hit:
            found[n] = jsonpatch.apply_patch(found[n], yaml.safe_load(patch["patch"]))
    return tuple(found)


def of(folder: Path, kind: str) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in rendered(folder) if m["kind"] == kind}


def pods(folder: Path) -> dict[str, Manifest]:
    """Pod templates by the name of what makes them."""
    return {
        name: m["spec"]["template"] for kind in ("Deployment", "StatefulSet") for name, m in of(folder, kind).items()
    }


each_overlay = pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)


@each_overlay
def test_every_manifest_is_valid(folder: Path) -> None:
    manifests = rendered(folder)
    assert len(manifests) > 15
    for manifest in manifests:
        if manifest["kind"] not in FOREIGN:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    names = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(set(names)) == len(names)


def test_the_check_sees_a_mistake() -> None:
    worker = {**of(OVERLAYS[0], "Deployment")["haypile-worker"]}
    broken = jsonpatch.apply_patch(worker, [{"op": "add", "path": "/spec/replicaz", "value": 1}])
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


@each_overlay
def test_the_settings_are_settings_and_name_servers_that_are_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "haypile.yaml"
    file.write_text(of(folder, "ConfigMap")["haypile"]["data"]["haypile.yaml"])
    monkeypatch.setenv("HAYPILE_CONFIG", str(file))
    if "SASL" in file.read_text():
        monkeypatch.setenv("HAYPILE_KAFKA__PASSWORD", "from the Secret")
    settings = load_settings()
    services = of(folder, "Service")
    sets = of(folder, "StatefulSet")
    for url in [*settings.judge.urls, *settings.answer.urls, *settings.serving.urls]:
        host = url.removeprefix("http://").partition(":")[0]
        assert host.split(".")[-1] in services, url
    replicas = sets["haypile-policy"]["spec"]["replicas"]
    assert len(settings.serving.urls) == replicas, "the trainer loads the adapter on every replica"
    assert str(settings.training.registry).startswith("/data/")
    scaled = of(folder, "ScaledObject")
    if scaled:
        most = scaled["haypile-worker"]["spec"]["maxReplicaCount"]
        assert most <= settings.kafka.partitions, "more workers than partitions have nothing to do"
        assert "replicas" not in of(folder, "Deployment")["haypile-worker"]["spec"], "KEDA's is the number"
        for trigger in scaled["haypile-worker"]["spec"]["triggers"]:
            assert trigger["metadata"]["consumerGroup"] == settings.kafka.group
            assert trigger["metadata"]["bootstrapServers"] == settings.kafka.bootstrap


@each_overlay
def test_a_worker_has_time_to_drain(folder: Path) -> None:
    for name, pod in pods(folder).items():
        if "worker" in str(pod["spec"]["containers"][0].get("args")):
            assert pod["spec"]["terminationGracePeriodSeconds"] > 3 * load_settings().worker.drain_s, name


@each_overlay
def test_pods_are_not_root_and_their_images_are_pinned(folder: Path) -> None:
    for name, pod in pods(folder).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["automountServiceAccountToken"] is False, name
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name
            assert container["image"].partition(":")[2] not in ("", "latest"), name


@each_overlay
def test_what_is_named_is_there(folder: Path) -> None:
    claims, maps = of(folder, "PersistentVolumeClaim"), of(folder, "ConfigMap")
    labels = [pod["metadata"]["labels"] for pod in pods(folder).values()]
    for name, pod in pods(folder).items():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
        mounts = {mount["name"] for c in pod["spec"]["containers"] for mount in c["volumeMounts"]}
        assert mounts == volumes.keys(), name
    selectors = [m["spec"]["selector"]["matchLabels"] for m in of(folder, "PodDisruptionBudget").values()]
    selectors += [m["spec"]["selector"] for m in of(folder, "Service").values()]
    for selector in selectors:
        assert any(selector.items() <= label.items() for label in labels), selector


@each_overlay
def test_vllm_can_be_reached_from_inside_only(folder: Path) -> None:
    policies = of(folder, "NetworkPolicy")
    closed = policies["haypile-nothing-else"]["spec"]
    assert closed["policyTypes"] == ["Ingress"] and "ingress" not in closed
    for pod in pods(folder).values():
        assert "haypile.io/role" in pod["metadata"]["labels"], "a pod that the closed policy does not see"
    [rule] = policies["haypile-vllm"]["spec"]["ingress"]
    assert all("podSelector" in source and "namespaceSelector" not in source for source in rule["from"])
    for ingress in of(folder, "Ingress").values():
        backends = [path["backend"]["service"]["name"] for r in ingress["spec"]["rules"] for path in r["http"]["paths"]]
        assert not {"haypile-judge", "haypile-policy"} & set(backends)


@each_overlay
def test_secrets_are_by_reference_only(folder: Path) -> None:
    assert not of(folder, "Secret")
    for name, pod in pods(folder).items():
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", []):
                assert not any(word in variable["name"] for word in ("PASSWORD", "KEY", "TOKEN")), name
