"""The loop: for every service that changed, get → observe → plan → apply → report.  Level-triggered: it never learns what
changed, and doing it twice does nothing the second time.
"""

import logging
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

from deployer import spec, status
from deployer.errors import SpecError
from deployer.plan import plan
from deployer.platform import Platform
from deployer.runtimes import ServingRuntime, formats_of
from deployer.workqueue import WorkQueue

log = logging.getLogger(__name__)
RESYNC = 30.0


class Controller:
    """Workers over one queue.  `start` and `stop` are its life."""

    def __init__(self, platform: Platform, workers: int = 2) -> None:
        self._platform = platform
        self._queue = WorkQueue()
        self._threads = [threading.Thread(target=self._work, name=f"reconcile-{n}", daemon=True) for n in range(workers)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        self._platform.watch(self._queue.add)

    def stop(self) -> None:
        self._queue.close()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (key := self._queue.take()) is not None:
            failed = False
            try:
                if reconcile(self._platform, key):
                    self._queue.add(key, RESYNC)
            except OSError as error:
                # a full disk, a process table that is full: not this service's fault, and it may pass
                log.warning("%s: %s; trying again", key, error)
                failed = True
            except Exception:
                log.error("%s: a bug, and it goes on with the others:\n%s", key, traceback.format_exc())
                failed = True
            self._queue.done(key, failed)


def reconcile(platform: Platform, key: str) -> bool:
    """Bring one service nearer to its spec; whether there is such a service."""
    raw = platform.get(key)
    if raw is None:
        platform.delete(key)
        return False
    installed = platform.runtimes(key.partition("/")[0])
    try:
        service = _parsed(platform, key, raw, installed)
    except SpecError as error:
        # what serves goes on serving; only the user can mend this
        platform.report(key, _rejected(raw, error))
        return True
    planned = plan(service, platform.observe(key), installed, platform.abilities)
    platform.apply(key, planned)
    platform.report(key, status.derive(service, planned, platform.observe(key), raw.get("status") or {}, time.time()))
    return True


def _parsed(platform: Platform, key: str, raw: dict[str, Any], installed: Sequence[ServingRuntime]) -> spec.InferenceService:
    """A format that was served may be named although its runtime is gone: planning tells of that one."""
    formats = formats_of(installed)
    try:
        return spec.parse(raw, formats=formats)
    except SpecError as error:
        try:
            served = {str(one.template.get("format", "")) for one in platform.observe(key).revisions}
            return spec.parse(raw, formats=(*formats, *served))
        except SpecError:
            raise error from None


def _rejected(raw: dict[str, Any], error: SpecError) -> dict[str, Any]:
    before = raw.get("status") or {}
    message = "; ".join(str(error).splitlines())
    condition = {"type": "Ready", "status": "False", "reason": "InvalidSpec", "message": message}
    condition["lastTransitionTime"] = status.timestamp(time.time())
    kept = [c for c in before.get("conditions", ()) if c.get("type") != "Ready"]
    return {**before, "conditions": [*kept, condition]}
