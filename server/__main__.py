"""`python -m server`: read the settings, run one predictor."""

import os
import sys

from server.log import mend_standard_streams
from server.settings import cpu_budget, from_flags


def main() -> int:
    mend_standard_streams()
    settings = from_flags(sys.argv[1:])
    if bool(settings.model_dir) is bool(settings.model_config_file):
        found = "two sources of models" if settings.model_dir else "no model"
        print(
            f"serve: {found} given: --model_dir says which (a file, a folder, or a file:// URI), or --model_config_file",
            file=sys.stderr,
        )
        return 2
    # the libraries below read these once, when they are first imported
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(settings.threads or cpu_budget()))
    # its C++ writes lines of its own form to stderr about what Python then raises
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if settings.metrics_dir:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = settings.metrics_dir
    if settings.workers > 1:
        from server.workers import Workers

        return Workers(settings).run()
    from server.app import main as run

    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
