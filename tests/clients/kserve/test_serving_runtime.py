"""The manifest of the runtime, by the types that KServe's own client has for it."""

from pathlib import Path

import yaml
from kserve import V1alpha1ServingRuntime, V1alpha1ServingRuntimeSpec, V1alpha1SupportedModelFormat

MANIFEST = Path(__file__).parents[3] / "deploy" / "kserve" / "servingruntime.yaml"


def known(words, model):
    assert words.keys() <= set(model.attribute_map.values()), words.keys() - set(model.attribute_map.values())


def test_the_runtime_has_only_fields_that_kserve_knows():
    runtime = yaml.safe_load(MANIFEST.read_text())
    assert (runtime["apiVersion"], runtime["kind"]) == ("serving.kserve.io/v1alpha1", "ServingRuntime")
    known(runtime, V1alpha1ServingRuntime)
    known(runtime["spec"], V1alpha1ServingRuntimeSpec)
    for one in runtime["spec"]["supportedModelFormats"]:
        known(one, V1alpha1SupportedModelFormat)
    [container] = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
