"""ModelStreamInfer: the requests of one stream are worked on together, and answered in their order.

Each is a request like any other: it may share a batch with whoever else asks, and what is wrong with it is told in its own
answer, with the stream left open.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import NamedTuple

from server.errors import ModelNotReady, ServingError
from server.inference import Inference, error_text
from server.protocols import _pb, v2_grpc
from server.work import Work

PATH = f"/{_pb.SERVICE}/ModelStreamInfer"
# Requests of one stream that are worked on at once; those behind them wait with the client.
UNDER_WAY = 64


class Streams:
    """The streams of one process."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._open: set[_Exchange] = set()
        self._ending = False

    async def converse(self, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The answers to the requests; ModelNotReady after the last one where `end` was called."""
        exchange = _Exchange(self._inference, messages)
        self._open.add(exchange)
        if self._ending:
            exchange.stop()
        try:
            while (answer := await exchange.next()) is not None:
                yield answer
        finally:
            self._open.discard(exchange)
            exchange.close()

    def end(self) -> None:
        """Take no more requests; what is under way is answered."""
        self._ending = True
        for exchange in self._open:
            exchange.stop()


class _Begun(NamedTuple):
    work: Work
    answer: asyncio.Future[bytes]
    nbytes: int


class _Exchange:
    """One stream: what has been asked and not yet answered."""

    def __init__(self, inference: Inference, messages: AsyncIterator[bytes]) -> None:
        self._inference, self._messages = inference, messages
        self._most = inference.settings.max_body_bytes
        self._begun: deque[_Begun] = deque()
        self._nbytes = 0
        self._is_stopped = False
        # something has come, or nothing will any more; there is room for more
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._reading = asyncio.ensure_future(self._read())
        self._reading.add_done_callback(lambda _: self._news.set())

    async def next(self) -> bytes | None:
        """The next answer, None at the end.  Raises what reading has raised, once all before that is answered."""
        while not self._begun:
            if self._reading.done():
                if self._is_stopped:
                    raise ModelNotReady("the server is about to end and takes no more requests; open another stream")
                self._reading.result()
                return None
            self._news.clear()
            await self._news.wait()
        answer = await self._begun[0].answer
        self._nbytes -= self._begun.popleft().nbytes
        self._room.set()
        return answer

    def stop(self) -> None:
        self._is_stopped = not self._reading.done()
        self._reading.cancel()

    def close(self) -> None:
        """Nobody waits for answers any more: what has not been computed is not."""
        self._reading.cancel()
        for begun in self._begun:
            begun.work.cancel()
        # messages are large, and what was cancelled may be held by its own traceback for a while
        self._begun.clear()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        async for sent in self._messages:
            while self._begun and (len(self._begun) >= UNDER_WAY or self._nbytes + len(sent) > self._most):
                self._room.clear()
                await self._room.wait()
            answer: asyncio.Future[bytes] = loop.create_future()
            self._begun.append(_Begun(Work(self._answer(sent), partial(_set, answer)), answer, len(sent)))
            self._nbytes += len(sent)
            self._news.set()

    async def _answer(self, sent: bytes) -> bytes:
        try:
            return v2_grpc.streamed(await self._inference.grpc(sent, PATH, None, ""))
        except ServingError as error:
            return v2_grpc.streamed_error(error_text(error), sent)


def _set(answer: asyncio.Future[bytes], encoded: bytes) -> None:
    # cancelled with the task that waits for it, where the client goes in the very turn in which the model is done
    if not answer.done():
        answer.set_result(encoded)
