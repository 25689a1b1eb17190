"""
In the place of vLLM's server: answers health, models, completions and chat, a word per token.

Run by the package that fake_vllm.py writes. It has a worker process beside it, as vLLM has its
engine, and says its arguments in the file that FAKE_OUT names.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN_S = 0.002
SLOTS = threading.Semaphore(4)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    def do_GET(self):
        """Health, and the list of models."""
        body = json.dumps({"data": [{"id": "demo"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        """A reply of as many words as asked for."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with SLOTS:
            for i in range(body["max_tokens"]):
                time.sleep(TOKEN_S)
                choice = (
                    {"delta": {"content": "word "}} if "messages" in body else {"text": "word "}
                )
                usage = {"prompt_tokens": 7, "completion_tokens": i + 1}
                self._event({"choices": [choice], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, content):
        self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, *_):
        """Silence."""


class Server(ThreadingHTTPServer):
    """Ends without waiting for its connections, in which clients may have hung up."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_):
        """Silence."""


def main():
    """Serve until told to end."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_known_args()[0].port
    if os.environ.get("FAKE_FAILS"):
        sys.exit("RuntimeError: no KV cache")
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(os.environ["FAKE_OUT"], "a", encoding="utf-8") as file:
        said = {"arguments": sys.argv[1:], "pid": os.getpid(), "worker": worker.pid, "port": port}
        file.write(json.dumps(said) + "\n")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Server(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
