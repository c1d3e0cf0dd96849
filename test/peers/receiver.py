#!/usr/bin/env python3
"""An HTTP receiver that records what arrives and misbehaves when asked to.

    receiver.py --record FILE [--port N] [--port-file FILE]

Listens on 127.0.0.1 (port 0, the default: any free one) and, once it accepts,
writes the port to the port file. Each request becomes one JSON line of the
record file (method, path, headers with names in lower case, body, peer: the
client's port, time: CLOCK_MONOTONIC in seconds), written before it is
answered. SIGTERM ends it.

The path says how it behaves:

    /ok               200
    /status/NNN       that status; ?retry_after=TEXT adds the header,
                      ?location=TEXT too
    /stall            never answers
    /slow/MS          200 after so many milliseconds
    /reset            closes the connection with a RST
    /close            closes it without an answer
    /huge             1 GB of body
    /size/N           a body of N bytes
    /garbage          bytes that are not HTTP
    /half             promises more body than it sends, then closes
    /drip             a status, headers, then a body that never ends, slowly
    /headers          headers without end
    /longheader       one header line without end
    /continues        interim responses (100) without end
    /bytes            a body that is not UTF-8
    /latin1/NNN       that status, with a body in Latin-1
    /nul              a body with a NUL in it
    /utf8/N           N bytes, then 80000 bytes of two-byte characters
    /echo             200 with the request as JSON
    /fields           repeated and odd response headers
    /flaky?fail=N     the first N requests of a webhook-id get 503
    /switch           200 while up, 503 while down
    /control/up, /control/down     turn the switch (not recorded)

Python's standard library only.
"""
import argparse
import asyncio
import json
import os
import signal
import socket
import struct
import time
from urllib.parse import parse_qs, urlsplit

REASONS = {200: "OK", 503: "Service Unavailable"}
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-type: text/plain\r\n\r\nok\n"


class State:
    """What all connections share."""
    record = None
    up = True
    seen = {}       # webhook-id -> requests of /flaky


def response(status, body=b"", headers=()):
    head = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}"]
    head += [f"{name}: {value}" for name, value in headers]
    if status >= 200 and status not in (204, 304):
        head.append(f"content-length: {len(body)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


class Receiver(asyncio.Protocol):
    """One connection: requests are parsed as they come, answered in order."""

    def connection_made(self, transport):
        self.transport = transport
        self.data = bytearray()
        self.task = None
        self.paused = None

    def connection_lost(self, exc):
        if self.task:
            self.task.cancel()

    def pause_writing(self):
        self.paused = asyncio.get_running_loop().create_future()

    def resume_writing(self):
        if self.paused and not self.paused.done():
            self.paused.set_result(None)
        self.paused = None

    def data_received(self, data):
        self.data += data
        while self.task is None and self.take_request():
            pass

    def take_request(self):
        """Take one whole request from the buffer and answer it."""
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return False
        lines = self.data[:end].decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            name = name.lower()
            value = value.strip()
            headers[name] = headers[name] + ", " + value if name in headers else value
        length = int(headers.get("content-length", 0))
        if len(self.data) < end + 4 + length:
            return False
        body = bytes(self.data[end + 4:end + 4 + length])
        del self.data[:end + 4 + length]
        method, target, _ = lines[0].split(" ", 2)
        self.answer(method, target, headers, body)
        return True

    def answer(self, method, target, headers, body):
        if target.startswith("/control/"):
            State.up = target.endswith("/up")
            self.transport.write(OK)
            return
        entry = {"method": method, "path": target, "headers": headers,
                 "body": body.decode("utf-8", "replace"),
                 "peer": self.transport.get_extra_info("peername")[1],
                 "time": time.monotonic()}
        State.record.write(json.dumps(entry) + "\n")
        State.record.flush()
        if target == "/ok":
            self.transport.write(OK)
            return
        url = urlsplit(target)
        query = parse_qs(url.query)
        name, _, argument = url.path.lstrip("/").partition("/")
        behave = getattr(self, "do_" + name, None)
        if behave is None:
            self.transport.write(response(404, b"no such behaviour\n"))
            return
        result = behave(argument, query, entry)
        if asyncio.iscoroutine(result):
            self.task = asyncio.ensure_future(self.behave(result))
        elif result is not None:
            if method == "HEAD":
                result = result[:result.index(b"\r\n\r\n") + 4]
            self.transport.write(result)

    async def behave(self, coroutine):
        try:
            await coroutine
        finally:
            self.task = None
        while self.task is None and self.take_request():
            pass

    async def pour(self, data):
        """Write, as fast as the other side reads."""
        if self.transport.is_closing():
            raise asyncio.CancelledError
        self.transport.write(data)
        if self.paused:
            await self.paused
        else:
            await asyncio.sleep(0)

    def do_status(self, argument, query, entry):
        extra = [(name.replace("_", "-"), query[name][0])
                 for name in ("retry_after", "location") if name in query]
        return response(int(argument), b"status\n", extra)

    async def do_stall(self, argument, query, entry):
        await asyncio.get_running_loop().create_future()

    async def do_slow(self, argument, query, entry):
        await asyncio.sleep(int(argument) / 1000)
        self.transport.write(OK)

    def do_reset(self, argument, query, entry):
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                        struct.pack("ii", 1, 0))
        self.transport.abort()

    def do_close(self, argument, query, entry):
        self.transport.close()

    async def do_huge(self, argument, query, entry):
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n")
        piece = b"x" * 65536
        for _ in range(1073741824 // len(piece)):
            await self.pour(piece)

    def do_size(self, argument, query, entry):
        return response(200, b"x" * int(argument))

    def do_garbage(self, argument, query, entry):
        self.transport.write(b"\x16\x03\x01\x00garbage, not HTTP\r\n\x1b[31m\r\n\r\n")
        self.transport.close()

    def do_half(self, argument, query, entry):
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
        self.transport.close()

    async def do_drip(self, argument, query, entry):
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while True:
            await self.pour(b"x")
            await asyncio.sleep(0.02)

    async def do_headers(self, argument, query, entry):
        self.transport.write(b"HTTP/1.1 200 OK\r\n")
        n = 0
        while True:
            n += 1
            await self.pour(b"x-%d: %s\r\n" % (n, b"y" * 200))

    async def do_longheader(self, argument, query, entry):
        self.transport.write(b"HTTP/1.1 200 OK\r\nx-long: ")
        while True:
            await self.pour(b"y" * 8192)

    async def do_continues(self, argument, query, entry):
        while True:
            await self.pour(b"HTTP/1.1 100 Continue\r\n\r\n" * 20)

    def do_bytes(self, argument, query, entry):
        return response(200, b"\xff\xfe\x00binary")

    def do_latin1(self, argument, query, entry):
        return response(int(argument), "größer als erlaubt".encode("latin-1"))

    def do_nul(self, argument, query, entry):
        return response(200, b"a\x00b")

    def do_utf8(self, argument, query, entry):
        return response(200, b"x" * int(argument) + "é".encode() * 40000)

    def do_echo(self, argument, query, entry):
        return response(200, json.dumps(entry).encode(),
                        [("content-type", "application/json")])

    def do_fields(self, argument, query, entry):
        return (b"HTTP/1.1 200 OK\r\nX-One: 1\r\nx-ONE:  2  \r\n"
                b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Empty:\r\n"
                b"X-Latin: caf\xe9\r\nX-Utf8: caf\xc3\xa9\r\n"
                b"Content-Length: 0\r\n\r\n")

    def do_flaky(self, argument, query, entry):
        who = entry["headers"].get("webhook-id", "")
        State.seen[who] = State.seen.get(who, 0) + 1
        if State.seen[who] <= int(query.get("fail", ["1"])[0]):
            return response(503, b"flaky\n")
        return OK

    def do_switch(self, argument, query, entry):
        return OK if State.up else response(503, b"down\n")


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file")
    parser.add_argument("--record", required=True)
    options = parser.parse_args()
    State.record = open(options.record, "a", encoding="utf-8")

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Receiver, "127.0.0.1", options.port,
                                      backlog=1024)
    stop = loop.create_future()
    loop.add_signal_handler(signal.SIGTERM, lambda: stop.done() or stop.set_result(None))
    port = server.sockets[0].getsockname()[1]
    if options.port_file:
        with open(options.port_file + ".tmp", "w") as f:
            f.write(f"{port}\n")
        os.rename(options.port_file + ".tmp", options.port_file)
    else:
        print(port, flush=True)
    await stop
    server.close()

if __name__ == "__main__":
    asyncio.run(main())
