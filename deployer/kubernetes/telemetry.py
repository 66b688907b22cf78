"""How the controller is: /metrics in Prometheus' text form, /healthz (it works) and /readyz (its caches are filled)."""

import resource
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Labels = tuple[tuple[str, str], ...]
# A metric: its name, its type, what it says, and its values by labels.
Metric = tuple[str, str, str, Mapping[Labels, float]]
_BEGAN = time.time()


class Telemetry:
    """`alive` and `ready` give why not, "" where it is so; both are asked with each request."""

    def __init__(
        self,
        port: int,
        metrics: Callable[[], Iterable[Metric]],
        alive: Callable[[], str],
        ready: Callable[[], str],
        address: str = "",
    ) -> None:
        """Port 0 is any that is free."""

        class Exchange(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                match self.path.partition("?")[0]:
                    case "/metrics":
                        self._send(200, text([*metrics(), *process()]), "text/plain; version=0.0.4; charset=utf-8")
                    case "/healthz":
                        self._tell(alive())
                    case "/readyz":
                        self._tell(alive() or ready())
                    case _:
                        self._send(404, "there are /metrics, /healthz and /readyz\n")

            def _tell(self, why_not: str) -> None:
                self._send(503 if why_not else 200, f"{why_not or 'ok'}\n")

            def _send(self, code: int, body: str, kind: str = "text/plain; charset=utf-8") -> None:
                data = body.encode()
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass  # a probe each few seconds is no news

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Server((address, port), Exchange)
        self._thread = threading.Thread(target=self._server.serve_forever, name="telemetry", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def text(metrics: Iterable[Metric]) -> str:
    lines: list[str] = []
    for name, kind, about, values in metrics:
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        for labels, value in values.items():
            inside = ",".join(f'{key}="{_escaped(one)}"' for key, one in labels)
            lines.append(f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """All its digits: a counter that loses its last ones does not seem to count any more."""
    return str(int(value)) if value == int(value) else repr(value)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def process() -> Iterable[Metric]:
    """What Prometheus' clients say of every process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield ("process_cpu_seconds_total", "counter", "CPU that was used.", {(): used.ru_utime + used.ru_stime})
    yield ("process_start_time_seconds", "gauge", "When it began.", {(): _BEGAN})
    pages = Path("/proc/self/statm")
    if pages.exists():
        bytes_held = int(pages.read_text().split()[1]) * resource.getpagesize()
        yield ("process_resident_memory_bytes", "gauge", "Memory that is held.", {(): float(bytes_held)})
