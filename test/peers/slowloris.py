#!/usr/bin/env python3
"""Hold many HTTP connections open, each with a header that never ends.

    slowloris.py PORT CONNECTIONS [--every SECONDS] [--reopen] [--host ADDRESS]

Sends a byte of a header on each connection every so often (0: none at all),
and says "ready" when all have been opened. With --reopen one that the server
closes is opened again. At the end of its standard input it writes a line of
JSON: how many it opened, how many the server closed, after how many seconds
the first and the last of these, and how many are still open.
"""
import argparse
import json
import resource
import selectors
import socket
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("connections", type=int)
parser.add_argument("--every", type=float, default=1)
parser.add_argument("--reopen", action="store_true")
parser.add_argument("--host", default="127.0.0.1")
options = parser.parse_args()

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))

selector = selectors.DefaultSelector()
opened = {}
lives = []
total = 0


def begin():
    global total
    began = time.monotonic()
    s = socket.create_connection((options.host, options.port), timeout=30)
    s.setblocking(False)
    if options.every:
        s.send(b"GET /.well-known/acme-challenge/slow HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    opened[s] = began
    selector.register(s, selectors.EVENT_READ)
    total += 1


def end(s):
    selector.unregister(s)
    lives.append(time.monotonic() - opened.pop(s))
    s.close()
    if options.reopen:
        begin()


def look(timeout):
    """Notice what the server closed; true when our input has ended."""
    ended = False
    for key, _ in selector.select(timeout):
        s = key.fileobj
        if s is sys.stdin:
            ended = True
            continue
        try:
            data = s.recv(4096)
        except BlockingIOError:
            continue
        except OSError:
            data = b""
        if not data and s in opened:
            end(s)
    return ended


selector.register(sys.stdin, selectors.EVENT_READ)
for _ in range(options.connections):
    begin()
    look(0)
print("ready", flush=True)

sent_at = time.monotonic()
while not look(0.1):
    if not options.every or time.monotonic() - sent_at < options.every:
        continue
    sent_at = time.monotonic()
    for s in list(opened):
        try:
            s.send(b"x")
        except BlockingIOError:
            pass
        except OSError:
            if s in opened:
                end(s)
print(json.dumps({
    "opened": total,
    "closed": len(lives),
    "first": round(min(lives), 2) if lives else None,
    "last": round(max(lives), 2) if lives else None,
    "open": len(opened),
}))
