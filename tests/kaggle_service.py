"""A small stand-in for Kaggle: real HTTP on the loopback address, spoken to by Kaggle's own client.

The client is led here by its own settings: ``KAGGLE_API_ENVIRONMENT=LOCALHOST`` makes it call ``http://localhost/api/v1``,
and ``HTTP_PROXY`` sends that request to this server, on whatever port is free. The archive lies at another host name,
``http://storage.test``, to which the request for a download is redirected, as Kaggle does with its storage.
"""

import hashlib
import io
import json
import threading
import time
import zipfile
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

TOKEN = "KGAT_0123456789abcdef-secret-token"
USER, KEY = "reader", "fedcba9876543210-secret-key"


def make_archive(files, **special):
    """A zip file in memory; ``files`` maps names to bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", special.get("compression", zipfile.ZIP_STORED)) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class KaggleService(ThreadingHTTPServer):
    """Serves one data set. Faults are queued: each is used up by one request.

    Attributes:
        api_faults: statuses, or ``"hang"`` or ``"cut"``, for the next requests for a download.
        storage_faults: for the next requests to the storage: a status, or a number of bytes after which the connection
            is cut, as ``("cut", n)``.
        requests: what was asked for: (host, path, headers) of each request.
        anonymous: whether a request without a token is served.
        ranges: whether the storage honors Range.
        tagged: whether it sends an ETag and a date.
        pause: seconds between blocks of 64 kB.
    """

    daemon_threads = True

    def __init__(self, slug, archive):
        super().__init__(("127.0.0.1", 0), Handler)
        self.slug, self.archive, self.versions = slug, archive, {}
        self.api_faults, self.storage_faults, self.requests = deque(), deque(), []
        self.anonymous, self.ranges, self.tagged, self.redirect, self.pause = False, True, True, True, 0.0
        self.inactive, self.sent_bytes = False, 0
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that went away is part of the tests."""

    def environment(self, home, **more):
        """Variables that lead Kaggle's client here, without a token; None stands for a variable to be removed."""
        tokens = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME")
        proxies = ("http_proxy", "https_proxy", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "VERBOSE")
        return {
            **dict.fromkeys((*tokens, *proxies, "KAGGLE_KERNEL_RUN_TYPE")),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "HTTP_PROXY": self.address,
            "http_proxy": self.address,
            "HOME": str(home),
            "USERPROFILE": str(home),
            **more,
        }

    def asked(self, host):
        """Headers of the requests that went to a host."""
        return [headers for name, path, headers in self.requests if name == host and "introspect" not in path.lower()]


class Handler(BaseHTTPRequestHandler):
    """Answers requests in the form that a proxy receives: with the whole address in the first line."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """No log."""

    def do_POST(self):
        """The service itself: calls such as ``/api/v1/datasets.DatasetApiService/DownloadDataset``."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        url = urlsplit(self.path)
        self.server.requests.append((url.hostname, url.path, dict(self.headers)))
        call = url.path.rsplit("/", 1)[-1]
        if call == "IntrospectToken":
            known = body.get("token") == TOKEN and not self.server.inactive
            return self._json(200, {"active": known, "username": USER if known else ""})
        if call != "DownloadDataset":
            return self._json(404, {"code": 404, "message": f"no call {call}"})
        if self.server.api_faults:
            fault = self.server.api_faults.popleft()
            if fault == "hang":
                time.sleep(3)
                return None
            if fault == "cut":
                return self._cut()
            if fault == "page":
                return self._bytes(200, b"<html>sign in</html>", {"Content-Type": "text/html"})
            status, headers = fault if isinstance(fault, tuple) else (fault, {})
            return self._json(status, {"code": status, "message": f"refused {self.headers['Authorization']}"}, headers)
        if not self._known():
            return self._json(401, {"code": 401, "message": "Unauthenticated"})
        if f"{body.get('ownerSlug')}/{body.get('datasetSlug')}" != self.server.slug:
            return self._json(404, {"code": 404, "message": "Not found"})
        version = body.get("datasetVersionNumber") or 0
        if version and version not in self.server.versions:
            return self._json(404, {"code": 404, "message": "Not found"})
        if not self.server.redirect:
            return self._archive(self.server.versions.get(version, self.server.archive))
        return self._bytes(
            302, b"", {"Location": f"http://storage.test/archive?version={version}&signature=signed-secret"}
        )

    def do_GET(self):
        """The storage."""
        url = urlsplit(self.path)
        self.server.requests.append((url.hostname, url.path, dict(self.headers)))
        version = int(parse_qs(url.query)["version"][0])
        self._archive(self.server.versions.get(version, self.server.archive))

    def _known(self):
        import base64

        given = self.headers["Authorization"]
        basic = "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode()
        return given in (f"Bearer {TOKEN}", basic) or (given is None and self.server.anonymous)

    def _archive(self, content):
        fault, tag = None, f'"{hashlib.md5(content).hexdigest()}"'
        # The client's own first request only follows the redirect; faults are for the requests that fetch the bytes.
        if self.headers["Accept-Encoding"] == "identity" and self.server.storage_faults:
            fault = self.server.storage_faults.popleft()
        if isinstance(fault, int):
            return self._bytes(fault, b"<Error>the storage is busy</Error>", {"Content-Type": "application/xml"})
        start, headers = 0, {"Content-Type": "application/zip", "Accept-Ranges": "bytes"}
        if self.server.tagged:
            headers |= {"ETag": tag, "Last-Modified": "Mon, 02 Mar 2026 10:00:00 GMT"}
        asked = self.headers["Range"]
        if asked and self.server.ranges and self.headers.get("If-Range", tag) == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self._bytes(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._bytes(206 if start else 200, content[start:], headers, fault)

    def _json(self, status, value, headers=None):
        self._bytes(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _bytes(self, status, content, headers, fault=None):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        end = fault[1] if fault else len(content)
        for position in range(0, end, 1 << 16):
            block = content[position : min(position + (1 << 16), end)]
            self.wfile.write(block)
            self.server.sent_bytes += len(block)
            time.sleep(self.server.pause)
        if fault:
            self._cut()

    def _cut(self):
        import socket

        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
