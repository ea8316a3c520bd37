"""k8s/: schemas of the newest Kubernetes, and what a validator of single resources does not see."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import kubernetes_validate
import pytest
import yaml

from serve.settings import ENVIRONMENT_PREFIX, Settings, load_settings
from tests.deploy.conftest import ROOT
from tests.deploy.kustomized import FOLDERS, VARIANT, Manifest, Rendered, containers

K8S = ROOT / "k8s"
SERVER = "deepcode-analyst"
# No schema of theirs is published where these tests could have it from.
WITHOUT_SCHEMA = {"PodMonitor", "PrometheusRule", "ScaledObject"}
NEWEST = [f"1.{int(kubernetes_validate.latest_version().split('.')[1]) - age}" for age in range(3)]
# What a user makes, as the comments of the manifests say.
SECRETS = {"deepcode-api-keys", "deepcode-index", "deepcode-metrics-key", "deepcode-nightly-key"}
CONFIG_MAPS = {"recipe"}


def server_of(built: Rendered) -> tuple[Manifest, Manifest]:
    """The pod's spec and its container."""
    pod = built.named("Deployment", SERVER)["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


@pytest.fixture(params=[name for name in FOLDERS if name != "jobs"])
def overlay(request: pytest.FixtureRequest, rendered: dict[str, Rendered]) -> Rendered:
    """Each folder that has a server in it."""
    return rendered[request.param]


@pytest.mark.parametrize("version", NEWEST)
def test_every_resource_fits_the_strict_schema_of_the_newest_versions(
    rendered: dict[str, Rendered], version: str
) -> None:
    unique: list[Manifest] = []
    for resource in chain.from_iterable(each.resources for each in rendered.values()):
        if resource not in unique:
            unique.append(resource)

    for resource in unique:
        if resource["kind"] not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(resource, version, strict=True)


def test_every_file_belongs_to_a_folder_that_is_built() -> None:
    for folder in (*(K8S / name for name in FOLDERS if name != "overlays/variant"), *(K8S / "components").iterdir()):
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        named = {"kustomization.yaml", *kustomization.get("resources", ())}
        for generator in kustomization.get("configMapGenerator", ()):
            named |= {*generator.get("envs", ()), *generator.get("files", ())}
        assert {path.name for path in folder.iterdir()} - {"adapter-rules.yaml"} <= named, folder


def test_every_component_is_part_of_a_folder_that_is_built() -> None:
    overlays = [(folder / "kustomization.yaml").read_text() for folder in (K8S / "overlays").iterdir()]
    used = {Path(part).name for text in (*overlays, VARIANT) for part in yaml.safe_load(text).get("components", ())}

    assert used == {folder.name for folder in (K8S / "components").iterdir()}


def test_selectors_match_pods_that_there_are(built: Rendered, rendered: dict[str, Rendered]) -> None:
    others = rendered["base"] if built.name == "jobs" else built
    pods = [template["metadata"]["labels"].items() for template in chain(built.templates(), others.templates())]
    selectors = [resource["spec"]["selector"] for resource in built.of("Service")]
    selectors += [
        resource["spec"]["selector"]["matchLabels"]
        for resource in built.of("Deployment", "PodDisruptionBudget", "PodMonitor")
    ]
    for policy in built.of("NetworkPolicy"):
        rules = chain(policy["spec"].get("ingress", ()), policy["spec"].get("egress", ()))
        peers = chain.from_iterable(rule.get("from", rule.get("to", ())) for rule in rules)
        found = [policy["spec"]["podSelector"], *(peer["podSelector"] for peer in peers if "podSelector" in peer)]
        selectors += [selector["matchLabels"] for selector in found if selector]
    for template in built.templates():
        spread = template["spec"].get("topologySpreadConstraints", ())
        selectors += [constraint["labelSelector"]["matchLabels"] for constraint in spread]

    if built.name == "overlays/variant":
        selectors.remove({"deepcode-analyst/fetches": "true"})  # there the kubelet pulls the bundle
    assert selectors
    for selector in selectors:
        assert any(selector.items() <= labels for labels in pods), selector


def test_every_port_that_is_named_is_one_of_the_pods(built: Rendered, rendered: dict[str, Rendered]) -> None:
    others = rendered["base"] if built.name == "jobs" else built
    templates = [*built.templates(), *others.templates()]

    def ports(selector: Manifest) -> set[str]:
        chosen = [each for each in templates if selector.items() <= each["metadata"]["labels"].items()]
        return {port["name"] for each in chosen for one in containers(each) for port in one.get("ports", ())}

    for service in built.of("Service"):
        named = {port["targetPort"] for port in service["spec"].get("ports", ())}
        assert named <= ports(service["spec"]["selector"])
    for monitor in built.of("PodMonitor"):
        named = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        assert named <= ports(monitor["spec"]["selector"]["matchLabels"])
    for policy in built.of("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            named = {port["port"] for port in rule.get("ports", ())}
            assert named <= ports(policy["spec"]["podSelector"]["matchLabels"])
    for template in templates:
        for container in containers(template):
            own = {port["name"] for port in container.get("ports", ())}
            probes = [container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness") if own]
            assert {probe["httpGet"]["port"] for probe in probes} <= own


def test_every_mount_has_a_volume_and_every_volume_its_source(built: Rendered) -> None:
    configured = {resource["metadata"]["name"] for resource in built.of("ConfigMap")} | CONFIG_MAPS
    claims = {resource["metadata"]["name"] for resource in built.of("PersistentVolumeClaim")}
    for template in built.templates():
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        mounted = {mount["name"] for one in containers(template) for mount in one.get("volumeMounts", ())}
        assert mounted == volumes.keys()
        for volume in volumes.values():
            assert volume.get("configMap", {}).get("name", "recipe") in configured
            assert volume.get("secret", {}).get("secretName", "deepcode-api-keys") in SECRETS
            assert "persistentVolumeClaim" not in volume or volume["persistentVolumeClaim"]["claimName"] in claims


def secrets_in(node: object) -> Iterator[str]:
    """The names of Secrets, wherever they are referred to."""
    if isinstance(node, dict):
        if "secretName" in node:
            yield node["secretName"]
        yield from (node[key]["name"] for key in ("secretKeyRef", "credentials") if key in node)
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        yield from secrets_in(child)


def test_secrets_come_from_nowhere_but_the_cluster(rendered: dict[str, Rendered]) -> None:
    resources = [resource for each in rendered.values() for resource in each.resources]

    assert [resource for resource in resources if resource["kind"] == "Secret"] == []
    assert set(secrets_in(resources)) == SECRETS


@pytest.mark.parametrize("kind", ["startup", "readiness", "liveness"])
def test_the_server_has_the_endpoint_that_is_probed(overlay: Rendered, server_url: str, kind: str) -> None:
    _, container = server_of(overlay)
    path = container[f"{kind}Probe"]["httpGet"]["path"]

    assert path == {"startup": "/health/startup", "readiness": "/health/ready", "liveness": "/health/live"}[kind]
    assert "get" in httpx.get(f"{server_url}/schema/openapi.json", timeout=60).json()["paths"][path]
    assert httpx.get(server_url + path, timeout=60).status_code == 200


def test_the_settings_are_the_servers_own_and_acceptable(overlay: Rendered) -> None:
    environment = overlay.environment(server_of(overlay)[1])
    settings = load_settings({}, environment)

    assert {name.removeprefix(ENVIRONMENT_PREFIX).lower() for name in environment} == set(Settings.__struct_fields__)
    assert settings.host == "0.0.0.0", "a pod is reached from outside of it"
    assert settings.port == server_of(overlay)[1]["ports"][0]["containerPort"]


def test_the_engine_uses_the_cores_that_were_requested(overlay: Rendered) -> None:
    _, container = server_of(overlay)

    assert container["resources"]["requests"]["cpu"] == overlay.environment(container)["DEEPCODE_THREADS"]
    assert "cpu" not in container["resources"]["limits"], "throttled threads stall everybody's answers"


def test_the_bundle_is_fetched_to_where_the_server_reads_it_and_cannot_write(overlay: Rendered) -> None:
    pod, container = server_of(overlay)
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "bundle"]

    assert mount == {
        "name": "bundle",
        "mountPath": overlay.environment(container)["DEEPCODE_BUNDLE"],
        "readOnly": True,
    }
    for fetching in pod.get("initContainers", ()):
        assert fetching["command"][-1] == mount["mountPath"]
        assert {"BUNDLE_URL", "BUNDLE_SHA256"} == overlay.environment(fetching).keys()
        assert fetching["image"] == container["image"], "the script needs the Python of an image that is there anyway"


def test_keys_are_mounted_where_the_server_reads_them(rendered: dict[str, Rendered]) -> None:
    for name in ("overlays/cpu", "overlays/gpu"):
        _, container = server_of(rendered[name])
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        file = Path(rendered[name].environment(container)["DEEPCODE_API_KEYS"])

        assert str(file.parent) == mounts["keys"]
        assert f"--from-file={file.name}" in (K8S / "components" / "api-keys" / "kustomization.yaml").read_text()
        [monitor] = rendered[name].of("PodMonitor")
        assert "authorization" in monitor["spec"]["podMetricsEndpoints"][0], "/metrics asks for a key as well"


def test_the_index_of_the_code_search_is_a_database_that_the_pods_may_reach(rendered: dict[str, Rendered]) -> None:
    variant = rendered["overlays/variant"]
    _, container = server_of(variant)
    settings = load_settings({}, variant.environment(container))
    kustomization = (K8S / "components" / "search-postgres" / "kustomization.yaml").read_text()
    policy = variant.named("NetworkPolicy", "deepcode-analyst-to-database")["spec"]

    [index] = container["env"]
    reference = index["valueFrom"]["secretKeyRef"]
    assert f"secret generic {reference['name']} --from-file={reference['key']}=" in kustomization
    assert settings.search_bundle is not None
    [(label, value)] = policy["egress"][0]["to"][0]["namespaceSelector"]["matchLabels"].items()
    assert f"{label}={value}" in kustomization
    assert policy["egress"][0]["ports"] == [{"protocol": "TCP", "port": urlsplit(str(settings.index_url)).port}]


def test_an_overlay_has_a_place_for_all_that_its_user_names() -> None:
    for name in ("cpu", "gpu"):
        kustomization = yaml.safe_load((K8S / "overlays" / name / "kustomization.yaml").read_text())
        literals = chain.from_iterable(each["literals"] for each in kustomization["configMapGenerator"])
        named = {literal.partition("=")[0] for literal in literals}

        assert {"BUNDLE_URL", "BUNDLE_SHA256", "DEEPCODE_TRUSTED_KEY"} <= named
        assert SERVER in {image["name"] for image in kustomization["images"]}


def test_the_page_makes_the_namespace_as_restricted_as_it_will_be() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()

    assert "kubectl apply -f k8s/base/namespace.yaml" in page
    assert "create namespace" not in page, "nothing would be enforced there, and applying the overlay would warn"


def test_the_state_of_a_pod_says_why_it_did_not_start(overlay: Rendered) -> None:
    pod, _ = server_of(overlay)

    for container in containers({"spec": pod}):
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_both_autoscalers_ask_the_prometheus_that_the_operator_makes(rendered: dict[str, Rendered]) -> None:
    values = yaml.safe_load((K8S / "components" / "autoscale-hpa" / "adapter-rules.yaml").read_text())["prometheus"]
    triggers = chain.from_iterable(
        scaler["spec"]["triggers"] for each in rendered.values() for scaler in each.of("ScaledObject")
    )

    assert {trigger["metadata"]["serverAddress"] for trigger in triggers} == {f"{values['url']}:{values['port']}"}


def test_a_pod_is_not_killed_while_it_drains(overlay: Rendered) -> None:
    pod, container = server_of(overlay)
    [shell, option, script] = container["lifecycle"]["preStop"]["exec"]["command"]
    announced, _, pause = script.partition("; sleep ")
    drain = load_settings({}, overlay.environment(container)).drain_seconds

    assert (shell, option) == ("sh", "-c")
    assert announced == "kill -USR1 1", "a client that keeps its connection would be turned away by the drain"
    assert pod["terminationGracePeriodSeconds"] > int(pause) + drain


def test_vllm_outlives_what_the_api_waits_for_and_is_where_the_api_asks(rendered: dict[str, Rendered]) -> None:
    gpu = rendered["overlays/gpu"]
    settings = load_settings({}, gpu.environment(server_of(gpu)[1]))
    pod = gpu.named("Deployment", "vllm")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    service = gpu.named("Service", "vllm")
    flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in container["args"])

    assert settings.engine == "vllm"
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + settings.analysis_seconds
    assert settings.upstream == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}/v1"
    assert settings.upstream_model == flags["served-model-name"]
    assert int(flags["port"]) == container["ports"][0]["containerPort"]
    probe = container["startupProbe"]
    deadline = gpu.named("Deployment", "vllm")["spec"]["progressDeadlineSeconds"]
    assert deadline > probe["periodSeconds"] * probe["failureThreshold"], "a rollout would be given up before its pod"
    assert flags["tensor-parallel-size"] == container["resources"]["limits"]["nvidia.com/gpu"]
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "bundle"]
    assert Path(container["command"][-1]).parent == Path(mount["mountPath"])


def test_pods_are_as_restricted_as_the_strictest_pod_security_standard_asks(built: Rendered) -> None:
    for template in built.templates():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "a service's address would overwrite a setting of its name"
        for container in containers(template):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert own["readOnlyRootFilesystem"] is True
            assert "memory" in container["resources"]["limits"]


def test_nothing_goes_in_or_out_that_no_policy_names(overlay: Rendered) -> None:
    denied = overlay.named("NetworkPolicy", "default-deny")["spec"]
    going_out = [policy for policy in overlay.of("NetworkPolicy") if "egress" in policy["spec"]]
    [outside] = [policy for policy in going_out if "ipBlock" in str(policy)]

    assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert outside["metadata"]["name"] == "fetch-bundle"
    assert "169.254.0.0/16" in outside["spec"]["egress"][1]["to"][0]["ipBlock"]["except"]


def test_autoscalers_and_budgets_are_about_what_there_is_and_own_the_number_of_pods(overlay: Rendered) -> None:
    for scaler in overlay.of("HorizontalPodAutoscaler", "ScaledObject"):
        scaled = overlay.named("Deployment", scaler["spec"]["scaleTargetRef"]["name"])
        assert "replicas" not in scaled["spec"]
    for budget in overlay.of("PodDisruptionBudget"):
        assert budget["spec"]["maxUnavailable"] == 1, "a drain must not wait for ever where there is one pod"


def test_every_image_has_a_version(rendered: dict[str, Rendered]) -> None:
    for name in ("overlays/cpu", "overlays/gpu", "jobs"):
        images = {one["image"] for template in rendered[name].templates() for one in containers(template)}
        assert images
        assert [image for image in images if ":" not in image.rpartition("/")[2] or image.endswith(":latest")] == []


def test_the_processes_of_several_nodes_meet_at_the_first_pod(rendered: dict[str, Rendered]) -> None:
    jobs = rendered["jobs"]
    job = jobs.named("Job", "compress-nodes")
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in container["args"] if flag.startswith("--"))
    service = jobs.named("Service", pod["subdomain"])

    assert job["spec"]["completionMode"] == "Indexed"
    assert int(flags["nnodes"]) == job["spec"]["parallelism"] == job["spec"]["completions"]
    assert flags["nproc-per-node"] == container["resources"]["limits"]["nvidia.com/gpu"]
    assert flags["rdzv-endpoint"].startswith(f"{job['metadata']['name']}-0.{service['metadata']['name']}:")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
