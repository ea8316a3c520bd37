"""compose.yaml: what it mounts is there, what it sets are settings, and everybody finds everybody."""

import json
import re
from urllib.parse import urlsplit

import httpx
import yaml

from serve.settings import load_settings
from tests.deploy.conftest import ROOT
from tests.deploy.test_dockerfile import image_environment

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def provisioned(name: str) -> dict:
    return yaml.safe_load((ROOT / "k8s" / "compose" / name).read_text())


def test_what_is_mounted_is_there_and_named_volumes_are_declared() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", ()):
            source = mount.rsplit(":", 2 if mount.endswith(":ro") else 1)[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert mount.endswith(":ro")
            elif not source.startswith("${BUNDLE"):
                assert source in COMPOSE["volumes"]


def test_the_settings_are_the_servers_own_and_its_cache_is_the_valkey() -> None:
    server = SERVICES["server"]
    settings = load_settings({}, image_environment() | server["environment"])

    assert urlsplit(settings.cache_url).hostname in SERVICES.keys() & set(server["depends_on"])
    assert f":{settings.bundle}:ro" in server["volumes"][0]
    assert int(server["stop_grace_period"].removesuffix("s")) > settings.drain_seconds
    assert server["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]


def test_code_search_adds_a_database_that_the_server_asks_and_nobody_else_reaches() -> None:
    search = yaml.safe_load((ROOT / "compose.search.yaml").read_text())
    server, database = search["services"]["server"], search["services"]["database"]
    settings = load_settings({}, image_environment() | SERVICES["server"]["environment"] | server["environment"])
    url = urlsplit(re.sub(r"\$\{.*?\}", "secret", str(settings.index_url)))

    assert url.hostname in search["services"].keys() & server["depends_on"].keys()
    assert (url.username, url.path) == (database["environment"]["POSTGRES_USER"], "/deepcode")
    assert database["environment"]["POSTGRES_PASSWORD"] in server["environment"]["DEEPCODE_INDEX_URL"]
    assert [volume.rsplit(":", 2)[-2] for volume in server["volumes"]] == [str(settings.search_bundle)]
    assert {volume.split(":")[0] for volume in database["volumes"]} == search["volumes"].keys()
    assert "search-postgres" in server["build"]["args"]["EXTRAS"].split(",")
    assert "ports" not in database
    assert database["cap_drop"] == ["ALL"]


def test_everything_is_published_to_this_machine_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]

    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert [name for name, service in SERVICES.items() if service["cap_drop"] != ["ALL"]] == []


def test_prometheus_scrapes_the_server_and_grafana_asks_prometheus(server_url: str) -> None:
    [job] = provisioned("prometheus.yaml")["scrape_configs"]
    [target] = job["static_configs"][0]["targets"]
    [source] = provisioned("datasource.yaml")["datasources"]

    assert target == f"server:{image_environment()['DEEPCODE_PORT']}"
    assert httpx.get(server_url + job["metrics_path"], timeout=60).status_code == 200
    assert urlsplit(source["url"]).hostname == "prometheus"
    assert urlsplit(source["url"]).netloc.partition(":")[2] == SERVICES["prometheus"]["ports"][0].rpartition(":")[2]


def test_grafana_shows_our_dashboard() -> None:
    [provider] = provisioned("dashboards.yaml")["providers"]
    mounts = [mount.split(":") for mount in SERVICES["grafana"]["volumes"]]
    [folder] = [ROOT / source for source, target, *_ in mounts if target == provider["options"]["path"]]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    assert home == f"{provider['options']['path']}/deepcode-analyst.json"
    assert json.loads((folder / "deepcode-analyst.json").read_text())["panels"]
