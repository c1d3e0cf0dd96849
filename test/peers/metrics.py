#!/usr/bin/env python3
"""Answers each request with what a query prints: mlint.metrics(), for a real
Prometheus to read, while nothing of mlint's own serves it over HTTP.

  metrics.py --port PORT --port-file FILE --connect CONNINFO [--query SQL]

Only on loopback. Port 0 takes a free one; the file gets it.
"""
import argparse
import http.server
import os
import subprocess

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--port-file", required=True)
parser.add_argument("--connect", required=True)
parser.add_argument("--query", default="SELECT mlint.metrics()")
options = parser.parse_args()


class Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        psql = subprocess.run(
            ["psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1",
             "-d", options.connect, "-c", options.query],
            stdin=subprocess.DEVNULL, capture_output=True,
            env=dict(os.environ, PGCLIENTENCODING="UTF8"))
        self.send_response(200 if psql.returncode == 0 else 500)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.end_headers()
        self.wfile.write(psql.stdout or psql.stderr)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Metrics)
with open(options.port_file + ".new", "w") as f:
    f.write(str(server.server_port))
os.rename(options.port_file + ".new", options.port_file)
server.serve_forever()
