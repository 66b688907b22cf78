"""Run by a Python that has KServe's SDK: what its users do with it, each step's finding as a line of JSON.

python with_sdk.py KUBECONFIG NAMESPACE FOLDER     FOLDER is where a file with credentials may be written
"""

import json
import sys
import time
from pathlib import Path

from kserve import (
    KServeClient,
    V1beta1InferenceService,
    V1beta1InferenceServiceSpec,
    V1beta1ModelFormat,
    V1beta1ModelSpec,
    V1beta1PredictorSpec,
    V1beta1SKLearnSpec,
)
from kubernetes import client

kubeconfig, namespace, folder = sys.argv[1:]
kserve = KServeClient(config_file=kubeconfig)


def told(step, value):
    print(json.dumps({"step": step, "found": value}, default=str), flush=True)


def service(name, uri, canary=None, account=None):
    model = V1beta1ModelSpec(model_format=V1beta1ModelFormat(name="sklearn"), storage_uri=uri)
    predictor = V1beta1PredictorSpec(model=model, min_replicas=1, canary_traffic_percent=canary, service_account_name=account)
    return V1beta1InferenceService(
        api_version="serving.kserve.io/v1beta1",
        kind="InferenceService",
        metadata=client.V1ObjectMeta(name=name, namespace=namespace),
        spec=V1beta1InferenceServiceSpec(predictor=predictor),
    )


def wait(name, generation=None):
    kserve.wait_isvc_ready(name, namespace=namespace, timeout_seconds=60, polling_interval=0.2, expected_generation=generation)


def traffic(name):
    return {
        t["revisionName"]: t["percent"]
        for t in kserve.get(name, namespace=namespace)["status"]["components"]["predictor"]["traffic"]
    }


ONE, TWO = "https://models.example.com/one.skops", "https://models.example.com/two.skops"

told("created", kserve.create(service("sdk", ONE))["metadata"]["name"])
wait("sdk")
found = kserve.get("sdk", namespace=namespace)
told("url", found["status"]["url"])
told("ready", kserve.is_isvc_ready("sdk", namespace=namespace))
told("listed", [one["metadata"]["name"] for one in kserve.get(namespace=namespace)["items"]])

patched = kserve.patch("sdk", service("sdk", TWO, canary=20))
wait("sdk", patched["metadata"]["generation"])
told("canary", traffic("sdk"))

kserve.get("sdk", namespace=namespace, watch=True, timeout_seconds=20)
told("watched", True)

replaced = kserve.replace("sdk", service("sdk", TWO))
wait("sdk", replaced["metadata"]["generation"])
told("promoted", traffic("sdk"))

# the form of earlier releases
legacy = service("legacy", ONE)
legacy.spec.predictor.model, legacy.spec.predictor.sklearn = None, V1beta1SKLearnSpec(storage_uri=ONE)
kserve.create(legacy, watch=True, timeout_seconds=60)
told("legacy", kserve.is_isvc_ready("legacy", namespace=namespace))

credentials = Path(folder) / "credentials"
# as the SDK wants them: it puts what it finds into the Secret's data as it is
credentials.write_text("[default]\naws_access_key_id = a2V5\naws_secret_access_key = aGlkZGVu\n")
kserve.set_credentials(
    storage_type="S3",
    namespace=namespace,
    credentials_file=str(credentials),
    service_account="reader",
    s3_endpoint="minio.example.com:9000",
    s3_use_https="0",
)
kserve.create(service("private", "s3://models/one", account="reader"))
wait("private")
template = client.AppsV1Api().read_namespaced_deployment("private-predictor", namespace).spec.template.spec
told("credentials", {one.name: one.value or bool(one.value_from) for one in template.init_containers[0].env or ()})

try:
    kserve.create(service("Wrong_Name", ONE))
    told("refused", "")
except RuntimeError as error:
    told("refused", str(error))

kserve.delete("sdk", namespace=namespace)
deadline = time.monotonic() + 30
while True:
    try:
        kserve.get("sdk", namespace=namespace)
    except RuntimeError as error:
        told("deleted", "NotFound" in str(error))
        break
    if time.monotonic() > deadline:
        told("deleted", False)
        break
    time.sleep(0.1)
