"""TensorFlow models: SavedModels by their signatures, and Keras models (`.keras`, `.h5`) by their layers' names.

TensorFlow is imported when the first such model is loaded, never before.  Options (`--runtime-option`):

    tags=serve,gpu                  which graph of a SavedModel that has several
    custom-objects=module:NAME      a dict of the classes and functions that a Keras model needs; runs their module
    op-library=FILE.so              a library of custom ops; runs its code
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from predictors._keras import open_keras
from predictors._tensorflow_graph import DEFAULT_SIGNATURE, Opened, Traced, first_line, make_signature, newer_than, spec_of, trace
from predictors._tensorflow_import import import_tensorflow, set_threads
from server.errors import InvalidInput, ModelLoadError, NotSupported, ResourceExhausted, RuntimeFailed
from server.runtime import LoadOptions, ModelFile, Runtime
from server.tensors import Array, Signature, TensorSpec, did_you_mean

OPTIONS = ("tags", "custom-objects", "op-library")
INIT_OP = "__saved_model_init_op"
SAVED_MODEL_TRUST = "a SavedModel is a program: only serve ones you trust"


def load(found: ModelFile, options: LoadOptions) -> Runtime:
    for name in options.extra:
        if name not in OPTIONS:
            raise ModelLoadError(
                f"the tensorflow runtime has no option {name!r}{did_you_mean(name, OPTIONS)}", f"it has: {', '.join(OPTIONS)}"
            )
    for name in ("custom-objects", "op-library"):
        if name in options.extra and not options.trust_code:
            raise ModelLoadError(f"the option {name} runs code", "allow it with --trust-pickle if you trust it")
    tf = import_tensorflow(with_keras=found.format != "savedmodel")
    warnings = set_threads(tf, options.threads)
    if "op-library" in options.extra:
        _load_ops(tf, options.extra["op-library"])
    opened = _open_saved_model(tf, found.path, options) if found.format == "savedmodel" else open_keras(tf, found, options)
    return TensorFlowRuntime(tf, opened, options.threads, warnings)


class TensorFlowRuntime(Runtime):
    def __init__(self, tf: Any, opened: Opened, threads: int, warnings: tuple[str, ...]) -> None:
        self._tf, self._keeps = tf, opened.keeps
        self._traced = {t.signature.name: t for t in opened.traced}
        self.signatures = tuple(t.signature for t in opened.traced)
        self.platform = opened.platform
        unknown = [s.name for g in self.signatures for s in (*g.inputs, *g.outputs) if s.unknown_rank]
        self.properties = {
            "tensorflow_version": tf.__version__,
            **opened.properties,
            **({"unknown_rank": ", ".join(dict.fromkeys(unknown))} if unknown else {}),
        }
        self.warnings = warnings + opened.warnings
        self.concurrency = max(1, threads)

    def predict(
        self, signature: Signature, inputs: dict[str, Array], outputs: tuple[str, ...], parameters: Mapping[str, Any]
    ) -> dict[str, Array]:
        traced = self._traced[signature.name]
        try:
            results = self._run(traced, inputs)
        except (self._tf.errors.OpError, ValueError, TypeError) as error:
            raise as_serving_error(self._tf, error) from error
        at = {spec.name: i for i, spec in enumerate(signature.outputs)}
        return {name: _to_numpy(results[at[name]], signature.outputs[at[name]].datatype) for name in outputs}

    def _run(self, traced: Traced, inputs: Mapping[str, Array]) -> Any:
        tf, tensors = self._tf, []
        for spec, tf_type in zip(traced.signature.inputs, traced.input_types, strict=True):
            array = inputs.get(spec.name)
            if array is None:
                tensors.append(traced.defaults[spec.name])
            elif spec.datatype == "BF16":
                tensors.append(tf.cast(tf.constant(array), tf_type))
            else:
                tensors.append(tf.constant(array, tf_type))
        # The public op for calling a function.  Calling the function object checks its arguments' structure in Python,
        # which costs a small model more than its arithmetic (100 µs), and `Signature.check` has done that already.
        return tf.raw_ops.StatefulPartitionedCall(args=[*tensors, *traced.captured], Tout=traced.output_types, f=traced.function)

    def close(self) -> None:
        self._traced.clear()
        self._keeps = None


def _to_numpy(result: Any, datatype: str) -> Array:
    value = result.numpy()
    if datatype == "BYTES":
        return np.asarray(value, object)
    return np.asarray(value, np.float32) if datatype == "BF16" else np.asarray(value)


def as_serving_error(tf: Any, error: Exception) -> Exception:
    """Values that the graph refuses are the request's fault; TensorFlow's other errors are not."""
    text = first_line(str(error))
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return ResourceExhausted(f"TensorFlow ran out of memory: {text}")
    if isinstance(error, tf.errors.UnimplementedError):
        return NotSupported(f"TensorFlow has not implemented what the model does: {text}")
    if isinstance(error, tf.errors.InvalidArgumentError | ValueError | TypeError):
        return InvalidInput(text)
    return RuntimeFailed(f"{type(error).__name__}: {text}")


def _load_ops(tf: Any, library: str) -> None:
    try:
        tf.load_op_library(library)
    except (tf.errors.OpError, RuntimeError) as error:
        raise ModelLoadError(
            f"can't load the op library {library}: {first_line(str(error))}", "build it for this TensorFlow"
        ) from error


def _open_saved_model(tf: Any, path: Path, options: LoadOptions) -> Opened:
    proto = _read_proto(path)
    graph = _choose_graph(path, proto.meta_graphs, options.extra.get("tags"))
    tags = ",".join(sorted(graph.meta_info_def.tags))
    defs = {name: graph.signature_def[name] for name in ordered(graph.signature_def)}
    if not defs:
        raise ModelLoadError(
            f"the SavedModel {path} has no signatures (its tags: {tags or 'none'})",
            "export it again with them: tf.saved_model.save(model, folder, signatures=…), or model.export(folder) in Keras",
        )
    signatures, refused = _signatures(tf, defs)
    if not signatures:
        raise ModelLoadError(f"no signature of the SavedModel {path} can be served: {'; '.join(refused)}")
    loaded = _load_saved_model(tf, path, list(graph.meta_info_def.tags), graph.meta_info_def.tensorflow_version)
    traced = tuple(_trace_signature(tf, s, loaded.signatures[s.name], defs[s.name]) for s in signatures)
    warnings = [SAVED_MODEL_TRUST, *(f"not served: {r}" for r in refused)]
    if len(signatures) > 1 and signatures[0].name != DEFAULT_SIGNATURE:
        names = ", ".join(s.name for s in signatures)
        warnings.append(
            f"the model has several signatures and no {DEFAULT_SIGNATURE}; {signatures[0].name} is the default of: {names}"
        )
    saved_by = graph.meta_info_def.tensorflow_version
    properties = {"tags": tags, "trust": SAVED_MODEL_TRUST, **({"saved_by_tensorflow": saved_by} if saved_by else {})}
    return Opened("tensorflow_savedmodel", traced, properties, tuple(warnings), loaded)


def _read_proto(path: Path) -> Any:
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    proto = SavedModel()
    file = path / "saved_model.pb"
    try:
        if file.exists():
            proto.ParseFromString(file.read_bytes())
        else:
            file = path / "saved_model.pbtxt"
            text_format.Parse(file.read_text(), proto)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"can't read {file} as a SavedModel: {first_line(str(error))}", "copy or export it again") from error
    if not proto.meta_graphs:
        raise ModelLoadError(
            f"{file} holds no graph of a SavedModel",
            "if it is a frozen GraphDef of TensorFlow 1, export it again as a SavedModel or convert it with tf2onnx",
        )
    return proto


def _choose_graph(path: Path, graphs: Sequence[Any], wanted: str | None) -> Any:
    """The graph with the wanted tags, else the only one, else the one tagged just "serve"."""
    if wanted is None and len(graphs) == 1:
        return graphs[0]
    tags = set((wanted or "serve").split(","))
    for graph in graphs:
        if set(graph.meta_info_def.tags) == tags:
            return graph
    there = " | ".join(",".join(sorted(g.meta_info_def.tags)) or "none" for g in graphs)
    raise ModelLoadError(
        f"the SavedModel {path} has no graph tagged {','.join(sorted(tags))!r}; it has: {there}",
        'choose one with --runtime-option tags=…, or export it again with the tag "serve"',
    )


def ordered(signature_defs: Mapping[str, Any]) -> list[str]:
    """The names of the signatures that a client can call, the default first and the others by the alphabet."""
    return sorted((n for n in signature_defs if n != INIT_OP), key=lambda n: (n != DEFAULT_SIGNATURE, n))


def _signatures(tf: Any, defs: Mapping[str, Any]) -> tuple[list[Signature], list[str]]:
    """The signatures that can be served, and why the others can't."""
    signatures, refused = [], []
    for name, definition in defs.items():
        try:
            inputs, outputs = (
                [_spec_of_info(tf, n, tensors[n], n in definition.defaults) for n in sorted(tensors)]
                for tensors in (definition.inputs, definition.outputs)
            )
            made = make_signature(name, inputs, outputs, alone=len(defs) == 1)
            signatures.append(replace(made, method=definition.method_name))
        except ModelLoadError as error:
            refused.append(f"signature {name!r}: {error}")
    return signatures, refused


def _spec_of_info(tf: Any, name: str, info: Any, optional: bool) -> TensorSpec:
    encoding = info.WhichOneof("encoding")
    if encoding != "name":
        raise ModelLoadError(f"tensor {name!r} is {'sparse' if encoding == 'coo_sparse' else 'composite'}, not a dense tensor")
    shape = None if info.tensor_shape.unknown_rank else [d.size for d in info.tensor_shape.dim]
    return spec_of(name, tf.as_dtype(info.dtype).name, shape, optional)


def _load_saved_model(tf: Any, path: Path, tags: list[str], saved_by: str) -> Any:
    try:
        return tf.saved_model.load(str(path), tags=tags)
    except Exception as error:  # a graph that this TensorFlow does not understand fails in any way
        op = re.search(r"Op type not registered '([^']+)'", str(error))
        if newer_than(saved_by, tf.__version__):
            remedy = f"it was saved by TensorFlow {saved_by}, and this is {tf.__version__}: install that one"
        elif op is not None:
            raise ModelLoadError(
                f"the SavedModel {path} needs the op {op[1]!r}, which this TensorFlow has not",
                "name the library that has it with --runtime-option op-library=FILE.so",
            ) from error
        else:
            remedy = "check that the folder was copied whole"
        raise ModelLoadError(f"can't load the SavedModel {path}: {first_line(str(error))}", remedy) from error


def _trace_signature(tf: Any, signature: Signature, function: Any, definition: Any) -> Traced:
    names = [s.name for s in signature.inputs]
    results = [s.name for s in signature.outputs]

    def body(flat: tuple[Any, ...]) -> list[Any]:
        returned = function(**dict(zip(names, flat, strict=True)))
        return [returned[name] for name in results]

    defaults = {name: tf.make_ndarray(value) for name, value in definition.defaults.items()}
    types = [tf.as_dtype(definition.inputs[name].dtype).name for name in names]
    return trace(tf, signature, body, types, defaults)
