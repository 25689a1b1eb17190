"""A server in this process that streams what a script says, when the script says so."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field

from aiohttp import web


def event(**content):
    """One server-sent event with JSON data."""
    return f"data: {json.dumps(content)}\n\n".encode()


def completion(text, **extra):
    """An event of the completions API with some text."""
    return event(choices=[{"index": 0, "text": text, "finish_reason": None}], **extra)


def usage(prompt_tokens, completion_tokens):
    """The usage object of an event."""
    return {"usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}}


FINISH = event(choices=[{"index": 0, "text": "", "finish_reason": "length"}])
DONE = b"data: [DONE]\n\n"


def wait(seconds):
    """A step that only takes time."""
    return seconds


@dataclass(frozen=True)
class Refusal:
    """An answer that is no stream."""

    status: int
    body: str
    content_type: str = "application/json"


class HangUp:
    """A step that cuts the connection."""


def steady(body, gap_s=0.005):
    """vLLM's own way: as many tokens as asked for, each in an event with the count so far."""
    prompt = body.get("prompt", "")
    prompt_tokens = len(prompt) if isinstance(prompt, list) else len(prompt.split())
    for i in range(body["max_tokens"]):
        yield gap_s
        yield completion(" word", **usage(prompt_tokens, i + 1))
    yield FINISH
    yield DONE


@dataclass
class ScriptedServer:
    """
    Serves on 127.0.0.1, from a thread of its own, until closed.

    ``script(body)`` yields what happens to a request: seconds to wait, bytes to send, a
    :class:`HangUp`, or at first a :class:`Refusal`.
    """

    script: object = steady
    models: tuple = ("tiny",)
    port: int = 0  # 0 for any that is free
    bodies: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    received_s: list = field(default_factory=list)
    hung_up: int = 0  # streams that the client left before their end
    deaf: bool = False  # whether it drops those who ask for its models, as one that is gone
    models_status: int = 200
    asked_models: int = 0

    def __enter__(self):
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Stop listening and hang up; harmless if done before."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)
            assert not self._thread.is_alive()

    @property
    def url(self):
        """For :class:`experiments.client.endpoint.Endpoint`."""
        return f"http://127.0.0.1:{self.port}/v1"

    def _run(self, started):
        asyncio.run(self._serve(started))

    async def _serve(self, started):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _models(self, request):
        if self.deaf:
            request.transport.abort()
        self.asked_models += 1
        listed = {"data": [{"id": name} for name in self.models]}
        return web.json_response(listed, status=self.models_status)

    async def _answer(self, request):
        self.received_s.append(time.monotonic())
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        response = None
        try:
            for step in self.script(body):
                if isinstance(step, Refusal):
                    return web.Response(
                        status=step.status, text=step.body, content_type=step.content_type
                    )
                if response is None:
                    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
                    await response.prepare(request)
                if isinstance(step, HangUp):
                    request.transport.abort()
                    return response
                if isinstance(step, bytes):
                    await response.write(step)
                else:
                    await asyncio.sleep(step)
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.hung_up += 1
            raise
        return response
