"""What an image is built with: a Docker engine, a base to build on, and what a build may know of its host."""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from figures import Skipped

BASE = "python:3.11-slim-bookworm"
DEBIAN_BASE = "deepcode-analyst-base:bookworm"
DEBIAN_PACKAGES = "python3,python3-venv,ca-certificates"
# What the official images leave out too.
UNNEEDED = ("var/cache/apt", "var/lib/apt/lists", *(f"usr/share/{name}" for name in ("doc", "man", "info", "locale")))
HOST_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
ENGINE_SECONDS = 60
# Of one target: packages that were not downloaded before are some hundred megabytes.
BUILD_SECONDS = 1200


class Docker:
    """The `docker` command, and the engine it talks to."""

    def __init__(self, command: str, host: str | None) -> None:
        self._command = command
        self._environment = os.environ | {"DOCKER_BUILDKIT": "1"} | ({} if host is None else {"DOCKER_HOST": host})

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run `docker …`; with `check`, a failure is an error that has its output."""
        done = subprocess.run(
            [self._command, *arguments], env=self._environment, capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"docker {' '.join(arguments)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        return done

    def ask(self, *arguments: str) -> str:
        """What the command printed."""
        return self(*arguments).stdout.strip()


@contextmanager
def engine(data: Path) -> Iterator[Docker]:
    """The engine that runs here, or one that is started for the while, with its images below `data`.

    Raises:
        Skipped: none runs, and none can be started.
    """
    # A distribution's client fits its engine; another one may lie before it in PATH.
    command = shutil.which("docker", path=f"/usr/bin{os.pathsep}{os.environ['PATH']}")
    if command is None:
        raise Skipped("there is no docker command: apt-get install docker.io")
    docker = Docker(command, None)
    if docker("info", check=False).returncode == 0:
        yield docker
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        raise Skipped("no Docker engine answers; one could be started by root with dockerd: apt-get install docker.io")
    with tempfile.TemporaryDirectory(prefix="image-test-") as name:
        host = f"unix://{name}/docker.sock"
        with (Path(name) / "dockerd.log").open("w+") as log:
            process = subprocess.Popen(_engine_command(Path(name), data, host), stdout=log, stderr=log)
            try:
                docker = Docker(command, host)
                deadline = time.monotonic() + ENGINE_SECONDS
                while docker("info", check=False).returncode != 0:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise Skipped(f"dockerd does not start here:\n{log.read()[-2000:]}")
                    time.sleep(0.5)
                yield docker
            finally:
                process.terminate()
                process.wait(timeout=ENGINE_SECONDS)
                _unmount_below(Path(name))


def _engine_command(folder: Path, data: Path, host: str) -> list[str]:
    # Containers share the host's network: nothing of the host's firewall is changed.
    command = ["dockerd", "--data-root", str(data), "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"]
    return [*command, "-H", host, "--bridge=none", "--iptables=false", "--ip6tables=false"]


def _unmount_below(folder: Path) -> None:
    # An engine that ended leaves the network of its containers mounted, and what is mounted can not be removed.
    mounted = [Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines()]
    for path in mounted:
        if path.is_relative_to(folder):
            subprocess.run(["umount", path], check=True)


def base_image(docker: Docker) -> str:
    """The base the Dockerfile names, if it is here or can be pulled; else Debian's own Python, made by debootstrap.

    Raises:
        Skipped: neither works here.
    """
    for image in (BASE, DEBIAN_BASE):
        if docker("image", "inspect", image, check=False).returncode == 0:
            return image
    if docker("pull", "--quiet", BASE, check=False, timeout=600).returncode == 0:
        return BASE
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise Skipped(f"{BASE} can not be pulled; root could make a base: apt-get install debootstrap")
    with tempfile.TemporaryDirectory(prefix="image-test-base-") as name:
        root = Path(name) / "root"
        command = ["debootstrap", "--variant=minbase", f"--include={DEBIAN_PACKAGES}", "bookworm", str(root)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
        if done.returncode != 0:
            raise Skipped(f"{BASE} can not be pulled, and debootstrap made no base:\n{done.stdout[-2000:]}")
        for folder in UNNEEDED:
            shutil.rmtree(root / folder, ignore_errors=True)
        archive = Path(name) / "base.tar"
        subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
        docker("import", str(archive), DEBIAN_BASE, timeout=600)
    return DEBIAN_BASE


def build(docker: Docker, context: Path, base: str, target: str, arguments: Sequence[str]) -> None:
    """Build one target, with the host's proxy, certificates and package index; the image keeps none of them."""
    with tempfile.TemporaryDirectory(prefix="image-test-pip-") as name:
        settings = Path(name) / "pip.conf"
        secrets = ["--secret", f"id=pip,src={settings}"]
        lines = _pip_settings()
        certificates = Path(lines.pop("cert", HOST_CERTIFICATES))
        if certificates.is_file():
            secrets += ["--secret", f"id=ca,src={certificates}"]
            lines["cert"] = "/run/secrets/ca"
        settings.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items()))
        proxies = [part for proxy in PROXIES if proxy in os.environ for part in ("--build-arg", proxy)]
        docker(
            *("build", "--network", "host", "--build-arg", f"PYTHON_IMAGE={base}", "--target", target),
            *(*secrets, *proxies, *arguments, str(context)),
            timeout=BUILD_SECONDS,
        )


def _pip_settings() -> dict[str, str]:
    """Where the host's pip looks for packages, as far as that can be reached from elsewhere."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        key, words = name.rpartition(".")[2], ast.literal_eval(value).split()
        if key.endswith("index-url"):
            words = [word for word in words if word.startswith("http")]
        if key in ("cert", "index-url", "extra-index-url", "trusted-host") and words:
            found[key] = " ".join(words)
    return found
