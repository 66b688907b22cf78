"""`python -m server.check`: load a model, run it on made-up rows, and print what was found as one JSON object.

`serve check` runs this in a process of its own, so that a model that crashes its process is a finding too.
"""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from server.announce import own_stdout
from server.errors import ModelLoadError
from server.folders import versions_in
from server.loading import depends_on_neighbours, resident_bytes
from server.model_config import ModelSpec
from server.runtime import LoadOptions, Runtime, find_model, load_runtime
from server.settings import Settings, cpu_budget, from_flags
from server.sources import sources_of
from server.versions import wanted

ROWS = (1, 8, 64)


def report(settings: Settings) -> dict[str, Any]:
    """The findings; `ok` says whether all of it can be served, `error` why not.

    Of a repository there are findings for every model, in `models`, of the versions that would be served.
    """
    try:
        specs = sources_of(settings).specs()
        found = [
            _of_version(settings, spec, version, Path(there[version].path))
            for spec in specs
            for there in (versions_in(spec.path),)
            for version in wanted(spec.policy, spec.labels, there)
        ]
    except ModelLoadError as error:
        return {"ok": False, "error": str(error)}
    except OSError as error:
        return {"ok": False, "error": f"can't read {error.filename}: {error.strerror}"}
    if len(found) == 1:
        return found[0]
    if not found:
        return {"ok": False, "error": f"{settings.model_dir}: none of its versions is wanted (--version_policy)"}
    bad = [f"{one['name']} {one['version']}: {one['error']}" for one in found if not one["ok"]]
    return {"ok": not bad, "models": found} | ({"error": "; ".join(bad)} if bad else {})


def _of_version(settings: Settings, spec: ModelSpec, version: str, path: Path) -> dict[str, Any]:
    started, before = time.monotonic(), resident_bytes()
    options = LoadOptions(
        threads=settings.threads or cpu_budget(),
        trust_code=settings.trusts_code,
        strict_versions=settings.strict_versions,
        extra=settings.runtime_options,
    )
    bad = {"ok": False, "name": spec.name, "version": version}
    try:
        runtime = load_runtime(find_model(path, spec.runtime or None), options)
    except ModelLoadError as error:
        return {**bad, "error": str(error)}
    except Exception as error:
        return {**bad, "error": f"{path}: {type(error).__name__}: {error}".splitlines()[0]}
    signature = runtime.signatures[0]
    found: dict[str, Any] = {
        "ok": True,
        "name": spec.name,
        "version": version,
        "platform": runtime.platform,
        "inputs": [i.as_json() for i in signature.inputs],
        "outputs": [o.as_json() for o in signature.outputs],
        "default_outputs": list(signature.defaults),
        "properties": dict(runtime.properties),
        "warnings": list(runtime.warnings),
        "load_seconds": time.monotonic() - started,
    }
    found["latency_ms"], trouble = _latencies(runtime)
    found["warnings"] += trouble
    found["memory_mb"] = resident_bytes() / 1e6
    found["model_mb"] = (resident_bytes() - before) / 1e6
    return found


def _latencies(runtime: Runtime) -> tuple[dict[str, float], list[str]]:
    """Milliseconds by rows (the best of three after one to warm up), and what went wrong on the way."""
    signature = runtime.signatures[0]
    if runtime.is_async or not signature.inputs:
        return {}, []
    latencies: dict[str, float] = {}
    try:
        for rows in ROWS if signature.batched else (1,):
            inputs = runtime.sample(signature, rows)
            seconds = []
            for _ in range(4):
                started = time.perf_counter()
                runtime.predict(signature, inputs, signature.defaults, {})
                seconds.append(time.perf_counter() - started)
            latencies[str(rows)] = min(seconds[1:]) * 1e3
        why = depends_on_neighbours(runtime, signature) if signature.batched else ""
    except Exception as error:
        return latencies, [
            f"made-up inputs do not fit this model, so it is not warmed up: {type(error).__name__}: {error}".splitlines()[0]
        ]
    return latencies, [f"requests will not be joined into batches: {why}"] if why else []


def main() -> int:
    warnings.simplefilter("ignore")
    settings = from_flags(sys.argv[1:])
    with own_stdout() as out:
        found = report(settings)
        out.write(json.dumps(found).encode() + b"\n")
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
