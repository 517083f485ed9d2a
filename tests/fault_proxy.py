"""A proxy before an object store that makes faults: answers that break off, stall, lie, or never come.

    python -m tests.fault_proxy http://127.0.0.1:8333 --delay-ms 5

It sends what it is asked to the server as it is, with the client's Host, which a signature covers: the server takes
that at its word.
"""

from __future__ import annotations

import http.client
import itertools
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import click


class Answer(NamedTuple):
    """What the server says."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Asked:
    """A request that came by."""

    method: str
    path: str  # of the object, without the quotes of URLs
    query: str
    range: str
    sent: int  # bytes of its body
    answered: int  # bytes of the answer's, as the server gave it; 0 if it was not asked


Fault = Callable[["_Connection"], None]
"""Answers a request, badly."""


@dataclass
class Rule:
    """Which requests have a fault.

    Args:
        fault: what they have.
        method: of HTTP, a pattern.
        path: a pattern that is searched for in PATH?QUERY.
        after: how many of them go well before.
        times: how many have it; -1: all.
    """

    fault: Fault
    method: str = "GET"
    path: str = ""
    after: int = 0
    times: int = 1
    seen: int = field(default=0, init=False)

    def takes(self, method: str, path: str) -> bool:
        """Returns whether a request has it; it counts."""
        if not (re.fullmatch(self.method, method) and re.search(self.path, path)):
            return False
        self.seen += 1
        return self.after < self.seen and (self.times < 0 or self.seen <= self.after + self.times)


class FaultProxy:
    """A proxy on a free port of this machine; a context manager.

    Args:
        upstream: the address of the server, http://HOST:PORT.
        delay: seconds by which each answer comes later.

    Attributes:
        endpoint: where it is asked.
        rules: the first that takes a request answers it.
        asked: every request so far.
    """

    def __init__(self, upstream: str, delay: float = 0) -> None:
        self.upstream, self.delay = urlsplit(upstream), delay
        self.rules: list[Rule] = []
        self.asked: list[Asked] = []
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._port = 0
        self.up()
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        """Takes connections, always on one port."""
        self._server = _Server(("127.0.0.1", self._port), _Connection)
        self._server.proxy = self
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        """Refuses connections, and breaks off those that there are."""
        self._server.shutdown()
        self._server.server_close()
        for connection in [*self._server.open]:
            _reset(connection)

    def add(self, fault: Fault, **which: Any) -> Rule:
        """Returns a new Rule, which is heeded from now on."""
        self.rules.append(Rule(fault, **which))
        return self.rules[-1]

    def fault_of(self, method: str, path: str) -> Fault | None:
        """Returns what a request has, if any."""
        with self._lock:
            return next((rule.fault for rule in self.rules if rule.takes(method, path)), None)

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.down()


class _Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128
    proxy: FaultProxy

    def __init__(self, *given: Any) -> None:
        self.open: set[socket.socket] = set()
        super().__init__(*given)

    def handle_error(self, *_: object) -> None:
        """Says nothing: faults are meant."""


class _Connection(BaseHTTPRequestHandler):
    """A client's connection, and one to the server for it."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.proxy = self.server.proxy
        self.server.open.add(self.connection)
        self._upstream: http.client.HTTPConnection | None = None

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        if self._upstream:
            self._upstream.close()
        with suppress(OSError):
            super().finish()

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _, query = self.path.partition("?")
        about = (self.command, unquote(path), query, self.headers.get("Range", ""), len(self.body))
        self.asked = Asked(*about, 0)
        self.proxy.asked.append(self.asked)  # before its answer: who has that may look
        fault = self.proxy.fault_of(self.command, unquote(self.path))
        (fault or _Connection.well)(self)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def well(self) -> None:
        """Answers as the server does."""
        self.say(self.ask())

    def ask(self) -> Answer:
        """Returns what the server says."""
        self.proxy.ended.wait(self.proxy.delay)
        if self._upstream is None:
            self._upstream = http.client.HTTPConnection(self.proxy.upstream.netloc)
            self._upstream.connect()
            self._upstream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            self._upstream.putheader(name, value)
        self._upstream.endheaders(self.body)
        with self._upstream.getresponse() as found:
            headers = {name: value for name, value in found.getheaders() if name not in _OF_A_CONNECTION}
            body = found.read()
            if self.command != "HEAD":
                headers["Content-Length"] = str(len(body))
        if found.will_close:
            self._upstream.close()
        self.asked.answered = len(body)
        return Answer(found.status, headers, body)

    def say(self, answer: Answer, bytes_sent: int | None = None) -> None:
        """Sends an answer, or only as many bytes of its body."""
        head = f"HTTP/1.1 {answer.status} {http.client.responses.get(answer.status, '')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        self.wfile.write(head.encode("latin-1") + b"\r\n" + answer.body[:bytes_sent])
        self.wfile.flush()

    def reset(self) -> None:
        """Breaks the connection off."""
        self.close_connection = True
        _reset(self.connection)


_OF_A_CONNECTION = ("Connection", "Keep-Alive", "Transfer-Encoding")


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()


# --- the faults


def reset(to: _Connection) -> None:
    """Breaks off in the middle of the body (RST)."""
    answer = to.ask()
    to.say(answer, len(answer.body) // 2)
    to.reset()


def cut(to: _Connection) -> None:
    """Ends in the middle of the body, which was said to be longer (FIN)."""
    answer = to.ask()
    to.say(answer, len(answer.body) // 2)
    to.close_connection = True


def short(to: _Connection) -> None:
    """Sends half of the body, and says that it is all."""
    answer = to.ask()
    half = answer.body[: len(answer.body) // 2]
    to.say(answer._replace(headers={**answer.headers, "Content-Length": str(len(half))}, body=half))


def stall(to: _Connection) -> None:
    """Stops in the middle of the body, for good."""
    answer = to.ask()
    to.say(answer, len(answer.body) // 2)
    to.proxy.ended.wait()
    to.reset()


def silent(to: _Connection) -> None:
    """Never answers."""
    to.proxy.ended.wait()
    to.reset()


def dribble(seconds: float, pieces: int) -> Fault:
    """Returns the fault that a body comes in so many pieces, so many seconds apart."""

    def fault(to: _Connection) -> None:
        answer = to.ask()
        to.say(answer, 0)
        edges = [len(answer.body) * i // pieces for i in range(pieces + 1)]
        for start, stop in itertools.pairwise(edges):
            to.wfile.write(answer.body[start:stop])
            if to.proxy.ended.wait(seconds):
                return

    return fault


def says(status: int, code: str = "", done: bool = False, **headers: str) -> Fault:
    """Returns the fault of an answer with a status.

    Args:
        status: of HTTP.
        code: S3's word for it.
        done: the server has done what was asked; otherwise it does not hear of it.
        headers: of the answer, with _ for -.
    """

    def fault(to: _Connection) -> None:
        if done:
            to.ask()
        body = f"<Error><Code>{code}</Code><Message>made by the test</Message></Error>".encode() if code else b""
        body = b"" if to.command == "HEAD" else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        to.say(Answer(status, {"Content-Type": "application/xml", **named, "Content-Length": str(len(body))}, body))

    return fault


def lost(to: _Connection) -> None:
    """Has it done, and the answer never comes (RST)."""
    to.ask()
    to.reset()


def refused(to: _Connection) -> None:
    """Breaks off before anything is done."""
    to.reset()


def html(to: _Connection) -> None:
    """Answers as a proxy's login page would."""
    page = b"<html><body>Please log in.</body></html>"
    to.say(Answer(200, {"Content-Type": "text/html", "Content-Length": str(len(page))}, page))


def wrong_range(to: _Connection) -> None:
    """Says that the bytes are those of another place."""
    answer = to.ask()
    start, stop, size = map(int, re.findall(r"\d+", answer.headers["Content-Range"]))
    to.say(answer._replace(headers={**answer.headers, "Content-Range": f"bytes {start + 8}-{stop + 8}/{size}"}))


def whole(to: _Connection) -> None:
    """Ignores that a range was asked for: sends the object from its start on, as 200."""
    answer = to.ask()
    headers = {name: value for name, value in answer.headers.items() if name != "Content-Range"}
    to.say(answer._replace(status=200, headers=headers))


def flip(to: _Connection) -> None:
    """Changes a bit in the middle of the body."""
    answer = to.ask()
    body = bytearray(answer.body)
    body[len(body) // 2] ^= 16
    to.say(answer._replace(body=bytes(body)))


def first(action: Callable[[], object], then: Fault = _Connection.well) -> Fault:
    """Returns the fault that something happens before a request is answered."""

    def fault(to: _Connection) -> None:
        action()
        then(to)

    return fault


@click.command()
@click.argument("server")
@click.option("--delay-ms", default=0.0, help="By which each answer comes later.")
def main(server: str, delay_ms: float) -> None:
    """Stand before a SERVER, http://HOST:PORT, until the input ends; print where, and then what was asked."""
    with FaultProxy(server, delay_ms / 1000) as proxy:
        print(proxy.endpoint, flush=True)
        sys.stdin.read()
        print(f"{len(proxy.asked):,} requests, {sum(asked.answered for asked in proxy.asked):,} bytes", flush=True)


if __name__ == "__main__":
    main()
