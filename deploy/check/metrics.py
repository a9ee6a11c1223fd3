"""Holds docs/metrics.md, the alert rules and the dashboard to what a running server tells, and to a running Prometheus.

Usage: metrics.py ADMIN CLASSIC                writes /metrics of the server, in Prometheus' classic text format, to the file CLASSIC
       metrics.py ADMIN --used-by PROMETHEUS   with a Prometheus that scrapes the server, as the job sessiond

ADMIN and PROMETHEUS are HOST:PORT.
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
    """The metrics as the server tells them, read strictly, and the text if it is the classic one."""
    kind, text = get(f"http://{admin}/metrics", accept)
    if kind.startswith("application/openmetrics-text"):
        return list(parse_openmetrics(text)), None
    assert kind.startswith("text/plain"), f"/metrics is {kind}"
    return list(parse_classic(text)), text


class Told:
    """A collector of what a server told."""

    def __init__(self, told):
        self.told = told

    def collect(self):
        return self.told


def classic(admin):
    """What the server tells in the classic format: its own text, or one made of its OpenMetrics where it has no other."""
    told, text = families(admin, "text/plain; version=0.0.4")
    if text is None:
        registry = CollectorRegistry()
        registry.register(Told(told))
        text = generate_latest(registry).decode()
    return text


def documented():
    with open("docs/metrics.md", encoding="utf-8") as opened:
        rows = re.findall(r"^\| `(\w+)` \| (\w+)", opened.read(), re.MULTILINE)
    return {name: kind for name, kind in rows}


def told_names(admin):
    """The names by which the metrics are documented, each with its type."""
    suffixes = {"counter": "_total", "info": "_info"}
    return {
        family.name + suffixes.get(family.type, ""): "gauge" if family.type == "info" else family.type
        for family in families(admin)[0]
    }


def expressions():
    """What is asked of Prometheus, each with where, and with the dashboard's variables filled in."""
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
    known, told = documented(), told_names(admin)
    for name, kind in told.items():
        assert known.get(name) == kind, f"docs/metrics.md: the server tells {name}, a {kind}"
    for where, expression in expressions():
        for name in NAME.findall(expression):
            family = re.sub(r"_(bucket|sum|count)$", "", name)
            assert family in known, f"{where}: there is no {name}"
    print(f"ok    {len(told)} metrics are as documented, and those that are asked for are among the documented")
    missing = known.keys() - told.keys()
    assert not missing, f"documented, and not told by this server: {', '.join(sorted(missing))}"


def check_prometheus(prometheus):
    deadline = time.monotonic() + DEADLINE
    while not any(sample["value"][1] == "1" for sample in query(prometheus, 'up{job="sessiond"}')):
        assert time.monotonic() < deadline, f"Prometheus has not scraped the server: {get(f'http://{prometheus}/api/v1/targets')[1]}"
        time.sleep(0.1)
    (sessions,) = query(prometheus, "sessiond_sessions")
    assert sessions["value"][1] == "2", f"there are 2 sessions, and Prometheus says {sessions}"
    asked = [(where, query(prometheus, expression)) for where, expression in expressions()]
    groups = json.loads(get(f"http://{prometheus}/api/v1/rules")[1])["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    unwell = [rule["name"] for rule in rules if rule["health"] == "err" or rule["state"] == "firing"]
    assert rules and not unwell, f"of a server that is well, these rules are not: {unwell}"
    answered = sum(bool(result) for where, result in asked if where.startswith("dashboard"))
    print(f"ok    Prometheus scrapes the server; it took {len(asked)} queries, and had data for {answered} of the dashboard's")


def check_tested():
    with open("deploy/prometheus/rules_test.yaml", encoding="utf-8") as opened:
        tests = opened.read()
    for where, _ in expressions():
        raised = re.search(rf'alertname(: |="){where}\b', tests)
        assert where.startswith("dashboard") or raised, f"rules_test.yaml: nothing raises {where}"


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
