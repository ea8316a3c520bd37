"""What a test of the manifests puts into a cluster: a namespace, keys, a bundle to fetch, and the overlay cpu."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from figures import Skipped

from compress.packing import make_key, pack

ROOT = Path(__file__).parents[1]
NAMESPACE, SERVER, HELPER = "deepcode-cluster-test", "deepcode-analyst", "cluster-test"
OVERLAY_IMAGE = "registry.example.com/deepcode-analyst"
OPERATOR_KINDS = {"PodMonitor": "podmonitors", "PrometheusRule": "prometheusrules"}
WAIT_SECONDS = 240
# The archive comes on stdin; pods may fetch from port 443, which no port number below 1024 need be root's for.
TAKE = "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, open('/tmp/nano.tar.gz', 'wb'))"
HELPER_MANIFESTS = """
apiVersion: v1
kind: Pod
metadata: {name: cluster-test, labels: {app.kubernetes.io/name: cluster-test}}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    seccompProfile: {type: RuntimeDefault}
    sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "0"}]
  containers:
    - name: helper
      image: IMAGE
      command: ["python3", "-m", "http.server", "443", "--directory", "/tmp"]
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts: [{name: tmp, mountPath: /tmp}]
  volumes: [{name: tmp, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: cluster-test}
spec:
  selector: {app.kubernetes.io/name: cluster-test}
  ports: [{port: 443}]
---
# It may be fetched from, ask the server, and look names up.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cluster-test}
spec:
  podSelector: {matchLabels: {app.kubernetes.io/name: cluster-test}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {}}], ports: [{port: 443}]}]
  egress:
    - {to: [{podSelector: {}}], ports: [{port: 8000}]}
    - {to: [{namespaceSelector: {}}], ports: [{protocol: UDP, port: 53}, {port: 53}]}
"""


@dataclass(frozen=True)
class Bundle:
    """An archive that pods can reach; with a key, it must be signed."""

    url: str
    sha256: str
    public_key: str = ""


def kubectl(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    """What `kubectl …` printed, in the test's namespace."""
    done = subprocess.run(
        ["kubectl", "--namespace", NAMESPACE, *arguments], input=stdin, capture_output=True, text=True, timeout=300
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"kubectl {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout if check else done.stdout + done.stderr


@contextmanager
def namespace(folder: Path) -> Iterator[None]:
    """The namespace, as restricted as the base makes it; removed at the end with all that is in it.

    Raises:
        Skipped: there is no cluster.
    """
    if shutil.which("kubectl") is None:
        raise Skipped("there is no kubectl")
    reached = subprocess.run(["kubectl", "get", "--raw", "/readyz", "--request-timeout=10s"], capture_output=True)
    if reached.returncode != 0:
        raise Skipped("kubectl reaches no cluster; kind, k3s or any other will do")
    manifest = yaml.safe_load((ROOT / "k8s" / "base" / "namespace.yaml").read_text())
    manifest["metadata"]["name"] = NAMESPACE
    (folder / "namespace.yaml").write_text(yaml.safe_dump(manifest))
    kubectl("create", "--save-config", "-f", str(folder / "namespace.yaml"))
    try:
        yield
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--timeout=180s")


def write_overlay(folder: Path, image: str, cpu: str, bundle: Bundle) -> Path:
    """A copy of k8s/ with an overlay over the overlay: this image and bundle, and as much CPU as can be had."""
    shutil.copytree(ROOT / "k8s", folder / "k8s", dirs_exist_ok=True)
    repository, _, tag = image.rpartition(":")
    known = kubectl("api-resources", "--output=name")
    less = [{"op": "replace", "path": "/spec/template/spec/containers/0/resources/requests/cpu", "value": cpu}]
    removed = [
        {"target": {"kind": kind}, "patch": f"$patch: delete\nkind: {kind}\nmetadata: {{name: {SERVER}}}\n"}
        for kind, plural in OPERATOR_KINDS.items()
        if f"{plural}.monitoring.coreos.com" not in known
    ]
    overlay = folder / "k8s" / "overlays" / "cluster-test"
    overlay.mkdir(exist_ok=True)
    kustomization = {
        "namespace": NAMESPACE,
        "resources": ["../cpu"],
        "images": [{"name": OVERLAY_IMAGE, "newName": repository, "newTag": tag}],
        "configMapGenerator": [
            {
                "name": "deepcode-bundle",
                "behavior": "merge",
                "literals": [f"BUNDLE_URL={bundle.url}", f"BUNDLE_SHA256={bundle.sha256}"],
            },
            {
                "name": "deepcode-settings",
                "behavior": "merge",
                "literals": [f"DEEPCODE_TRUSTED_KEY={bundle.public_key}"],
            },
        ],
        "patches": [{"target": {"kind": "Deployment", "name": SERVER}, "patch": json.dumps(less)}, *removed],
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return overlay


def make_keys(folder: Path) -> str:
    """The two Secrets, as docs/deploy.md has them made: the key for people."""
    keys = {}
    for name in ("ci", "prometheus"):
        command = [sys.executable, "-m", "serve.cli", "--api-keys", str(folder / "keys.txt"), "--new-key", name]
        keys[name] = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    kubectl("create", "secret", "generic", "deepcode-api-keys", f"--from-file={folder / 'keys.txt'}")
    kubectl("create", "secret", "generic", "deepcode-metrics-key", f"--from-literal=key={keys['prometheus']}")
    return keys["ci"]


def start_helper(folder: Path, image: str) -> Bundle:
    """The pod that makes the load, and has models/nano to fetch, signed."""
    public_key = make_key(folder / "bundle.key")
    archive = pack(ROOT / "models" / "nano", folder, folder / "bundle.key")
    kubectl("apply", "-f", "-", stdin=HELPER_MANIFESTS.replace("IMAGE", image))
    kubectl("wait", "--for=condition=Ready", f"pod/{HELPER}", f"--timeout={WAIT_SECONDS}s")
    with archive.open("rb") as file:
        command = ["kubectl", "--namespace", NAMESPACE, "exec", "-i", HELPER, "--", "python3", "-c", TAKE]
        subprocess.run(command, stdin=file, check=True, timeout=120)
    return Bundle(f"http://{HELPER}:443/nano.tar.gz", hashlib.sha256(archive.read_bytes()).hexdigest(), public_key)
