"""What `kubectl apply -k` would send: every overlay built by kubectl itself, and what the tests ask of the result."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

# Overlays of a user's own, made of the parts that ours leave out.
VARIANT = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: deepcode
resources: [../../base]
components:
  - ../../components/monitoring
  - ../../components/autoscale-keda
  - ../../components/bundle-image
  - ../../components/search-postgres
"""
# What the settings among the Secrets' values may be, by the Secret and its key.
SECRET_SETTINGS = {("deepcode-index", "url"): "postgresql://deepcode:secret@database.db:5432/deepcode"}
FOLDERS = ("base", "overlays/cpu", "overlays/gpu", "overlays/variant", "jobs")


class Rendered:
    """The resources of one folder."""

    def __init__(self, name: str, resources: list[Manifest]) -> None:
        self.name, self.resources = name, resources

    def of(self, *kinds: str) -> list[Manifest]:
        """Every resource of these kinds."""
        return [resource for resource in self.resources if resource["kind"] in kinds]

    def named(self, kind: str, name: str) -> Manifest:
        """The only such resource."""
        [found] = [resource for resource in self.of(kind) if resource["metadata"]["name"] == name]
        return found

    def templates(self) -> Iterator[Manifest]:
        """The pod template of everything that makes pods."""
        for resource in self.of("Deployment", "Job"):
            yield resource["spec"]["template"]
        for resource in self.of("CronJob"):
            yield resource["spec"]["jobTemplate"]["spec"]["template"]

    def environment(self, container: Manifest) -> dict[str, str]:
        """What a container gets from ConfigMaps and from its own list, and of Secrets those that are settings."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            found |= self.named("ConfigMap", source["configMapRef"]["name"])["data"]
        for item in container.get("env", ()):
            secret = item.get("valueFrom", {}).get("secretKeyRef", {})
            value = item.get("value", SECRET_SETTINGS.get((secret.get("name"), secret.get("key"))))
            if value is not None:
                found[item["name"]] = value
        return found


def containers(template: Manifest) -> list[Manifest]:
    """Init containers too."""
    spec = template["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


def render(root: Path, copy: Path) -> dict[str, Rendered]:
    """Every folder built, by name.

    Args:
        root: the folder k8s.
        copy: an empty folder, for a copy with the variants in it.
    """
    shutil.copytree(root, copy, dirs_exist_ok=True)
    variant = copy / "overlays" / "variant"
    variant.mkdir()
    (variant / "kustomization.yaml").write_text(VARIANT)
    return {name: Rendered(name, _build(copy / name)) for name in FOLDERS}


def _build(folder: Path) -> list[Manifest]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))
