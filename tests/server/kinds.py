"""Triton's client in its four kinds, and one way to use them all."""

import asyncio
from contextlib import asynccontextmanager

import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import np_to_triton_dtype

KINDS = [tritonclient.http, tritonclient.http.aio, tritonclient.grpc, tritonclient.grpc.aio]
OVER_HTTP = [k for k in KINDS if ".http" in k.__name__]


def run(kind, server, use):
    """What the coroutine function makes of a client of that kind; the calls of the blocking kinds need no waiting for."""

    class Awaiting:
        def __init__(self, client):
            self._client = client

        def __getattr__(self, name):
            method = getattr(self._client, name)

            async def call(*args, **kwargs):
                result = method(*args, **kwargs)
                return await result if asyncio.iscoroutine(result) else result

            return call

    @asynccontextmanager
    async def connected():
        address = server.http.removeprefix("http://") if kind in OVER_HTTP else server.grpc
        client = Awaiting(kind.InferenceServerClient(address))
        try:
            yield client
        finally:
            await client.close()

    async def main():
        async with connected() as client:
            return await use(client)

    return asyncio.run(main())


def tensor(kind, name, array, **how):
    given = kind.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array, **how)
    return given
