"""Build the image, run it as restricted as a cluster would, and say how large, how fast and how well-behaved it is.

    make image-test

Linux. Where no Docker engine runs, root may have one started for the while (apt-get install docker.io), and a base
made where none can be pulled (apt-get install debootstrap). Where that is not possible either it says so and ends with
0; with 1 when something is wrong with the image. How soon a server is ready is measured and held against its aim, but
fails nothing: that is the machine's doing too.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from figures import Report, Skipped
from image_test_engine import Docker, base_image, build, engine

ROOT = Path(__file__).parents[1]
DATA = ROOT / "build" / "image-test"
IMAGE, BUNDLED = "deepcode-analyst:image-test", "deepcode-analyst:image-test-with-bundle"
BUNDLE = "models/nano"
ADDRESS, PORT = "127.0.0.1", 8765
# A few seconds of work, sent to a server that is told to stop.
MANY_FUNCTIONS = "".join(f"def f{n}(items=[]):\n    return items[{n}]\n\n\n" for n in range(120))

IMAGE_BYTES = 350_000_000
IDLE_BYTES = 250_000_000
READY_SECONDS = 3.0

IN_THE_IMAGE = """
import importlib.util, json, os, pathlib, shutil
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
[capabilities] = [line.split()[1] for line in lines if line.startswith("CapEff")]
try:
    pathlib.Path("/written").touch()
    read_only = False
except OSError:
    read_only = True
print(json.dumps({
    "user": os.getuid(),
    "capabilities": int(capabilities, 16),
    "read_only": read_only,
    "compilers": [name for name in ("cc", "gcc", "g++", "clang") if shutil.which(name)],
    "unwanted": [name for name in ("torch", "transformers", "pip") if importlib.util.find_spec(name)],
}))
"""
# Of the server and the processes that parse code, in bytes; pages that they share are counted once.
MEMORY = """
import os, pathlib
total = 0
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if int(process.name) != os.getpid():
        lines = (process / "smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
print(1024 * total)
"""


@contextmanager
def running(docker: Docker, image: str, *options: str) -> Iterator[tuple[str, float]]:
    """A server in a container, as restricted as in the cluster: its id, and the seconds until it was ready."""
    restricted = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    address = ["--network", "host", "--env", f"DEEPCODE_HOST={ADDRESS}", "--env", f"DEEPCODE_PORT={PORT}"]
    if is_ready():
        raise RuntimeError(f"another server answers at {ADDRESS}:{PORT}, where the image's is to be: stop that one")
    began = time.monotonic()
    container = docker.ask("run", "--detach", "--memory", "512m", *restricted, *address, *options, image)
    try:
        while not is_ready():
            if docker.ask("inspect", "--format", "{{.State.Running}}", container) != "true":
                raise RuntimeError(f"the server ended:\n{docker('logs', container).stderr}")
            if time.monotonic() - began > 120:
                raise RuntimeError(f"the server is not ready after two minutes:\n{docker('logs', container).stderr}")
            time.sleep(0.02)
        yield container, time.monotonic() - began
    finally:
        docker("rm", "--force", container)


def is_ready() -> bool:
    try:
        return httpx.get(f"http://{ADDRESS}:{PORT}/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def works() -> bool:
    """Whether a request is in flight."""
    lines = httpx.get(f"http://{ADDRESS}:{PORT}/metrics", timeout=30).text.splitlines()
    [count] = [float(line.split()[-1]) for line in lines if line.startswith("deepcode_requests_in_flight")]
    return count > 0


def look_at_images(docker: Docker, base: str, report: Report) -> None:
    """Sizes, and what is in the default image."""
    sizes = {image: int(docker.ask("image", "inspect", "--format", "{{.Size}}", image)) for image in (base, IMAGE)}
    report.measured(f"its base, {base}", sizes[base], "bytes")
    report.measured("the image unpacked, without a bundle", sizes[IMAGE], "bytes", IMAGE_BYTES, fails=True)
    labels = json.loads(docker.ask("image", "inspect", "--format", "{{json .Config.Labels}}", IMAGE))
    version = labels.get("org.opencontainers.image.version")
    report.check(f"labelled {version}", labels.get("org.opencontainers.image.title") == "DeepCode-Analyst")


def look_inside(docker: Docker, container: str, report: Report) -> None:
    """What a process in it may do, and what there is that should not be."""
    found = json.loads(docker.ask("exec", container, "python3", "-c", IN_THE_IMAGE))
    report.check(f"user {found['user']}, not root", found["user"] == 10001)
    report.check("no capabilities", found["capabilities"] == 0)
    report.check("the root can not be written", found["read_only"])
    report.check(f"no compiler: {found['compilers']}", not found["compilers"])
    report.check(f"no torch, no transformers, no pip: {found['unwanted']}", not found["unwanted"])


def use(docker: Docker, container: str, report: Report) -> None:
    """An analysis, the API's description, the health check; memory before and after."""
    idle = int(docker.ask("exec", container, "python3", "-c", MEMORY))
    report.measured(f"memory of an idle server with {BUNDLE}", idle, "bytes", IDLE_BYTES, fails=True)
    with httpx.Client(base_url=f"http://{ADDRESS}:{PORT}", timeout=120) as client:
        code = (ROOT / "recipes" / "samples" / "orders.py").read_text()
        began = time.monotonic()
        answer = client.post("/v1/analyze", json={"code": code, "path": "orders.py", "min_confidence": 0.3})
        findings = answer.json().get("findings", [])
        report.check(f"orders.py: {len(findings)} findings in {time.monotonic() - began:.1f} s", len(findings) > 0)
        for path in ("/schema/openapi.json", "/metrics", "/"):
            report.check(f"GET {path}", client.get(path).status_code == 200)
    after = int(docker.ask("exec", container, "python3", "-c", MEMORY))
    report.measured("its memory after an analysis", after, "bytes")
    deadline = time.monotonic() + 60
    while (health := docker.ask("inspect", "--format", "{{.State.Health.Status}}", container)) == "starting":
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    report.check(f"its own health check says {health}", health == "healthy")


def stop_while_it_works(docker: Docker, container: str, report: Report) -> None:
    """SIGTERM while a request is answered: that one is finished, new ones are turned away, the server exits with 0."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        body = {"code": MANY_FUNCTIONS, "path": "many.py"}
        answers.append(httpx.post(f"http://{ADDRESS}:{PORT}/v1/analyze", json=body, timeout=120))

    client = threading.Thread(target=ask)
    client.start()
    while client.is_alive() and not works():
        time.sleep(0.02)
    report.check("it works on a request when it is told to stop", client.is_alive())
    began = time.monotonic()
    docker("kill", "--signal", "TERM", container)
    refused = httpx.get(f"http://{ADDRESS}:{PORT}/health/ready", timeout=30).status_code
    report.check("it is not ready any more while it drains", refused == 503)
    code = int(docker("wait", container, timeout=120).stdout)
    client.join()
    report.check(f"it drained for {time.monotonic() - began:.1f} s and exited with {code}", code == 0)
    status = [answer.status_code for answer in answers]
    report.check(f"the request was answered: {status}", status == [200])


def examine(docker: Docker, report: Report) -> None:
    """Everything, on an engine that answers."""
    base = base_image(docker)
    began = time.monotonic()
    build(docker, ROOT, base, "serve", ["--tag", IMAGE])
    report.measured("time to build it, packages cached or not", time.monotonic() - began, "s")
    build(docker, ROOT, base, "with-bundle", ["--tag", BUNDLED, "--build-arg", f"BUNDLE={BUNDLE}"])
    look_at_images(docker, base, report)
    with tempfile.TemporaryDirectory() as folder:
        build(docker, ROOT, base, "sbom", ["--output", f"type=local,dest={folder}"])
        sbom = json.loads((Path(folder) / "sbom.cdx.json").read_text())
        names = {component["name"].lower() for component in sbom["components"]}
        report.check(f"its SBOM names {len(names)} packages", {"onnxruntime", "litestar", "deepcode-analyst"} <= names)
    with running(docker, IMAGE, "--volume", f"{ROOT / BUNDLE}:/bundle:ro") as (container, seconds):
        report.measured("from `docker run` to ready, bundle mounted", seconds, "s", READY_SECONDS)
        look_inside(docker, container, report)
        use(docker, container, report)
        stop_while_it_works(docker, container, report)
    with running(docker, BUNDLED) as (_, seconds):
        report.measured("from `docker run` to ready, bundle inside", seconds, "s", READY_SECONDS)


def main() -> int:
    """0 when all is well or nothing can be built here, else 1."""
    report = Report("image-test")
    DATA.mkdir(parents=True, exist_ok=True)
    try:
        with engine(DATA) as docker:
            examine(docker, report)
    except Skipped as reason:
        report.say(f"skipped: {reason}")
        return 0
    except (RuntimeError, OSError, subprocess.TimeoutExpired, httpx.HTTPError) as error:
        report.check(str(error), False)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
