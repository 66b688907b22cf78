"""Importing TensorFlow: once, quietly, with its threads set, and without Keras where none is needed."""

import contextlib
import importlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server.errors import ModelLoadError

_importing = threading.Lock()

# What a person can do nothing about, and what TF_CPP_MIN_LOG_LEVEL does not reach because logging is not set up yet.
_NOISE = re.compile(rb"WARNING: All log messages before absl|I\d{4} |To enable the following instructions")


def import_tensorflow(with_keras: bool) -> Any:
    """Import TensorFlow quietly, and without Keras unless it is needed."""
    with _importing:
        if "tensorflow" not in sys.modules:
            _check_cpu()
            # Warnings would come with every bad request; errors are raised as well.
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
            with _without_noise(), _without_eager_keras():
                importlib.import_module("tensorflow")
        tf = sys.modules["tensorflow"]
        if with_keras:
            os.environ["KERAS_BACKEND"] = "tensorflow"
            importlib.import_module("keras")
    return tf


def _check_cpu() -> None:
    """TensorFlow aborts the whole process where AVX is missing, so say it first."""
    with contextlib.suppress(OSError):
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if flags is not None and "avx" not in flags[1].split():
            raise ModelLoadError(
                "TensorFlow's wheels need a CPU with AVX, and this one has none",
                "run on another machine, or convert the model to ONNX",
            )


@contextlib.contextmanager
def _without_eager_keras() -> Iterator[None]:
    """`import tensorflow` imports Keras, and by it scipy, pandas and scikit-learn, unless told that Keras is the legacy one.

    That saves 80 MB where no Keras model is served.  TensorFlow reads the variable again when `tf.keras` is first used.
    """
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    if before is None:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Hold back what is written to stderr, also by C++, and write it afterwards without the lines that help nobody."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            os.write(2, b"".join(line for line in held if not _NOISE.match(line)))


def set_threads(tf: Any, threads: int) -> tuple[str, ...]:
    """One graph at a time per caller, its large operations on `threads` cores; settable only before TensorFlow's first use."""
    config = tf.config.threading
    try:
        config.set_intra_op_parallelism_threads(threads)
        config.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        used = config.get_intra_op_parallelism_threads()
        return (f"TensorFlow's threads were set by the first model of this process: {used}, not {threads}",)
    return ()
