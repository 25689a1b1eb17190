"""
A program in the place of vLLM's server: vLLM's flags, its API, its counters; no engine.

    python scripted_engine.py --model NAME --port N [--additional-config JSON] [vLLM's flags]

With ``SCRIPTED_ENGINE=refuses`` it ends at once, with ``dies`` at the third request; with
``rejects`` it refuses them all.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))

from scripted_server import steady

from engine_adapter.report import Report, write_report

MODE = os.environ.get("SCRIPTED_ENGINE", "works")


def flag(name: str) -> str | None:
    """Value of a flag of the command line."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None


class Engine:
    """Streams steadily, and counts as vLLM and the adapter do."""

    def __init__(self) -> None:
        config = json.loads(flag("--additional-config") or "{}").get("andes_opt", {})
        self.report_path = config.get("report_path")
        self.requests = 0
        if config.get("iterations_path"):
            Path(config["iterations_path"]).write_text(
                "batch,context_tokens,prefill_tokens,seconds\n"
                + "".join(
                    f"{b},{c},{p},{0.01 + 1e-3 * b + 1e-6 * c + 5e-4 * p:.9f}\n"
                    for b in range(1, 12)
                    for c in (100 * b, 200 * b)
                    for p in (0, 64)
                )
            )

    async def health(self, _request: web.Request) -> web.Response:
        """Up."""
        return web.Response()

    async def models(self, _request: web.Request) -> web.Response:
        """The one model."""
        return web.json_response({"data": [{"id": flag("--served-model-name")}]})

    async def metrics(self, _request: web.Request) -> web.Response:
        """Two preemptions for each request."""
        return web.Response(
            text="# HELP vllm:num_preemptions Cumulative number of preemptions.\n"
            f'vllm:num_preemptions_total{{model="a"}} {self.requests}.0\n'
            f'vllm:num_preemptions_total{{model="b"}} {self.requests}.0\n'
            f"vllm:prefix_cache_queries_total {10 * self.requests}\n"
            f"vllm:prefix_cache_hits_total {self.requests}\n"
        )

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Stream a reply."""
        body = await request.json()
        self.requests += 1
        if MODE == "dies" and self.requests == 3:
            print("RuntimeError: out of luck", flush=True)
            os._exit(3)
        if MODE == "rejects":
            return web.json_response({"error": {"message": "too long"}}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for step in steady(body, gap_s=0.001):
            if isinstance(step, bytes):
                await response.write(step)
            else:
                await asyncio.sleep(step)
        if self.report_path:
            report = Report(
                plans=self.requests, decide_s=0.001 * self.requests, engine_s=1.0 * self.requests
            )
            for _ in range(self.requests):
                report.add_iteration(0.001)
            report.resumed_tokens = 10 * self.requests
            report.resumed_cached_tokens = 4 * self.requests
            write_report(self.report_path, {**report.summary(), "events": {}, "unfinished": 0})
        return response


def main() -> None:
    """Serve until interrupted."""
    if MODE == "refuses":
        print("ValueError: no such model")
        raise SystemExit(1)
    engine = Engine()
    app = web.Application()
    app.router.add_get("/health", engine.health)
    app.router.add_get("/metrics", engine.metrics)
    app.router.add_get("/v1/models", engine.models)
    app.router.add_post("/v1/completions", engine.complete)
    web.run_app(app, host="127.0.0.1", port=int(flag("--port") or 0), print=None)


if __name__ == "__main__":
    main()
