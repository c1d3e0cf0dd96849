#!/usr/bin/env python3
"""A proxy before moto's Certificate Manager that takes regions down.

    acm_faults.py PORT UPSTREAM_PORT FAULTS LOG

Listens on 127.0.0.1. Each request becomes a line of LOG: region, operation,
status. FAULTS names a file; while there is one, each of its lines says what
fails: REGION OPERATION KIND, "*" for any. KIND is a status, "reset" (no
answer), or "lost": the request is carried out and its answer never arrives,
which happens once. (A certificate that is imported again under its ARN keeps
its tags in AWS, and loses them in moto: a second time would show moto's fault.)

Python's standard library only.
"""
import http.client
import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, upstream, faults, log = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def note(self, status):
        with lock, open(log, "a") as f:
            f.write("%s %s %s\n" % (self.region, self.operation, status))

    def fault(self):
        try:
            lines = open(faults).read().split("\n")
        except FileNotFoundError:
            return None
        for line in lines:
            words = line.split()
            if (len(words) == 3 and words[0] in ("*", self.region)
                    and words[1] in ("*", self.operation)):
                return words[2]
        return None

    def spend(self, kind):
        with lock:
            lines = [x for x in open(faults) if x.split()[2:] != [kind]]
            with open(faults + ".spent", "w") as f:
                f.writelines(lines)
            os.rename(faults + ".spent", faults)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.region = re.search(r"/\d{8}/([a-z0-9-]+)/acm/", self.headers["Authorization"]).group(1)
        self.operation = self.headers["X-Amz-Target"].split(".")[1]
        fault = self.fault()
        if fault == "reset":
            self.note("reset")
            self.close_connection = True
            return
        if fault and fault != "lost":
            # As some do, it repeats what it was sent.
            self.answer(int(fault), json.dumps({
                "__type": "InternalFailure",
                "message": "cannot take " + body.decode()}).encode())
            return
        c = http.client.HTTPConnection("127.0.0.1", upstream)
        c.request("POST", self.path, body, dict(self.headers))
        r = c.getresponse()
        data = r.read()
        if fault == "lost":
            self.spend(fault)
            self.note("lost")
            self.close_connection = True
            return
        self.answer(r.status, data)

    def answer(self, status, data):
        self.note(status)
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
server.daemon_threads = True
server.serve_forever()
