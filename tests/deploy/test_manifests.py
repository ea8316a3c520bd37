"""k8s/base: what a validator of single resources does not see."""

import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve.settings import ENVIRONMENT_PREFIX, Settings, load_settings
from tests.deploy.conftest import ROOT
from tests.support.server_process import COMMANDS

BASE = ROOT / "k8s" / "base"
KUSTOMIZATION = yaml.safe_load((BASE / "kustomization.yaml").read_text())
RESOURCES = {name: yaml.safe_load((BASE / name).read_text()) for name in KUSTOMIZATION["resources"]}

Manifest = dict[str, Any]


def read_environment(path: Path) -> dict[str, str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


ENVIRONMENT = read_environment(BASE / "settings.env")


@pytest.fixture
def deployment() -> Manifest:
    return RESOURCES["deployment.yaml"]


@pytest.fixture
def pod(deployment: Manifest) -> Manifest:
    return deployment["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: Manifest) -> Manifest:
    [container] = pod["containers"]
    return container


def test_every_manifest_fits_the_schema_of_its_kind() -> None:
    files = [BASE / name for name in RESOURCES]

    done = subprocess.run([COMMANDS / "kubernetes-validate", "--strict", *files], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_of_the_base_is_part_of_it() -> None:
    [generator] = KUSTOMIZATION["configMapGenerator"]
    named = {"kustomization.yaml", *KUSTOMIZATION["resources"], *generator["envs"]}

    assert named == {path.name for path in BASE.iterdir()}


def test_selectors_match_the_labels_of_the_pods(deployment: Manifest) -> None:
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()

    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    assert RESOURCES["service.yaml"]["spec"]["selector"].items() <= labels


def test_the_service_and_the_probes_name_the_port_the_server_listens_on(container: Manifest) -> None:
    [port] = container["ports"]
    probes = [container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "readiness", "liveness")]

    assert {*probes, RESOURCES["service.yaml"]["spec"]["ports"][0]["targetPort"]} == {port["name"]}
    assert str(port["containerPort"]) == ENVIRONMENT["DEEPCODE_PORT"]


@pytest.mark.parametrize("kind", ["startup", "readiness", "liveness"])
def test_the_server_has_the_endpoint_that_is_probed(container: Manifest, server_url: str, kind: str) -> None:
    path = container[f"{kind}Probe"]["httpGet"]["path"]

    assert "get" in httpx.get(f"{server_url}/schema/openapi.json").json()["paths"][path]
    assert httpx.get(server_url + path).status_code == 200


def test_a_draining_server_is_not_taken_for_a_dead_one(container: Manifest) -> None:
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"


def test_the_settings_are_the_servers_own_and_acceptable() -> None:
    settings = load_settings({}, ENVIRONMENT)

    assert {name.removeprefix(ENVIRONMENT_PREFIX).lower() for name in ENVIRONMENT} == set(Settings.__struct_fields__)
    assert settings.host == "0.0.0.0", "a pod is reached from outside of it"


def test_the_pod_gets_the_settings(container: Manifest) -> None:
    [generator] = KUSTOMIZATION["configMapGenerator"]

    assert container["envFrom"] == [{"configMapRef": {"name": generator["name"]}}]


def test_the_engine_uses_the_cores_that_were_requested(container: Manifest) -> None:
    assert container["resources"]["requests"]["cpu"] == ENVIRONMENT["DEEPCODE_THREADS"]


def test_a_service_cannot_overwrite_a_setting(pod: Manifest) -> None:
    assert pod["enableServiceLinks"] is False


def test_the_bundle_comes_from_a_volume_that_exists_and_cannot_be_written(pod: Manifest, container: Manifest) -> None:
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}

    assert mounts.keys() == volumes.keys()
    assert mounts["bundle"] == {
        "name": "bundle",
        "mountPath": ENVIRONMENT["DEEPCODE_BUNDLE"],
        "readOnly": True,
    }
    claim = volumes["bundle"]["persistentVolumeClaim"]["claimName"]
    assert claim == RESOURCES["volume.yaml"]["metadata"]["name"]


def test_a_pod_is_not_killed_while_it_drains(pod: Manifest, container: Manifest) -> None:
    command, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    drain = load_settings({}, ENVIRONMENT).drain_seconds

    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] > int(pause) + drain


def test_the_pod_is_as_restricted_as_the_strictest_pod_security_standard_asks(
    pod: Manifest, container: Manifest
) -> None:
    own, pods = container["securityContext"], pod["securityContext"]

    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["readOnlyRootFilesystem"] is True
    assert pods["runAsNonRoot"] is True
    assert pods["runAsUser"] == 10001
    assert pods["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
