"""TensorFlow Serving's services over gRPC, by path: `PredictionService` and `ModelService`, over every runtime.

Bytes of messages in, bytes out, as in `grpc_calls`, which takes these methods among its own.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server import classify
from server.batcher import aside
from server.errors import FailedPrecondition, InvalidRequest, ServingError, UnknownSignature
from server.inference import Entry, Inference
from server.model_config import ModelSpec, local_path
from server.protocols import tfs, tfs_grpc
from server.protocols.examples import from_input
from server.repository import Repository
from server.versions import labels_of, policy_of

PROTOCOL = "tfs"
SERVICES = (tfs_grpc.PREDICTION, tfs_grpc.MODEL)

# (message, timeout in seconds from now or None, the call's record) -> the answer's bytes
Answering = Callable[[Any, float | None, Entry], Awaitable[bytes]]
# (bytes of a message, what comes with it) -> bytes of a message; `grpc_calls.Unary`
Unary = Callable[[bytes, Any], Awaitable[bytes]]


class TfsCalls:
    """`unary`: the methods by path.  They raise ServingError."""

    def __init__(self, inference: Inference, repository: Repository) -> None:
        self._inference, self._registry, self._repository = inference, inference.registry, repository
        self.unary: dict[str, Unary] = {}
        for name, inferring in {
            "Predict": self._predict,
            "Classify": self._classify,
            "Regress": self._regress,
            "MultiInference": self._multi_inference,
        }.items():
            self.unary[f"/{tfs_grpc.PREDICTION}/{name}"] = self._recorded(name, inferring)
        for service, name, telling in (
            (tfs_grpc.PREDICTION, "GetModelMetadata", self._metadata),
            (tfs_grpc.MODEL, "GetModelStatus", self._status),
        ):
            self.unary[f"/{service}/{name}"] = _of_messages(tfs_grpc.METHODS[service][name][0], telling)
        self.unary[f"/{tfs_grpc.MODEL}/HandleReloadConfigRequest"] = self._reload

    def _recorded(self, name: str, method: Answering) -> Unary:
        """An inference from bytes to bytes, with one record a call."""
        inference, path = self._inference, f"/{tfs_grpc.PREDICTION}/{name}"
        request = tfs_grpc.METHODS[tfs_grpc.PREDICTION][name][0]

        async def answer(sent: bytes, told: Any) -> bytes:
            with inference.recorded(PROTOCOL, name, path, told.request_id) as entry:
                entry.bytes_in = len(sent)
                message = await aside(inference.executor, len(sent), tfs_grpc.parse, request, sent)
                answered = await method(message, told.timeout, entry)
                entry.bytes_out = len(answered)
                return answered

        return answer

    @contextmanager
    def _asked(self, request: Any, entry: Entry | None = None) -> Iterator[tfs.Asked]:
        """What the request means; what then can't be found is said in the words that clients look for."""
        asked = tfs_grpc.asked_of(request)
        if entry is not None:
            entry.model = asked.model
        try:
            yield asked
        except ServingError as error:
            found = tfs.worded(error, asked, asked.model in self._registry.names())
            raise (FailedPrecondition(str(found)) if isinstance(error, UnknownSignature) else found) from error

    async def _predict(self, request: Any, timeout: float | None, entry: Entry) -> bytes:
        inference, size = self._inference, entry.bytes_in
        with self._asked(request, entry) as asked:
            handle = classify.ready(self._registry, asked)
            made = await aside(
                inference.executor, size, tfs_grpc.predict_request, request, asked, inference.settings.max_body_bytes
            )
            # values that repeat the last one are not on the wire, but they are work
            made.timeout, made.nbytes = timeout, max(size, sum([t.array.nbytes for t in made.inputs.values()]))
            job = await handle.job(made)
            response = await handle.infer(job, "")
            entry.ran = handle, job.rows, response.timing
        name = tfs.name_of(job.signature, handle.runtime.signatures)
        encoded: bytes = await aside(inference.executor, response.nbytes, tfs_grpc.predict_response, response, name)
        return encoded

    async def _classify(self, request: Any, timeout: float | None, entry: Entry) -> bytes:
        return await self._of_examples("ClassificationResponse", tfs.CLASSIFY, request, timeout, entry)

    async def _regress(self, request: Any, timeout: float | None, entry: Entry) -> bytes:
        return await self._of_examples("RegressionResponse", tfs.REGRESS, request, timeout, entry)

    async def _of_examples(self, response: str, method: str, request: Any, timeout: float | None, entry: Entry) -> bytes:
        with self._asked(request, entry) as asked:
            result, spec = await self._evaluated(asked, method, await self._examples(request, entry), timeout, entry)
        return _bytes(tfs_grpc.message(response)(result=result, model_spec=spec))

    async def _multi_inference(self, request: Any, timeout: float | None, entry: Entry) -> bytes:
        response = tfs_grpc.message("MultiInferenceResponse")()
        tasks = tfs_grpc.tasks_of(request)
        for at, (_, method) in enumerate(tasks):
            if method not in classify.METHODS:
                raise InvalidRequest(f"task {at} has the method {method!r}, expected one of: {', '.join(classify.METHODS)}")
        examples = await self._examples(request, entry)
        for task, (_, method) in zip(request.tasks, tasks, strict=True):
            with self._asked(task, entry) as asked:
                result, spec = await self._evaluated(asked, method, examples, timeout, entry)
            field = "classification_result" if method == tfs.CLASSIFY else "regression_result"
            response.results.add(model_spec=spec, **{field: result})
        return _bytes(response)

    async def _examples(self, request: Any, entry: Entry) -> Any:
        return await aside(self._inference.executor, entry.bytes_in, from_input, request.input)

    async def _evaluated(
        self, asked: tfs.Asked, method: str, examples: Any, timeout: float | None, entry: Entry
    ) -> tuple[Any, Any]:
        """The result message of one method, and the model_spec to go with it."""
        handle = classify.ready(self._registry, asked)
        given = classify.Given(examples, asked.signature or None, timeout, entry.bytes_in)
        told, signature = await classify.METHODS[method](self._inference, handle, given, entry)
        result = tfs_grpc.classification_result if method == tfs.CLASSIFY else tfs_grpc.regression_result
        return result(told), tfs_grpc.model_spec(handle.name, handle.version, signature)

    def _metadata(self, request: Any) -> Any:
        with self._asked(request) as asked:
            handle = classify.ready(self._registry, asked)
            fields = list(request.metadata_field)
            return tfs_grpc.metadata(handle.name, handle.version, fields, handle.runtime.signatures)

    def _status(self, request: Any) -> Any:
        with self._asked(request) as asked:
            return tfs_grpc.model_status(classify.parts(self._registry, asked))

    async def _reload(self, sent: bytes, told: Any) -> bytes:
        """Serve the models of the request's list and no others."""
        self._repository.check_control()
        request = tfs_grpc.parse(tfs_grpc.METHODS[tfs_grpc.MODEL]["HandleReloadConfigRequest"][0], sent)
        if request.config.WhichOneof("config") != "model_config_list":
            raise InvalidRequest("config has no model_config_list, which is all that a server's models can be told by")
        await self._repository.configure([_spec(at, config) for at, config in enumerate(request.config.model_config_list.config)])
        return _bytes(tfs_grpc.message("ReloadConfigResponse")(status={}))


def _spec(at: int, config: Any) -> ModelSpec:
    """A ModelConfig as the repository knows models; InvalidRequest says what is wrong with it."""
    policy = config.model_version_policy
    try:
        match policy.WhichOneof("policy_choice"):
            case "all":
                chosen = policy_of("all")
            case "specific":
                chosen = policy_of(f"specific:{','.join(map(str, policy.specific.versions))}")
            case _:
                chosen = policy_of(f"latest:{policy.latest.num_versions or 1}")
        labels = labels_of(f"{label}={version}" for label, version in config.version_labels.items())
        if not config.base_path:
            raise ValueError("base_path is empty, expected the model's folder")
        return ModelSpec(config.name, local_path(config.base_path, Path()), chosen, labels)
    except ValueError as error:
        raise InvalidRequest(f"config[{at}], model {config.name[:80]!r}: {error}") from None


def _of_messages(request: Any, method: Callable[[Any], Any]) -> Unary:
    async def answer(sent: bytes, told: Any) -> bytes:
        return _bytes(method(tfs_grpc.parse(request, sent)))

    return answer


def _bytes(message: Any) -> bytes:
    sent: bytes = message.SerializeToString()
    return sent
