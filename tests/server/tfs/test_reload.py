"""HandleReloadConfigRequest and versions, by TensorFlow Serving's own client: its list is what is served from then on."""

import shutil

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.wrappers_pb2 import Int64Value

from tests.conftest import EXAMPLES

Code = grpc.StatusCode


@pytest.fixture
def folder(tmp_path):
    for name, model in (("iris", "iris.skops"), ("diabetes", "diabetes.skops")):
        for version in ("1", "2"):
            (tmp_path / name / version).mkdir(parents=True)
            shutil.copy(EXAMPLES / model, tmp_path / name / version / "model.skops")
    return tmp_path


def config(folder, name, labels=None, **policy):
    return {"name": name, "base_path": str(folder / name), "model_version_policy": policy or None, "version_labels": labels or {}}


def code_of(call, *args):
    with pytest.raises(grpc.RpcError) as raised:
        call(*args)
    return raised.value.code(), raised.value.details()


def test_a_clients_list_of_models_replaces_all_that_is_served(serve, wire, folder, client_of, messages):
    with serve(folder / "iris", "--model_name", "iris", "--enable_model_control") as server, client_of(server) as client:

        def reload(*configs):
            return client.HandleReloadConfigRequest(
                messages.HandleReloadConfigRequest(config={"model_config_list": {"config": configs}}), timeout=60
            )

        def predict(**spec):
            request = messages.Predict(model_spec={"name": "iris", **spec})
            request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([[6.3, 3.3, 6.0, 2.5]])))
            return client.Predict(request, timeout=30)

        def status(name):
            found = client.GetModelStatus(messages.GetModelStatus(model_spec={"name": name}), timeout=30).model_version_status
            return {s.version: s.state for s in found}

        assert status("iris") == {2: 30}
        assert predict().model_spec.version.value == 2
        answer = reload(config(folder, "iris", {"stable": 1}, all={}), config(folder, "diabetes", specific={"versions": [1]}))
        assert (answer.status.error_code, answer.status.error_message) == (0, "")
        assert (status("iris"), status("diabetes")) == ({1: 30, 2: 30}, {1: 30})
        assert predict(version_label="stable").model_spec.version.value == 1
        assert predict(version=Int64Value(value=1)).model_spec.version.value == 1
        code, text = code_of(lambda: predict(version_label="1"))
        assert (code, "Unrecognized servable version label: 1" in text) == (Code.INVALID_ARGUMENT, True)
        with wire(server.http) as connection:
            rows = {"examples": [{"x": [6.3, 3.3, 6.0, 2.5]}]}
            for which in ("", "/versions/1", "/labels/stable"):
                path = f"/v1/models/iris{which}"
                told = connection.ask("GET", path).json["model_version_status"]
                assert [one["version"] for one in told] == ([*"12"] if not which else ["1"])
                assert connection.ask("GET", f"{path}/metadata").json["model_spec"]["version"] == ("1" if which else "2")
                assert connection.ask("POST", f"{path}:regress", rows).json == {"results": [2.0]}
                assert connection.ask("POST", f"{path}:predict", {"instances": [[6.3, 3.3, 6.0, 2.5]]}).json == {
                    "predictions": [2]
                }
            for path in ("/v1/models/iris/labels/canary:predict", "/v1/models/iris/labels/canary"):
                answer = connection.ask("POST" if "predict" in path else "GET", path, {"instances": [[1, 2, 3, 4]]})
                assert (answer.status, "Unrecognized servable version label: canary" in answer.error) == (400, True)
        reload(config(folder, "diabetes"))
        assert code_of(lambda: predict())[0] is Code.NOT_FOUND
        for wrong, text in (
            (config(folder, "diabetes", specific={"versions": []}), "no version policy"),
            (config(folder, "diabetes", {"7": 1}), "is no label"),
            ({"name": "diabetes"}, "base_path is empty"),
            ({"name": "diabetes", "base_path": "s3://models/diabetes"}, "not on this machine"),
            (config(folder, "none"), "none"),
        ):
            code, told = code_of(reload, wrong)
            assert (code, text in told) == (Code.INVALID_ARGUMENT, True), told
        assert "model_config_list" in code_of(client.HandleReloadConfigRequest, messages.HandleReloadConfigRequest())[1]
