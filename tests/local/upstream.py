"""A stand-in for a predictor, in a process of its own: says who answered what.  `python -P upstream.py NAME HTTP GRPC FILE`.

GET /v2/health/ready is 200 while FILE.ready exists, and every other request is answered 503 while it does not.  A body that
holds `poison` is written down in FILE.runs and ends the process with it, as a model does that breaks its interpreter.
"""

import asyncio
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import uvicorn


class Echo:
    """The ASGI application: `{"who": …, "path": …, "headers": {…}, "size": …, "body": …}` after `?delay=` seconds."""

    def __init__(self, name: str, file: Path) -> None:
        self.name, self.ready, self.runs = name, Path(f"{file}.ready"), Path(f"{file}.runs")

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        query = scope["query_string"].decode()
        if query.startswith("delay="):
            await asyncio.sleep(float(query[6:]))
        status, answer = self.answer(scope, bytes(body))
        content = json.dumps(answer).encode()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": content})

    def answer(self, scope, body: bytes) -> tuple[int, dict]:
        if not self.ready.exists():
            return 503, {"error": f"{self.name} is not ready"}
        if scope["path"] == "/v2/health/ready":
            return 200, {"ready": True}
        self.swallow(body)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        shown = body.decode() if len(body) < 1000 else ""
        return 200, {"who": self.name, "path": scope["path"], "headers": headers, "size": len(body), "body": shown}

    def swallow(self, body: bytes) -> None:
        if b"poison" in body:
            with self.runs.open("a") as runs:
                runs.write(f"{self.name}\n")
            os._exit(9)


class AnyMethod(grpc.GenericRpcHandler):
    """Every unary method: the answer is the name of the process, a space and the request."""

    def __init__(self, echo: Echo) -> None:
        self._echo = echo

    def service(self, details):
        def call(request: bytes, context) -> bytes:
            if not self._echo.ready.exists():
                context.abort(grpc.StatusCode.UNAVAILABLE, "not ready")
            self._echo.swallow(request)
            return self._echo.name.encode() + b" " + request

        return grpc.unary_unary_rpc_method_handler(call)


def main(name: str, http_port: int, grpc_port: int, file: Path) -> None:
    echo = Echo(name, file)
    server = grpc.server(ThreadPoolExecutor(4), handlers=[AnyMethod(echo)], options=[("grpc.max_receive_message_length", -1)])
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    server.start()
    config = uvicorn.Config(echo, port=http_port, log_level="error", access_log=False, timeout_keep_alive=65, lifespan="off")
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
