#!/usr/bin/env python3
"""A name server, over TCP, that answers what it likes.

    fake_dns.py --record FILE [--port N] [--port-file FILE]

How is said by the last but one label of the name that is asked about, as in
_acme-challenge.garbage.test: see the methods below. Those of updates say that
the zone is there, and answer the update badly. Listens on 127.0.0.1 and, once
it accepts, writes the port to the port file. SIGTERM ends it.

Python's standard library only.
"""
import argparse
import os
import signal
import socketserver
import struct
import sys
import time

A, NS, CNAME, SOA, TXT, TSIG = 1, 2, 5, 6, 16, 250
UPDATES = ("unsigned", "signed-by-none", "tsig-garbage", "update-garbage")


def name(text):
    return b"".join(bytes([len(l)]) + l.encode() for l in text.split(".") if l) + b"\0"


def rr(owner, kind, data, ttl=60, cls=1):
    return owner + struct.pack("!HHIH", kind, cls, ttl, len(data)) + data


class Message:
    def __init__(self, wire):
        self.wire = wire
        self.id, self.flags, self.counts = wire[:2], struct.unpack("!H", wire[2:4])[0], wire[4:12]
        at, labels = 12, []
        while wire[at]:
            labels.append(wire[at + 1:at + 1 + wire[at]].decode())
            at += 1 + wire[at]
        self.question = wire[12:at + 5]
        self.name = ".".join(labels)
        self.owner = wire[12:at + 1]
        self.kind = struct.unpack("!H", wire[at + 1:at + 3])[0]
        self.update = (self.flags >> 11) & 15 == 5

    def answer(self, records=(), rcode=0, flags=0x8400, id=None, question=None, additional=(), qdcount=1):
        question = self.question if question is None else question
        opcode = self.flags & 0x7800
        return ((id or self.id) + struct.pack("!HHHHH", flags | opcode | rcode, qdcount, len(records), 0, len(additional)) +
                question + b"".join(records) + b"".join(additional))


class Handler(socketserver.BaseRequestHandler):
    def read(self, n):
        data = b""
        while len(data) < n:
            more = self.request.recv(n - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def handle(self):
        try:
            (length,) = struct.unpack("!H", self.read(2))
            m = Message(self.read(length))
        except (EOFError, ConnectionError, IndexError):
            return
        labels = m.name.split(".")
        how = labels[-2] if len(labels) > 1 else "top"
        answer = self.how(m, how)
        if answer is not None:
            try:
                self.request.sendall(struct.pack("!H", len(answer)) + answer)
            except ConnectionError:
                pass

    def how(self, m, how):
        if m.update:
            return self.updated(m, how)
        if how in UPDATES:
            if m.kind == SOA and m.name.count(".") == 1:
                return m.answer([rr(m.owner, SOA, name("a.test") + name("b.test") + b"\0" * 20)])
            return m.answer()
        if how == "slow-servers":
            # Sixteen name servers, whose names take long to come to nothing.
            if m.kind == SOA and m.name.count(".") == 1:
                return m.answer([rr(m.owner, SOA, name("a.test") + name("b.test") + b"\0" * 20)])
            if m.kind == NS:
                return m.answer([rr(m.owner, NS, name("n%d.slow-servers.test" % i)) for i in range(16)])
            if m.name.startswith("n"):
                time.sleep(2)
            return m.answer(rcode=3)
        if how == "garbage":
            return b"\xff" * 200
        if how == "short":
            return b"\0" * 5
        if how == "truncated":
            return m.answer(flags=0x8600)
        if how == "wrong-id":
            return m.answer(id=bytes([m.id[0] ^ 1, m.id[1]]))
        if how == "wrong-question":
            return m.answer(question=name("other.test") + m.question[-4:])
        if how == "no-question":
            return m.answer(question=b"", qdcount=0)
        if how == "a-query":
            return m.answer(flags=0)
        if how == "pointer-loop":
            # An owner that points to itself.
            at = 12 + len(m.question)
            return m.answer([rr(struct.pack("!H", 0xc000 | at), CNAME, b"\0")])
        if how == "half":
            self.request.sendall(struct.pack("!H", 500) + m.answer())
            return None
        if how == "nothing":
            return None
        if how == "stall":
            time.sleep(20)
            return None
        if how == "servfail":
            return m.answer(rcode=2)
        if how == "cname-loop":
            return m.answer([rr(m.owner, CNAME, m.owner)])
        if how == "cname-strange":
            return m.answer([rr(m.owner, CNAME, b"\x05a\"\n\xff'\0")])
        return m.answer(rcode=3)

    def updated(self, m, how):
        if how == "update-garbage":
            return b"\x01" * 300
        if how == "unsigned":
            return m.answer()
        key = name("mlint")
        data = name("hmac-sha256") + struct.pack("!HIHH", 0, int(time.time()), 300, 32) + b"x" * 32
        data += m.id + struct.pack("!HH", 0, 0)
        if how == "tsig-garbage":
            data = name("hmac-sha256") + struct.pack("!HIHH", 0, int(time.time()), 300, 60000) + b"x"
        return m.answer(additional=[rr(key, TSIG, data, 0, 255)])


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--record")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file")
    options = parser.parse_args()
    server = Server(("127.0.0.1", options.port), Handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if options.port_file:
        with open(options.port_file + ".new", "w") as f:
            f.write(str(server.server_address[1]))
        os.rename(options.port_file + ".new", options.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
