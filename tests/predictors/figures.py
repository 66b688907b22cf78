"""What scikit-learn's own code costs beside what answers in its place: `python -m tests.predictors.figures [MODEL ...]`.

Microseconds in the runtime for 1 and for 32 rows, the best of 15 runs that take turns, in one process with one thread; how
long each way took to load, and what it added to the process's memory, each in a process of its own.
"""

import json
import subprocess
import sys
import time
import timeit
import warnings
from pathlib import Path

from predictors.sklearn import ACCELERATE, load
from server.loading import resident_bytes
from server.runtime import LoadOptions, Runtime, find_model

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = (EXAMPLES / "iris.skops", EXAMPLES / "cancer.joblib")
ROWS, RUNS, SECONDS = (1, 32), 15, 0.02


def opened(path: Path, accelerate: str) -> Runtime:
    return load(find_model(path), LoadOptions(trust_code=True, extra={"accelerate": accelerate}))


def microseconds(runtimes: dict[str, Runtime], rows: int) -> dict[str, float]:
    def timer(runtime: Runtime) -> tuple[timeit.Timer, int]:
        signature = runtime.signatures[0]
        inputs = runtime.sample(signature, rows)
        made = timeit.Timer(lambda: runtime.predict(signature, inputs, signature.defaults, {}))
        return made, max(1, int(SECONDS / (made.timeit(3) / 3)))

    timers = {name: timer(r) for name, r in runtimes.items()}
    best = dict.fromkeys(timers, float("inf"))
    for _ in range(RUNS):
        for name, (one, times) in timers.items():
            best[name] = min(best[name], one.timeit(times) / times * 1e6)
    return best


def loading(path: Path, accelerate: str) -> dict[str, float]:
    """Seconds and megabytes, in a process that has loaded scikit-learn already."""
    code = f"import tests.predictors.figures as f; f.tell({str(path)!r}, {accelerate!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def tell(path: str, accelerate: str) -> None:
    warnings.simplefilter("ignore")
    opened(Path(path), "off")
    before, started = resident_bytes(), time.perf_counter()
    runtime = opened(Path(path), accelerate)
    print(json.dumps({"s": time.perf_counter() - started, "MB": (resident_bytes() - before) / 1e6}))
    del runtime


def main() -> None:
    warnings.simplefilter("ignore")
    for path in [Path(p) for p in sys.argv[1:]] or MODELS:
        runtimes = {a: opened(path, a) for a in ACCELERATE}
        print(f"{path.name}: {runtimes['exact'].properties['answered_by']}")
        print(f"  with onnx: {runtimes['onnx'].properties['answered_by']}", *runtimes["onnx"].warnings, sep="\n  ")
        for rows in ROWS:
            told = ", ".join(f"{name} {us:.1f}" for name, us in microseconds(runtimes, rows).items())
            print(f"  µs for {rows} rows: {told}")
        for name in ACCELERATE:
            best = min((loading(path, name) for _ in range(3)), key=lambda found: found["s"])
            print(f"  loading with {name}: {best['s'] * 1e3:.0f} ms, {best['MB']:.1f} MB")


if __name__ == "__main__":
    main()
