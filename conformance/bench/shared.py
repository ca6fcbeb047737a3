"""What the benchmarks beside this file share."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager


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
