"""TensorFlow Serving's own client, and a SavedModel of the kind that it was made for."""

from types import SimpleNamespace

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

MESSAGES = SimpleNamespace(
    Predict=predict_pb2.PredictRequest,
    Classify=classification_pb2.ClassificationRequest,
    Regress=regression_pb2.RegressionRequest,
    MultiInference=inference_pb2.MultiInferenceRequest,
    GetModelMetadata=get_model_metadata_pb2.GetModelMetadataRequest,
    SignatureDefMap=get_model_metadata_pb2.SignatureDefMap,
    GetModelStatus=get_model_status_pb2.GetModelStatusRequest,
    HandleReloadConfigRequest=model_management_pb2.ReloadConfigRequest,
)


class Client:
    """`client.Predict(request)` and the like, over one channel."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self._stubs = (
            prediction_service_pb2_grpc.PredictionServiceStub(self.channel),
            model_service_pb2_grpc.ModelServiceStub(self.channel),
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.channel.close()

    def __getattr__(self, name: str):
        return next(getattr(stub, name) for stub in self._stubs if hasattr(stub, name))


@pytest.fixture(scope="package")
def client_of():
    """`with client_of(server) as client`."""
    return lambda server: Client(server.grpc)


@pytest.fixture(scope="package")
def messages():
    return MESSAGES


def features(**values) -> tf.train.Features:
    """Of floats, integers or bytes, by the type of the first."""
    made = tf.train.Features()
    for name, given in values.items():
        given = given if isinstance(given, list) else [given]
        field = {float: "float_list", int: "int64_list"}.get(type(given[0]) if given else bytes, "bytes_list")
        getattr(made.feature[name], field).value.extend([v.encode() if isinstance(v, str) else v for v in given])
    return made


@pytest.fixture(scope="package")
def example():
    """`example(x=[1.0, 2.0])`: a tf.Example."""
    return lambda **values: tf.train.Example(features=features(**values))


@pytest.fixture(scope="package")
def half_plus_two(tmp_path_factory):
    """A SavedModel whose signatures read serialised tf.Examples and say what they are for, as TensorFlow 1 exported them."""
    folder = tmp_path_factory.mktemp("saved") / "half_plus_two"
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        v1 = tf.compat.v1
        examples = v1.placeholder(tf.string, [None], "tf_example")
        x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        y = x * 0.5 + 2.0
        scores = tf.concat([y, -y], 1)
        labels = tf.tile(tf.constant([["up", "down"]]), [tf.shape(x)[0], 1])
        raw = v1.placeholder(tf.float32, [None, 1], "raw")
        info = v1.saved_model.build_tensor_info
        define = v1.saved_model.build_signature_def
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": define({"x": info(raw)}, {"y": info(raw * 0.5 + 2.0)}, "tensorflow/serving/predict"),
                "classify_x": define(
                    {"inputs": info(examples)}, {"classes": info(labels), "scores": info(scores)}, "tensorflow/serving/classify"
                ),
                "regress_x": define({"inputs": info(examples)}, {"outputs": info(y)}, "tensorflow/serving/regress"),
            },
        )
        builder.save()
    return folder
