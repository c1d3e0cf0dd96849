#!/usr/bin/env python3
"""A proxy before an S3 service, which fails when told to.

    s3_faults.py PORT TARGET_PORT FAULT_FILE LOG_FILE

The fault file holds one line, "STEP KIND [TIMES]", read with each request: a
request of that step fails so, as often as TIMES says (for ever if it does
not). Steps: put, part, begin, complete, abort, list, get, delete. Kinds: a
status (500, 503, 403), half (a body that ends early), wrong (another body),
reset, hang, error200 (an error document with status 200). Each request is a
line of the log: step, status.
"""
import http.client
import http.server
import socket
import struct
import sys
import threading
import time
from urllib.parse import parse_qs, urlsplit

port, target, fault_file, log_file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
lock = threading.Lock()
ERROR = b"<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>as told</Message></Error>"


def step_of(method, path):
    query = parse_qs(urlsplit(path).query, keep_blank_values=True)
    if "uploads" in query:
        return "begin" if method == "POST" else "list"
    if "uploadId" in query:
        return {"PUT": "part", "POST": "complete", "DELETE": "abort"}[method]
    return {"PUT": "put", "GET": "get", "DELETE": "delete"}.get(method, method)


def fault_for(step):
    with lock:
        try:
            words = open(fault_file).read().split()
        except FileNotFoundError:
            return None
        if len(words) < 2 or words[0] != step:
            return None
        if len(words) > 2:
            left = int(words[2]) - 1
            open(fault_file, "w").write(f"{words[0]} {words[1]} {left}\n" if left else "")
        return words[1]


class Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        step = step_of(self.command, self.path)
        fault = fault_for(step)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            status, data, headers = 0, b"", []
        elif fault == "hang":
            time.sleep(600)
            return
        elif fault and fault.isdigit():
            status, data, headers = int(fault), ERROR % (b"SlowDown" if fault == "503" else b"InternalError"), []
        elif fault == "error200":
            status, data, headers = 200, ERROR % b"InternalError", []
        else:
            c = http.client.HTTPConnection("127.0.0.1", target)
            c.request(self.command, self.path, body, dict(self.headers))
            r = c.getresponse()
            status, data = r.status, r.read()
            headers = [(k, v) for k, v in r.getheaders()
                       if k.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server")]
            c.close()
        if fault == "wrong" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        with lock:
            open(log_file, "a").write(f"{step} {status}\n")
        if status == 0:
            return
        self.send_response(status)
        for k, v in headers:
            self.send_header(k, v)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:len(data) // 2] if fault == "half" else data)
        if fault == "half":
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True


Server(("127.0.0.1", port), Proxy).serve_forever()
