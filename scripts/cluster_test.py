"""Deploy the overlay cpu in the cluster that kubectl's context names, use it, restart it under load, and remove it.

    make cluster-test IMAGE=deepcode-analyst:0.1.0      # what the nodes call the image; none is pushed or pulled here

Everything happens in a namespace of its own. A pod there serves the bundle's archive and makes the load, so nothing
but kubectl is needed, and no registry. Where the cluster lacks the Prometheus operator its two resources are left out;
without prometheus-adapter the autoscaler keeps its minimum. Where kubectl reaches no cluster it says so, and ends with
0; with 1 when something is wrong.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from cluster_test_load import KEPT, NEW
from cluster_test_overlay import (
    HELPER,
    NAMESPACE,
    ROOT,
    SERVER,
    WAIT_SECONDS,
    Bundle,
    kubectl,
    make_keys,
    namespace,
    start_helper,
    write_overlay,
)
from figures import Report, Skipped

CLIENTS = 8


def pods() -> dict[str, bool]:
    """The server's pods that are not on their way out, and whether each is ready."""
    items = json.loads(kubectl("get", "pods", "-l", f"app.kubernetes.io/name={SERVER}", "-o", "json"))["items"]
    return {
        item["metadata"]["name"]: any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in item["status"].get("conditions", ())
        )
        for item in items
        if "deletionTimestamp" not in item["metadata"]
    }


def wait_for_pods(count: int) -> float:
    """The seconds until this many are there, and all ready."""
    began = time.monotonic()
    while len(found := pods()) < count or not all(found.values()):
        if time.monotonic() - began > WAIT_SECONDS:
            raise RuntimeError(f"not ready:\n{kubectl('describe', 'pods')[-4000:]}")
        time.sleep(0.5)
    return time.monotonic() - began


@contextmanager
def forwarded() -> Iterator[str]:
    """The Service, at an address of this machine."""
    command = ["kubectl", "--namespace", NAMESPACE, "port-forward", "--address", "127.0.0.1", f"svc/{SERVER}", ":80"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield f"http://{line.split()[2]}"
        finally:
            process.terminate()


def ask(key: str, report: Report) -> None:
    """With a key, without one, and with rights that no pod is given here."""
    body = {"code": (ROOT / "recipes" / "samples" / "orders.py").read_text(), "path": "orders.py"}
    with forwarded() as url, httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        for path in ("/v1/bundle", "/metrics"):
            report.check(f"GET {path} without a key: 401", client.get(path).status_code == 401)
        client.headers["authorization"] = f"Bearer {key}"
        report.check("GET /metrics with a key: 200", client.get("/metrics").status_code == 200)
        began = time.monotonic()
        findings = client.post("/v1/analyze", json=body).json().get("findings", [])
        report.check(f"orders.py through the Service: {len(findings)} findings", len(findings) > 0)
        report.measured("orders.py analysed", time.monotonic() - began, "s")
    said = kubectl("run", "root", "--image=x", "--privileged", "--dry-run=server", check=False)
    report.check("a privileged pod is refused", "violates PodSecurity" in said)


@contextmanager
def load(key: str, what: str, report: Report) -> Iterator[None]:
    """Steady load while something happens; afterwards no request may be lost."""
    stop = "/tmp/stop"
    kubectl("exec", HELPER, "--", "rm", "-f", stop)
    arguments = ["python3", "-", f"http://{SERVER}", key, str(CLIENTS), stop]
    command = ["kubectl", "--namespace", NAMESPACE, "exec", "-i", HELPER, "--", *arguments]
    with (ROOT / "scripts" / "cluster_test_load.py").open() as script:
        process = subprocess.Popen(command, stdin=script, stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(3)
        yield
        time.sleep(3)
    finally:
        kubectl("exec", HELPER, "--", "touch", stop)
        output, _ = process.communicate(timeout=120)
    found = json.loads(output)
    for kind in (NEW, KEPT):
        answered = found["came"][kind].pop("200", 0)
        report.measured(f"{what}, {kind}: answered", answered, "requests")
        lost = sum(found["came"][kind].values())
        report.measured(f"{what}, {kind}: lost {found['came'][kind] or ''}", lost, "requests", 0, fails=True)
    report.measured(f"{what}: the slowest answer", found["slowest"], "s")


def evict(pod: str) -> str:
    """What the API says to what a drain of the pod's node asks for."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
    return kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body), check=False)


def restart(key: str, report: Report) -> None:
    """A rolling restart, then the eviction of a pod, both under load."""
    with load(key, "rolling restart", report):
        began = time.monotonic()
        kubectl("rollout", "restart", f"deployment/{SERVER}")
        kubectl("rollout", "status", f"deployment/{SERVER}", f"--timeout={WAIT_SECONDS}s")
        report.measured("rolling restart", time.monotonic() - began, "s")
        time.sleep(10)  # the last old pod drains
    first, second = list(pods())[:2]
    with load(key, "eviction", report):
        report.check("a pod is evicted", "Success" in evict(first))
        report.check("the next one is not, while one is missing", "disruption budget" in evict(second))
        report.measured("from the eviction until all are ready again", wait_for_pods(2), "s")


def refuse_another_bundle(overlay: Path, report: Report) -> None:
    """A wrong checksum: the new pod does not start and says why, the old ones go on."""
    old = set(pods())
    file = overlay / "kustomization.yaml"
    file.write_text(re.sub(r"BUNDLE_SHA256=\w+", f"BUNDLE_SHA256={'0' * 64}", file.read_text()))
    kubectl("apply", "-k", str(overlay))
    began = time.monotonic()
    said = ""
    while "its sha256 is" not in said and time.monotonic() - began < 60:
        time.sleep(1)
        new = [pod for pod in pods() if pod not in old]
        said = kubectl("logs", new[0], "-c", "fetch-bundle", check=False) if new else ""
    report.check(f"another bundle is refused: {said.strip()[:160]}", "its sha256 is" in said)
    report.check("the old pods serve meanwhile", all(pods().get(pod) for pod in old))


def examine(options: argparse.Namespace, folder: Path, report: Report) -> None:
    """Everything, in a namespace that is there."""
    bundle = start_helper(folder, options.image)
    if options.bundle_url:
        bundle = Bundle(options.bundle_url, options.bundle_sha256)
    key = make_keys(folder)
    overlay = write_overlay(folder, options.image, options.cpu, bundle)
    kubectl("apply", "-k", str(overlay))
    report.measured("from `kubectl apply` until the first pod is ready", wait_for_pods(1), "s")
    report.measured("and until the autoscaler's two are", wait_for_pods(2), "s")
    ask(key, report)
    restart(key, report)
    refuse_another_bundle(overlay, report)


def main() -> int:
    """0 when all is well or there is no cluster, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="deepcode-analyst:0.1.0", help="what the nodes call it, with its tag")
    parser.add_argument("--bundle-url", help="an archive that pods can reach (default: models/nano, from a pod)")
    parser.add_argument("--bundle-sha256", help="its checksum")
    parser.add_argument("--cpu", default="250m", help="requested by each pod, so that small nodes have room")
    options = parser.parse_args()
    report = Report("cluster-test")
    try:
        with tempfile.TemporaryDirectory() as name, namespace(Path(name)):
            examine(options, Path(name), report)
    except Skipped as reason:
        report.say(f"skipped: {reason}")
        return 0
    except (RuntimeError, OSError, subprocess.SubprocessError, httpx.HTTPError) as error:
        report.check(str(error), False)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
