"""An S3 server on loopback: moto's, in this process."""

import contextlib
import logging
import os
import sys
import threading
import urllib.error
import urllib.request
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kdscale.cache.stores import object_store
from kdscale.cache.stores.object_store import ObjectStore

sys.path.insert(0, str(Path(__file__).parents[1] / "cache"))  # for `synthetic`


@pytest.fixture(scope="session")
def s3_server():
    """The address of an S3 server."""
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch, request):
    """The URL of an empty bucket, the environment set up for it."""
    pytest.importorskip("obstore", reason="needs obstore")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    name = f"bucket{next(_NUMBERS)}"
    urllib.request.urlopen(  # noqa: S310
        urllib.request.Request(f"{s3_server}/{name}", method="PUT")  # noqa: S310
    ).close()
    return f"s3://{name}"


_NUMBERS = iter(range(1_000_000))


class _Proxy(BaseHTTPRequestHandler):
    """Passes requests on, unless told to answer itself."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each small answer waits 40 ms for an acknowledgement
    wbufsize = -1  # head and body of an answer in one packet

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path))
        answer = self.server.instead(self.command, self.path)
        if answer == "lose":  # done, and nobody hears of it
            self._forward(body)
            self.close_connection = True
            return
        status, content, headers = answer or self._forward(body)
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date",
                                    "server"):  # fmt: skip
                self.send_header(name, value)
        size = headers.get("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(size or 0))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _forward(self, body):
        headers = {"Content-Type": "application/octet-stream"}  # else urllib names a form's
        headers |= {name.title(): value for name, value in self.headers.items()}
        del headers["Host"]
        request = urllib.request.Request(  # noqa: S310
            self.server.behind + self.path, data=body or None, method=self.command, headers=headers
        )
        try:
            with urllib.request.urlopen(request) as response:  # noqa: S310
                return response.status, response.read(), dict(response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), dict(error.headers)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def proxy_before(address):
    """A server before the real one, which notes the requests that it passes on."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    server.behind, server.seen, server.instead = address, [], lambda method, path: None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # seconds between looks
    thread.start()
    server.address = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def proxy(s3_server, bucket, monkeypatch):
    """A server before the real one: `instead(method, path)` may answer, None passes on."""
    with proxy_before(s3_server) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        monkeypatch.setattr(object_store, "_FIRST_PAUSE", timedelta(milliseconds=1))
        yield server


@pytest.fixture
def eight_proxies(s3_server, bucket):
    """Eight servers before the real one, one for each of as many builders."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(proxy_before(s3_server)) for _ in range(8)]


@pytest.fixture
def quick_to_give_up(monkeypatch):
    """One retry, at once."""
    monkeypatch.setattr(object_store, "_RETRIES", 1)


@pytest.fixture
def store_in_memory():
    """An empty object store in memory: obstore's own, with conditional PUTs and no server."""
    memory = pytest.importorskip("obstore.store").MemoryStore()
    return ObjectStore("memory://test", memory)
