"""What the benchmarks beside this file share."""

import base64
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def timed(command):
    """Wall seconds, CPU seconds and peak MiB of a command and what it waited for."""
    begun = time.monotonic()
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{command} ended with {process.returncode}: {error[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


@contextmanager
def nginx(work, www, module="", location=""):
    """A web server of the directory `www` on loopback; gives its url."""
    port, conf = free_port(), work / "nginx.conf"
    temporary = "".join(f"{kind}_temp_path {work}/t;\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    conf.write_text(
        f"{module}daemon off; pid {work}/nginx.pid; error_log stderr; user root; worker_processes 1;\n"
        f"events {{}}\nhttp {{ access_log off; sendfile on;\n{temporary}"
        f"server {{ listen 127.0.0.1:{port}; root {www}; {location} }} }}\n"
    )
    server = subprocess.Popen(["/usr/sbin/nginx", "-c", conf], stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(10)


class Client:
    """HTTP to one server, over a connection for each thread that is kept."""

    def __init__(self, base, headers=None, tls=None):
        self.base, self.headers, self.tls = urlsplit(base), headers or {}, tls
        self.local = threading.local()

    def connection(self):
        if self.base.scheme == "https":
            return http.client.HTTPSConnection(self.base.netloc, context=self.tls, timeout=60)
        return http.client.HTTPConnection(self.base.netloc, timeout=60)

    def request(self, method, path, body=None, content="application/json"):
        """The status and the body of a reply."""
        headers = {**self.headers, "Content-Type": content} if body is not None else self.headers
        for last in (False, True):
            kept = getattr(self.local, "connection", None)
            if not kept:
                self.local.connection = self.connection()
                self.local.connection.connect()
                self.local.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self.local.connection.request(method, self.base.path + path, body, headers)
                reply = self.local.connection.getresponse()
                return reply.status, reply.read()
            except (http.client.RemoteDisconnected, ConnectionError):
                # The server has closed what was idle for long.
                self.local.connection = None
                if last or not kept:
                    raise
            except BaseException:
                self.local.connection = None
                raise

    def __call__(self, method, path, body=None, content="application/json"):
        """The same with JSON; what is refused is an error."""
        status, text = self.request(method, path, None if body is None else json.dumps(body), content)
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {text.decode()[:500]}")
        return json.loads(text) if text.startswith((b"{", b"[")) else text.decode()


class Api(Client):
    """The API server, as the kubeconfig says."""

    def __init__(self):
        text = Path(os.environ["KUBECONFIG"]).read_text()
        field = lambda name: re.search(rf"{name}: *\"?([^\"\s,}}]+)", text).group(1)
        self.server, self.token = field("server"), field("token")
        authority = re.search(r"certificate-authority: *\"?([^\"\s,}]+)", text)
        data = re.search(r"certificate-authority-data: *\"?([^\"\s,}]+)", text)
        tls = ssl.create_default_context(
            cafile=authority and authority.group(1),
            cadata=None if authority else base64.b64decode(data.group(1)).decode(),
        )
        super().__init__(self.server, {"Authorization": f"Bearer {self.token}"}, tls)

    def metric(self, name):
        """Labels and value of every line of a metric of the server."""
        for line in self("GET", "/metrics").splitlines():
            if line.startswith(name) and (match := re.match(r"(\w+)\{(.*)\} (\S+)", line)) and match.group(1) == name:
                yield dict(re.findall(r'(\w+)="([^"]*)"', match.group(2))), float(match.group(3))

    def requests(self, kinds=("pods", "configmaps", "secrets", "jobs"), watches=False):
        """Requests that the server has answered, by verb and resource."""
        counts = {}
        for labels, count in self.metric("apiserver_request_total"):
            resource = labels["resource"] + (f"/{labels['subresource']}" if labels["subresource"] else "")
            if resource.split("/")[0] in kinds and (watches or labels["verb"] != "WATCH"):
                key = (labels["verb"], resource)
                counts[key] = counts.get(key, 0) + count
        return counts
