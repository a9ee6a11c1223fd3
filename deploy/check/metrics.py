"""Checks docs/metrics.md, the alert rules and the dashboard against a running server and a running Prometheus.

Usage: metrics.py ADMIN CLASSIC                writes the server's /metrics to the file CLASSIC, in the classic text format
       metrics.py ADMIN --used-by PROMETHEUS   runs the checks

ADMIN and PROMETHEUS are HOST:PORT. The Prometheus must scrape the server, as the job sessiond.
"""

import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
NAME = re.compile(r"\b(?:sessiond|grpc_server|process)_\w+")
DEADLINE = 30


def get(url, accept="*/*"):
    request = urllib.request.Request(url, headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error} {error.read().decode()}")


def families(admin, accept=OPENMETRICS):
    """Returns the server's metrics, parsed strictly, and their text if it is in the classic format."""
    kind, text = get(f"http://{admin}/metrics", accept)
    if kind.startswith("application/openmetrics-text"):
        return list(parse_openmetrics(text)), None
    assert kind.startswith("text/plain"), f"/metrics is {kind}"
    return list(parse_classic(text)), text


class Collector:
    """A collector that returns the metrics of a server."""

    def __init__(self, metrics):
        self.metrics = metrics

    def collect(self):
        return self.metrics


def classic(admin):
    """Returns the metrics in the classic format: the server's own text or, if it has only OpenMetrics, a conversion."""
    metrics, text = families(admin, "text/plain; version=0.0.4")
    if text is None:
        registry = CollectorRegistry()
        registry.register(Collector(metrics))
        text = generate_latest(registry).decode()
    return text


def documented():
    with open("docs/metrics.md", encoding="utf-8") as opened:
        rows = re.findall(r"^\| `(\w+)` \| (\w+)", opened.read(), re.MULTILINE)
    return {name: kind for name, kind in rows}


def exported_names(admin):
    """Returns the names of the exported metrics as they are documented, each with its type."""
    suffixes = {"counter": "_total", "info": "_info"}
    return {
        family.name + suffixes.get(family.type, ""): "gauge" if family.type == "info" else family.type
        for family in families(admin)[0]
    }


def expressions():
    """Yields each query of the rules and the dashboard with its origin. The dashboard's variables are filled in."""
    with open("deploy/prometheus/rules.yaml", encoding="utf-8") as opened:
        for rule in (rule for group in yaml.safe_load(opened)["groups"] for rule in group["rules"]):
            yield rule["alert"], rule["expr"]
    with open("deploy/grafana/sessiond.json", encoding="utf-8") as opened:
        dashboard = json.load(opened)
    values = {"$job": "sessiond", "$instance": ".*", "$__rate_interval": "1m"}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for variable, value in values.items():
                expression = expression.replace(variable, value)
            yield f"dashboard: {panel['title']}", expression
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])
            yield f"dashboard: ${variable['name']}", found[1].replace("$job", "sessiond")


def query(prometheus, expression):
    _, text = get(f"http://{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    return json.loads(text)["data"]["result"]


def check_names(admin):
    known, exported = documented(), exported_names(admin)
    for name, kind in exported.items():
        assert known.get(name) == kind, f"docs/metrics.md: does not list {name}, a {kind} that the server exports"
    for where, expression in expressions():
        for name in NAME.findall(expression):
            family = re.sub(r"_(bucket|sum|count)$", "", name)
            assert family in known, f"{where}: there is no metric {name}"
    print(f"ok    {len(exported)} metrics are as documented, and all queries use documented metrics")
    missing = known.keys() - exported.keys()
    assert not missing, f"documented, but not exported by this server: {', '.join(sorted(missing))}"


def check_prometheus(prometheus):
    deadline = time.monotonic() + DEADLINE
    while not any(sample["value"][1] == "1" for sample in query(prometheus, 'up{job="sessiond"}')):
        assert time.monotonic() < deadline, f"Prometheus has not scraped the server: {get(f'http://{prometheus}/api/v1/targets')[1]}"
        time.sleep(0.1)
    (sessions,) = query(prometheus, "sessiond_sessions")
    assert sessions["value"][1] == "2", f"there are 2 sessions, but Prometheus has {sessions}"
    results = [(where, query(prometheus, expression)) for where, expression in expressions()]
    groups = json.loads(get(f"http://{prometheus}/api/v1/rules")[1])["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    wrong = [rule["name"] for rule in rules if rule["health"] == "err" or rule["state"] == "firing"]
    assert rules and not wrong, f"the server is healthy, but these rules fire or fail: {wrong}"
    with_data = sum(bool(result) for where, result in results if where.startswith("dashboard"))
    print(f"ok    Prometheus accepts all {len(results)} queries, and has data for {with_data} of the dashboard's")


def check_tested():
    with open("deploy/prometheus/rules_test.yaml", encoding="utf-8") as opened:
        tests = opened.read()
    for where, _ in expressions():
        raised = re.search(rf'alertname(: |="){where}\b', tests)
        assert where.startswith("dashboard") or raised, f"rules_test.yaml: no test raises {where}"


def main():
    admin = sys.argv[1]
    if sys.argv[2] == "--used-by":
        check_tested()
        check_names(admin)
        check_prometheus(sys.argv[3])
    else:
        with open(sys.argv[2], "w", encoding="utf-8") as opened:
            opened.write(classic(admin))


main()
