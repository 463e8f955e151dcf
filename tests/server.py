"""A real HTTP server on this machine that misbehaves as it is told."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """How the server answers one request; the last answer of a script is given to all later ones."""

    status: int = 200
    cut: int | None = None
    """Close the connection after so many bytes of the body."""
    stall: int | None = None
    """Fall silent after so many bytes of the body."""
    declared: int | str | None = None
    """The Content-Length that is stated instead of the true one; -1 for none."""
    ranges: bool = True
    etag: str | None = '"1"'
    modified: str | None = None
    content: bytes | None = None
    location: str | None = None


@dataclass
class Misbehaving:
    """A real HTTP server on this machine that answers by a script."""

    content: bytes
    script: list[Answer] = field(default_factory=lambda: [Answer()])
    requests: list[dict[str, str]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def __enter__(self) -> Misbehaving:
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                script.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        answer = self.script[min(len(self.requests), len(self.script) - 1)]
        self.requests.append(dict(handler.headers))
        content = self.content if answer.content is None else answer.content
        start, status = self._start(handler, answer, len(content))
        body = content[start:] if status in (200, 206) else b""
        handler.send_response(status)
        for name, value in (("ETag", answer.etag), ("Last-Modified", answer.modified), ("Location", answer.location)):
            if value is not None:
                handler.send_header(name, value)
        if answer.declared != -1:
            handler.send_header("Content-Length", str(len(body) if answer.declared is None else answer.declared))
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if status == 416:
            handler.send_header("Content-Range", f"bytes */{len(content)}")
        handler.end_headers()
        sent = min(len(body) if stop is None else stop for stop in (answer.cut, answer.stall))
        try:
            handler.wfile.write(body[:sent])
            handler.wfile.flush()
        except OSError:
            return
        if answer.stall is not None:
            self.released.wait(30)

    @staticmethod
    def _start(handler: BaseHTTPRequestHandler, answer: Answer, length: int) -> tuple[int, int]:
        wanted = handler.headers.get("Range")
        unchanged = handler.headers.get("If-Range") in (None, answer.etag, answer.modified)
        if answer.status != 200 or wanted is None or not answer.ranges or not unchanged:
            return 0, answer.status
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        return (start, 206) if start < length else (0, 416)
