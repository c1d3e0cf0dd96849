#!/usr/bin/env python3
"""Stand-ins for DNS services that can't be had outside of their clouds.

    dns_services.py --record FILE [--port N] [--port-file FILE]

As far as their documentation says it: Cloudflare's API (version 4), Azure DNS
(with the login of Microsoft Entra ID), and Route 53, stricter than moto is:
changes are refused unless a deleted set is exactly the one that is there, and
are PENDING until they were asked about twice. All have the one zone
example.test. Listens on 127.0.0.1 and, once it accepts, writes the port to the
port file. Each request becomes one JSON line of the record file (method, path,
headers, body). SIGTERM ends it.

    /cf/...                             Cloudflare; token "cloudflare-token-1"
    /az/...                             Azure's resource manager
    /TENANT/oauth2/v2.0/token           client "client", secret "azure-client-secret"
    /r53/2013-04-01/...                 Route 53
    /state                              all records: {service: {name: [values]}}
    /control/race                       the next change finds that another has
                                        added the value "other" meanwhile
    /control/MODE                       from now on all but /control and /state:
        normal      behave as they should
        stall       give no answer
        fail        status 503
        throttle    status 429, to come again in a day
        quote       status 403, and the credential in the message
        garbage     200, and a body that is none of theirs
        huge        200, and 8 MB
        lost        do it, and close the connection without an answer

Python's standard library only.
"""
import argparse
import json
import os
import re
import signal
import sys
import threading
import time
from html import escape, unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

ZONE = "example.test"
CF_ZONE = "0123456789abcdef0123456789abcdef"
R53_ZONE = "Z0123456789ABCDEFGHIJ"
lock = threading.Lock()
mode = "normal"
race = False
serial = 0
cloudflare = {}     # id -> (name, content)
azure = {}          # relative name -> {"etag", "ttl", "values"}
route53 = {}        # name with a final dot -> {"ttl", "values"}, as they came
changes = {}        # id -> how often it is PENDING
record = None


def number():
    global serial
    serial += 1
    return serial


def raced():
    global race
    was, race = race, False
    return was


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, body, kind="application/json", headers=()):
        body = body.encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, status, document):
        if mode == "lost":
            self.close_connection = True
            return self.connection.close()
        self.send(status, json.dumps(document))

    def xml(self, status, name, inner):
        if mode == "lost":
            self.close_connection = True
            return self.connection.close()
        self.send(status, '<?xml version="1.0"?>\n<%s xmlns="https://route53.amazonaws.com/doc/2013-04-01/">%s</%s>'
                  % (name, inner, name), "text/xml")

    def handle_any(self):
        global mode, race
        length = int(self.headers.get("Content-Length") or 0)
        self.text = self.rfile.read(length).decode()
        url = urlsplit(self.path)
        self.path_only = unquote(url.path)
        self.query = {k: v[0] for k, v in parse_qs(url.query).items()}
        if self.path_only == "/state":
            return self.send(200, json.dumps(state()))
        if self.path_only.startswith("/control/"):
            word = self.path_only[len("/control/"):]
            if word == "race":
                race = True
            else:
                mode = word
            return self.send(200, "{}")
        with lock:
            record.write(json.dumps({"method": self.command, "path": self.path,
                                     "headers": {k.lower(): v for k, v in self.headers.items()},
                                     "body": self.text}) + "\n")
            record.flush()
        if mode == "stall":
            return time.sleep(60)
        if mode == "fail":
            return self.send(503, '{"message": "no"}')
        if mode == "throttle":
            return self.send(429, '{"message": "slow down"}', headers=[("Retry-After", "90000")])
        if mode == "quote":
            return self.send(403, json.dumps({"errors": [{"message": "not " + self.headers["Authorization"]}]}))
        if mode == "garbage":
            return self.send(200, '{"result": [[[], "x"], 5], "success": true, "properties": 7}')
        if mode == "huge":
            return self.send(200, '{"x": "' + "y" * 8000000 + '"}')
        with lock:
            if self.path_only.startswith("/cf/"):
                return self.cloudflare(self.path_only[3:])
            if self.path_only.startswith("/az/"):
                return self.azure(self.path_only[3:])
            if self.path_only.startswith("/r53/2013-04-01/"):
                return self.route53(self.path_only[len("/r53/2013-04-01/"):])
            if self.path_only == "/tenant/oauth2/v2.0/token":
                if "azure-client-secret" not in self.text:
                    return self.answer(401, {"error": "invalid_client"})
                return self.answer(200, {"access_token": "azure-token-1", "expires_in": 3600})
        self.answer(404, {"message": "nothing there"})

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    # ---- Cloudflare ----

    def cf_error(self, status, code, message):
        self.answer(status, {"success": False, "errors": [{"code": code, "message": message}], "result": None})

    def cloudflare(self, path):
        if self.headers.get("Authorization") != "Bearer cloudflare-token-1":
            return self.cf_error(403, 9109, "Invalid access token " + self.headers.get("Authorization", "")[7:])
        if path == "/zones":
            found = [{"id": CF_ZONE, "name": ZONE}] if self.query.get("name") == ZONE else []
            return self.answer(200, {"success": True, "errors": [], "result": found})
        m = re.fullmatch("/zones/%s/dns_records(?:/([0-9a-f]+))?" % CF_ZONE, path)
        if not m:
            return self.cf_error(404, 7003, "Could not route to " + path)
        if self.command == "GET":
            found = [{"id": i, "type": "TXT", "name": n, "content": c} for i, (n, c) in cloudflare.items()
                     if n == self.query["name"]]
            return self.answer(200, {"success": True, "errors": [], "result": found})
        if self.command == "POST":
            body = json.loads(self.text)
            if body["type"] != "TXT" or not 60 <= body["ttl"] <= 86400:
                return self.cf_error(400, 9021, "Invalid TTL")
            if not body["name"].endswith("." + ZONE):
                return self.cf_error(400, 9000, "Invalid name")
            content = body["content"]
            if not content.startswith('"'):
                content = '"%s"' % content
            if (body["name"], content) in cloudflare.values():
                return self.cf_error(400, 81058, "An identical record already exists.")
            rid = "%032x" % number()
            cloudflare[rid] = (body["name"], content)
            return self.answer(200, {"success": True, "errors": [], "result": {"id": rid}})
        if cloudflare.pop(m.group(1), None) is None:
            return self.cf_error(404, 81044, "Record does not exist.")
        self.answer(200, {"success": True, "errors": [], "result": {"id": m.group(1)}})

    # ---- Azure ----

    def azure(self, path):
        def error(status, code):
            self.answer(status, {"error": {"code": code, "message": code}})
        if self.headers.get("Authorization") != "Bearer azure-token-1":
            return error(401, "AuthenticationFailed")
        m = re.fullmatch("/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/web zones/providers"
                         "/Microsoft.Network/dnsZones/%s/TXT/([^/]+)" % ZONE, path)
        if not m or self.query.get("api-version") != "2018-05-01":
            return error(404, "ParentResourceNotFound")
        name = m.group(1)
        one = azure.get(name)
        if self.command != "GET" and raced():
            one = azure.setdefault(name, {"ttl": 30, "values": []})
            one["values"].append(["other"])
            one["etag"] = str(number())
        if self.command == "GET" and one is None:
            return error(404, "NotFound")
        if self.command != "GET":
            if self.headers.get("If-None-Match") == "*" and one is not None:
                return error(412, "PreconditionFailed")
            if self.headers.get("If-Match") is not None and \
                    (one is None or one["etag"] != self.headers["If-Match"]):
                return error(412, "PreconditionFailed")
        if self.command == "DELETE":
            azure.pop(name, None)
            return self.send(200, "")
        if self.command == "PUT":
            properties = json.loads(self.text)["properties"]
            one = azure[name] = {"etag": str(number()), "ttl": properties["TTL"],
                                 "values": [t["value"] for t in properties["TXTRecords"]]}
        self.answer(200, {"name": name, "etag": one["etag"], "properties": {
            "TTL": one["ttl"], "TXTRecords": [{"value": v} for v in one["values"]]}})

    # ---- Route 53 ----

    def r53_error(self, code, message):
        self.xml(400, "ErrorResponse", "<Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error>"
                 % (code, escape(message)))

    def r53_set(self, name):
        one = route53[name]
        return ("<ResourceRecordSet><Name>%s</Name><Type>TXT</Type><TTL>%s</TTL><ResourceRecords>%s"
                "</ResourceRecords></ResourceRecordSet>" % (name, one["ttl"], "".join(
                    "<ResourceRecord><Value>%s</Value></ResourceRecord>" % escape(v) for v in one["values"])))

    def route53(self, path):
        if "Credential=key-1/" not in self.headers.get("Authorization", ""):
            return self.xml(403, "ErrorResponse", "<Error><Code>InvalidClientTokenId</Code><Message>no</Message></Error>")
        if path == "hostedzonesbyname":
            return self.xml(200, "ListHostedZonesByNameResponse", "<HostedZones>"
                "<HostedZone><Id>/hostedzone/ZPRIVATE</Id><Name>%s.</Name><Config><PrivateZone>true</PrivateZone></Config></HostedZone>"
                "<HostedZone><Id>/hostedzone/%s</Id><Name>%s.</Name><Config><PrivateZone>false</PrivateZone></Config></HostedZone>"
                "</HostedZones>" % (ZONE, R53_ZONE, ZONE))
        m = re.fullmatch("change/(C[0-9]+)", path)
        if m:
            changes[m.group(1)] -= 1
            return self.xml(200, "GetChangeResponse", "<ChangeInfo><Id>/change/%s</Id><Status>%s</Status></ChangeInfo>"
                            % (m.group(1), "PENDING" if changes[m.group(1)] > 0 else "INSYNC"))
        if not path.startswith("hostedzone/%s/rrset" % R53_ZONE):
            return self.r53_error("NoSuchHostedZone", path)
        if self.command == "GET":
            name = self.query["name"].rstrip(".") + "."
            after = sorted(n for n in route53 if n >= name)[:1]
            return self.xml(200, "ListResourceRecordSetsResponse", "<ResourceRecordSets>%s</ResourceRecordSets>"
                            % "".join(self.r53_set(n) for n in after))
        new = {n: dict(s) for n, s in route53.items()}
        steps = re.findall("<Change><Action>([A-Z]+)</Action>.*?<Name>(.*?)</Name><Type>TXT</Type><TTL>(.*?)</TTL>(.*?)</Change>",
                           self.text, re.S)
        if raced():
            name = steps[0][1]
            new.setdefault(name, {"ttl": "30", "values": []})["values"].append('"other"')
            route53.clear()
            route53.update({n: dict(s) for n, s in new.items()})
        for action, name, ttl, inner in steps:
            values = [unescape(v) for v in re.findall("<Value>(.*?)</Value>", inner)]
            if not name.endswith("." + ZONE + ".") or any(not re.fullmatch('"[^"]{1,255}"', v) for v in values):
                return self.r53_error("InvalidChangeBatch", "invalid record")
            old = new.get(name)
            if action == "CREATE" and old:
                return self.r53_error("InvalidChangeBatch", "Tried to create %s but it already exists" % name)
            if action == "DELETE" and (not old or old["ttl"] != ttl or sorted(old["values"]) != sorted(values)):
                return self.r53_error("InvalidChangeBatch", "Tried to delete %s but the values provided do not match" % name)
            if action == "DELETE":
                del new[name]
            else:
                new[name] = {"ttl": ttl, "values": values}
        route53.clear()
        route53.update(new)
        change = "C%d" % number()
        changes[change] = 8
        self.xml(200, "ChangeResourceRecordSetsResponse",
                 "<ChangeInfo><Id>/change/%s</Id><Status>PENDING</Status></ChangeInfo>" % change)


def state():
    with lock:
        cf = {}
        for name, content in cloudflare.values():
            cf.setdefault(name, []).append(content.strip('"'))
        return {"cloudflare": {n: sorted(v) for n, v in cf.items()},
                "azure": {"%s.%s" % (n, ZONE): sorted("".join(v) for v in s["values"]) for n, s in azure.items()},
                "route53": {n.rstrip("."): sorted(v.strip('"') for v in s["values"]) for n, s in route53.items()}}


def main():
    global record
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file")
    options = parser.parse_args()
    record = open(options.record, "a")
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if options.port_file:
        with open(options.port_file + ".new", "w") as f:
            f.write(str(server.server_port))
        os.rename(options.port_file + ".new", options.port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
