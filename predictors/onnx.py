"""The ONNX runtime: an .onnx file → a session of onnxruntime, its signature, and predictions.

What the file says of itself comes from `_onnx_graph`, the signature from `_onnx_signature`, the texts of errors from
`_onnx_errors`; only this file imports onnxruntime.  The `onnx` package is not needed to serve.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from predictors._onnx_errors import load_error, run_error
from predictors._onnx_graph import Graph, check_external, read_graph
from predictors._onnx_signature import Described, check_shared, decoded, describe, empty_outputs, shared_axes
from server.errors import ModelLoadError
from server.runtime import LoadOptions, ModelFile, Runtime
from server.tensors import Array, Signature, did_you_mean, synthetic

_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Settings:
    """The options of this runtime, parsed.  `concurrency` is runs at a time, which divide the CPU budget among them."""

    providers: tuple[str, ...]
    refused: tuple[str, ...]
    concurrency: int
    custom_ops: tuple[str, ...]


def load(found: ModelFile, options: LoadOptions) -> Runtime:
    settings = parse_settings(options.extra, ort.get_all_providers(), ort.get_available_providers())
    graph = read_graph(found.path)
    check_external(found.path, graph.external)
    libraries = custom_libraries(found.path, graph, settings.custom_ops, options.trust_code)
    session = _open(found.path, graph, settings, libraries, options.threads)
    return OnnxRuntime(found.path, graph, session, settings)


def parse_settings(extra: Mapping[str, str], all_providers: Sequence[str], available: Sequence[str]) -> Settings:
    known = ("providers", "concurrency", "custom-ops")
    for name in extra:
        if name not in known:
            raise ModelLoadError(
                f"the onnx runtime has no option {name!r}{did_you_mean(name, known)}", f"it has: {', '.join(known)}"
            )
    concurrency = extra.get("concurrency", "1")
    if not concurrency.isdecimal() or not 1 <= int(concurrency) <= 64:
        raise ModelLoadError(f"the option concurrency of the onnx runtime is {concurrency!r}", "give a number from 1 to 64")
    wanted = [_provider(name, all_providers) for name in _list(extra.get("providers", ""))]
    usable = [name for name in wanted if name in available]
    return Settings(
        providers=tuple(dict.fromkeys([*usable, _CPU])),
        refused=tuple(name for name in wanted if name not in available),
        concurrency=int(concurrency),
        custom_ops=tuple(_list(extra.get("custom-ops", ""))),
    )


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _provider(name: str, all_providers: Sequence[str]) -> str:
    """Its full name: "cuda" is CUDAExecutionProvider."""
    short = {p.removesuffix("ExecutionProvider").lower(): p for p in all_providers}
    found = short.get(name.lower().removesuffix("executionprovider"))
    if found is None:
        raise ModelLoadError(f"no execution provider is called {name!r}{did_you_mean(name, short)}", f"known: {', '.join(short)}")
    return found


def custom_libraries(path: Path, graph: Graph, given: Sequence[str], trusted: bool) -> list[str]:
    """The libraries of custom operators to load: native code, so only where that is trusted."""
    extensions = graph.operators.get("ai.onnx.contrib", set()) if not given else set()
    if (given or extensions) and not trusted:
        what = f"the library {given[0]}" if given else "onnxruntime-extensions"
        raise ModelLoadError(f"{path} needs {what}, which is native code", "allow it with --trust-pickle if you trust the model")
    for library in given:
        if not Path(library).is_file():
            raise ModelLoadError(f"there is no library of custom operators at {library}", "correct --runtime-option custom-ops")
    if not extensions:
        return list(given)
    if importlib.util.find_spec("onnxruntime_extensions") is None:
        raise ModelLoadError(
            f"{path} uses {', '.join(sorted(extensions))} of domain ai.onnx.contrib, and onnxruntime-extensions is not installed",
            "run: pip install onnxruntime-extensions",
        )
    return [str(importlib.import_module("onnxruntime_extensions").get_library_path())]


def _open(path: Path, graph: Graph, settings: Settings, libraries: Sequence[str], threads: int) -> Any:
    try:
        options = _session_options(max(1, threads // settings.concurrency), libraries)
        # the fallback that is turned off prints, and hides which provider failed
        return ort.InferenceSession(str(path), options, providers=list(settings.providers), enable_fallback=0)
    except Exception as error:
        # its exceptions have no common base
        raise load_error(path, str(error), graph.opsets, ort.__version__) from error


def _session_options(threads: int, libraries: Sequence[str]) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # idle threads that spin use up the quota of the container
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    # The arena keeps what the largest request needed (+200 MB after one of 50,000 rows on six layers of 512) and patterns
    # keep a plan for every number of rows (+890 MB after 700 of them); without both the memory is given back, as fast.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    for library in libraries:
        options.register_custom_ops_library(library)
    return options


class OnnxRuntime(Runtime):
    platform = "onnx_onnxv1"

    def __init__(self, path: Path, graph: Graph, session: Any, settings: Settings) -> None:
        described = describe(path, graph, session.get_inputs(), session.get_overridable_initializers(), session.get_outputs())
        self.signatures = (described.signature,)
        self.concurrency = settings.concurrency
        used = session.get_providers()
        self.properties = _properties(graph, described, used)
        self.warnings = tuple(_warnings(settings, used, described))
        self._run = session.run
        self._described = described
        self._converters = described.converters
        self._texts = {s.name for s in described.signature.inputs if s.datatype == "BYTES"}
        self._shared = shared_axes(described)

    def predict(
        self, signature: Signature, inputs: dict[str, Array], outputs: tuple[str, ...], parameters: Mapping[str, Any]
    ) -> dict[str, Array]:
        if self._shared:
            check_shared(self._shared, inputs)
        feed = inputs
        for name, array in inputs.items():
            if not array.size and array.ndim and not len(array):
                return empty_outputs(signature, name, outputs)
            if not array.flags.aligned:
                feed = {**feed, name: array.copy()}
        if self._texts:
            feed = {name: decoded(name, array) if name in self._texts else array for name, array in feed.items()}
        try:
            values = self._run(outputs, feed)
        except (InvalidArgument, Fail, RuntimeException) as error:
            answer = run_error(str(error), isinstance(error, InvalidArgument))
            if answer is None:
                raise
            raise answer from error
        if self._converters:
            values = [self._converters[n](v) if n in self._converters else v for n, v in zip(outputs, values, strict=True)]
        return dict(zip(outputs, values, strict=True))

    def sample(self, signature: Signature, rows: int, seed: int = 0) -> dict[str, Array]:
        """As the server makes them up, with equal sizes for dimensions of one name."""
        symbols = self._described.symbols
        leading = {names[0] for names in symbols.values() if names} - {""}
        made = {}
        for i, spec in enumerate(signature.inputs):
            if spec.optional:
                continue
            names = symbols.get(spec.name, ())
            sizes = {axis: rows if name in leading else 1 for axis, name in enumerate(names) if name}
            shape = tuple(sizes.get(axis, size) for axis, size in enumerate(spec.shape))
            made[spec.name] = synthetic(replace(spec, shape=shape), rows, seed + i)
        return made

    def close(self) -> None:
        del self._run


def _properties(graph: Graph, described: Described, providers: Sequence[str]) -> dict[str, str]:
    facts = {
        "onnxruntime_version": ort.__version__,
        "opsets": json.dumps(graph.opsets),
        "ir_version": str(graph.ir_version),
        "producer": graph.producer,
        "providers": ",".join(providers),
    }
    labels = {name: labels for name, labels in described.labels.items() if labels}
    if len(labels) > 1:
        facts["classes"] = json.dumps(labels)
    elif labels or len(graph.classes) == 1:
        facts["classes"] = json.dumps([*labels.values(), *graph.classes][0])
    specs = {s.name: s for s in (*described.signature.inputs, *described.signature.outputs)}
    named = {
        name: [symbol or size for symbol, size in zip(symbols, specs[name].shape, strict=True)]
        for name, symbols in described.symbols.items()
        if any(symbols) and len(symbols) == len(specs[name].shape)
    }
    if named:
        facts["symbolic_dims"] = json.dumps(named)
    return facts


def _warnings(settings: Settings, used: Sequence[str], described: Described) -> list[str]:
    missing = (*settings.refused, *(p for p in settings.providers if p not in used))
    available = ", ".join(ort.get_available_providers())
    told = [f"{p} was asked for and is not available, so {used[0]} is used; available: {available}" for p in missing]
    if described.alone:
        told.append(f"requests are not batched: {described.alone}")
    if described.labels:
        told.append(
            "the model ends in ZipMap, which makes a dict of every row; converting with options={'zipmap': False} is cheaper"
        )
    return told
