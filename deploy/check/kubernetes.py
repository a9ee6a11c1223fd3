"""Checks in the Kubernetes manifests what their schemas cannot express.

Usage: kubernetes.py SERVER, with the resources on standard input.

Selectors must match their targets, ports must exist, a pod must have enough time to drain, and each SESSIOND_ variable
must be a flag of the program.
"""

import re
import subprocess
import sys

import yaml


def flags(server):
    """Returns the environment variables that the server reads, each with its default or None."""
    text = subprocess.run([server, "serve", "--help"], check=True, capture_output=True, text=True).stdout
    text = re.sub(r"\s+", " ", text)
    found = dict.fromkeys(re.findall(r"\[env: (SESSIOND_\w+)[=\]]", text))
    found |= dict(re.findall(r"\[env: (SESSIOND_\w+)(?:=[^\]]*)?\] \[default: ([^\]]+)\]", text))
    return found


def matches(selector, labels):
    return all(labels.get(key) == value for key, value in selector["matchLabels"].items())


def check_pod(name, spec, flags):
    (container,) = spec["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    for variable in environment:
        assert variable in flags, f"{name}: {variable} is not a flag of the program"
    drain = environment.get("SESSIOND_DRAIN_TIMEOUT") or flags["SESSIOND_DRAIN_TIMEOUT"]
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed = int(drain.removesuffix("s")) + pause
    granted = spec["terminationGracePeriodSeconds"]
    assert granted >= needed + 5, f"{name}: a pod that needs {needed} s to stop is killed after {granted} s"
    for probe in ("readinessProbe", "livenessProbe"):
        check_probe(f"{name}: {probe}", container[probe], container["ports"])
    assert container["livenessProbe"]["httpGet"]["path"] == "/live", f"{name}: would be restarted because of its storage"
    assert "startupProbe" not in container, f"{name}: would be restarted while it waits for its storage"
    hardened = container["securityContext"] | spec["securityContext"]
    assert hardened["runAsNonRoot"] and hardened["readOnlyRootFilesystem"], f"{name}: is not hardened"
    assert hardened["allowPrivilegeEscalation"] is False, f"{name}: can gain privileges"
    assert hardened["capabilities"] == {"drop": ["ALL"]}, f"{name}: has capabilities"
    assert hardened["seccompProfile"] == {"type": "RuntimeDefault"}, f"{name}: can make any system call"


def check_probe(name, probe, ports):
    port = probe["grpc"]["port"] if "grpc" in probe else probe["httpGet"]["port"]
    assert port in {named for entry in ports for named in (entry["name"], entry["containerPort"])}, f"{name}: no port {port}"


def main():
    server_flags = flags(sys.argv[1])
    resources = [resource for resource in yaml.safe_load_all(sys.stdin) if resource]
    of_kind = {}
    for resource in resources:
        of_kind.setdefault(resource["kind"], []).append(resource)
    workloads = of_kind.get("Deployment", []) + of_kind.get("StatefulSet", [])
    (service,) = of_kind["Service"]
    service_ports = {port["name"] for port in service["spec"]["ports"]}
    assert workloads, "there is no workload"
    for workload in workloads:
        template = workload["spec"]["template"]
        name, labels, spec = workload["kind"], template["metadata"]["labels"], template["spec"]
        check_pod(name, spec, server_flags)
        ports = {port["name"] for port in spec["containers"][0]["ports"]}
        selectors = [workload["spec"]["selector"], {"matchLabels": service["spec"]["selector"]}]
        selectors += [constraint["labelSelector"] for constraint in spec.get("topologySpreadConstraints", [])]
        selectors += [budget["spec"]["selector"] for budget in of_kind.get("PodDisruptionBudget", [])]
        selectors += [policy["spec"]["podSelector"] for policy in of_kind["NetworkPolicy"]]
        for selector in selectors:
            assert matches(selector, labels), f"{name}: {selector} does not match its pods"
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports, f"Service: its pods have no port {port['targetPort']}"
        for rule in (rule for policy in of_kind["NetworkPolicy"] for rule in policy["spec"]["ingress"]):
            assert {port["port"] for port in rule["ports"]} <= ports, f"NetworkPolicy: {rule['ports']} are not ports of the pods"
    for monitor in of_kind.get("ServiceMonitor", []):
        assert matches(monitor["spec"]["selector"], service["metadata"]["labels"]), "ServiceMonitor: matches no Service"
        assert monitor["spec"]["jobLabel"] in service["metadata"]["labels"], "ServiceMonitor: the job has no name"
        for endpoint in monitor["spec"]["endpoints"]:
            assert endpoint["port"] in service_ports, f"ServiceMonitor: the Service has no port {endpoint['port']}"
    print(f"ok    {len(resources)} resources fit together and fit the program")


main()
