"""The chart and the manifest, without a cluster: by helm, by Kubernetes' own schemas, and by what must fit together."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from stack import DEPLOY, output_of, tool

HELM = Path(sys.executable).with_name("helm")
CHART = DEPLOY / "helm" / "sconce"
# Schemas of resources that operators bring are not Kubernetes' own.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}
ALL = {
    "models.claim": "models", "autoscaling.enabled": "true", "serviceMonitor.enabled": "true", "prometheusRule.enabled": "true",
    "dashboards.enabled": "true", "gpu.enabled": "true", "otlpEndpoint": "http://collector:4317", "podAnnotations.a": "b",
}


def helm(**values):
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return subprocess.run([HELM, "template", "test", CHART, "--namespace", "ns", *words], capture_output=True, text=True, timeout=60)


def rendered(**values) -> dict:
    """What the chart makes, by kind; `ConfigMap` is the configuration, `Dashboards` the other one."""
    done = helm(**values)
    assert done.returncode == 0, done.stderr
    made = {}
    for one in yaml.safe_load_all(done.stdout):
        is_dashboards = one["metadata"]["name"].endswith("-dashboards")
        made["Dashboards" if is_dashboards else one["kind"]] = one
    return made


def test_helm_lint():
    output_of(HELM, "lint", "--strict", CHART)


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("values, kinds", [
    ({}, {"ConfigMap", "Deployment", "Service", "PodDisruptionBudget"}),
    (ALL, {"ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Dashboards", *FOREIGN}),
    ({"registry.claim": "registry", "replicas": "1", "podDisruptionBudget.enabled": "false"}, {"ConfigMap", "Deployment", "Service"}),
], ids=["as it is", "all of it", "with a registry"])
def test_what_the_chart_makes_is_what_kubernetes_takes(values, kinds, version):
    made = rendered(**values)
    assert made.keys() == kinds
    for kind, one in made.items():
        if kind not in FOREIGN:
            kubernetes_validate.validate(one, version, strict=True)


def test_a_pod_is_confined_probed_and_drained():
    deployment = rendered(**ALL)["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }
    assert {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")} == {"/readyz", "/healthz"}
    # Endpoints forget it, calls end, and then some.
    pause, drain = container["lifecycle"]["preStop"]["sleep"]["seconds"], int(container["env"][0]["value"])
    assert container["env"][0]["name"] == "SCONCE__LIMITS__DRAIN_TIMEOUT_SECONDS"
    assert pod["terminationGracePeriodSeconds"] > pause + drain
    # A GPU for the pod, a node that has one, a program that uses it.
    assert container["resources"]["limits"] == {"memory": "2Gi", "nvidia.com/gpu": 1}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"} and pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "--device=cuda:0" in container["args"]
    # Every mount has its volume.
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}


def test_parts_of_the_chart_name_each_other():
    made = rendered(**ALL)
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert labels >= made["Service"]["spec"]["selector"].items()
    assert labels >= made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items()
    assert made["Service"]["metadata"]["labels"].items() >= made["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
    ports = {port["name"] for port in made["Service"]["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in made["ServiceMonitor"]["spec"]["endpoints"]} <= ports
    assert made["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == made["Deployment"]["metadata"]["name"]
    # The autoscaler decides how many pods there are, and nobody else.
    assert "replicas" not in made["Deployment"]["spec"]
    # Alerts look for targets whose job is named after the service.
    assert "sconce" in made["Service"]["metadata"]["name"]


def test_pods_are_replaced_when_their_configuration_changes():
    def checksum(**values):
        made = rendered(**values)
        annotation = made["Deployment"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        return annotation, made["ConfigMap"]["data"]["sconce.toml"]

    before, file = checksum()
    assert before == hashlib.sha256(file.encode()).hexdigest()
    assert checksum(config="# another")[0] != before and checksum(replicas=5)[0] == before


def test_the_chart_brings_the_rules_and_dashboards_that_are_tested(tmp_path):
    made = rendered(**ALL)
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump(made["PrometheusRule"]["spec"]))
    output_of(tool("promtool"), "check", "rules", rules)
    files = [yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))]
    assert made["PrometheusRule"]["spec"]["groups"] == [group for file in files for group in file["groups"]]
    dashboards = {path.name: json.loads(path.read_text()) for path in (DEPLOY / "grafana" / "dashboards").glob("*.json")}
    assert {name.removeprefix("sconce-"): json.loads(text) for name, text in made["Dashboards"]["data"].items()} == dashboards


@pytest.mark.parametrize("values, complaint", [
    ({"registry.claim": "registry"}, "one pod alone can hold a registry"),
    ({"registry.claim": "registry", "replicas": "1", "autoscaling.enabled": "true"}, "one pod alone can hold a registry"),
    ({"registry.claim": "registry", "models.claim": "models", "replicas": "1"}, "a model lives in one place"),
    ({"replica": "3"}, "additional properties 'replica' not allowed"),
    ({"replicas": "-1"}, "minimum"),
    ({"service.type": "Cluster"}, "service/type"),
    ({"otlpEndpoint": "collector:4317"}, "otlpEndpoint"),
])
def test_values_that_cannot_work_are_refused(values, complaint):
    done = helm(**values)
    assert done.returncode != 0 and complaint in done.stderr, done.stderr


def test_the_container_of_the_kserve_runtime_is_a_pods():
    runtime = yaml.safe_load((DEPLOY / "kserve" / "servingruntime.yaml").read_text())
    pod = {"containers": runtime["spec"]["containers"]}
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "metadata": runtime["metadata"], "spec": pod}, "1.37", strict=True)
