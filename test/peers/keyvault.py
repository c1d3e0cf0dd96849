#!/usr/bin/env python3
"""Stand-ins for services that can't be had outside of their clouds.

    keyvault.py --record FILE [--port N] [--port-file FILE]

Azure Key Vault's secrets as the REST API of version 7.4 documents them (set,
get, list and versions by pages, delete with soft delete), its certificates
(import, get; what is imported is read by openssl), the login of
Microsoft Entra ID by client credentials, a virtual machine's identity
endpoint, and the TokenReview of a Kubernetes API server, which OpenBao asks.
Listens on 127.0.0.1 and, once it accepts, writes the port to the port file.
Each request becomes one JSON line of the record file (method, path, headers,
body). SIGTERM ends it.

    /vault/secrets/...                  the vault
    /vaults/VAULT/certificates/NAME     certificates, of any number of vaults
    /vaults/VAULT/certificates/NAME/import
    /TENANT/oauth2/v2.0/token           client "client", secret "azure-client-secret"
    /metadata/identity/oauth2/token     the identity endpoint
    /apis/authentication.k8s.io/v1/tokenreviews    accepts what "signature" signs
    /container                          keys as a container's endpoint gives them
    /control/revoke                     all tokens given so far are void
    /control/put/NAME/VALUE             a new version, without any ceremony
    /control/lose/VAULT                 imports are done, and not answered
    /control/down/VAULT                 it answers with 503
    /control/refuse/VAULT               it refuses imports, and repeats them
    /control/up/VAULT                   nothing of that any more
    /control/MODE                       from now on all but /control behave so:
        normal      as they should
        stall       no answer
        drip        an answer that never ends, slowly
        half        less of a body than was promised
        fail        status 503, with the request's token in its words
        throttle    status 429
        garbage     200, and a body that is not JSON
        strange     200, and JSON that is something else
        huge        200, and 8 MB of JSON
        endless     200, and of every list a page that names a next one
        redirect    302 to another host

Python's standard library only.
"""
import argparse
import base64
import hashlib
import json
import os
import re
import secrets
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PAGE = 3            # items a page, less than anybody asks for
lock = threading.Lock()
tokens = set()
vault = {}          # name -> versions, oldest first
deleted = set()
certificates = {}   # (vault, name) -> versions, oldest first
faults = {}         # vault -> lose, down, refuse
record = None
mode = "normal"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, document, headers=()):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def error(self, status, code, message):
        self.answer(status, {"error": {"code": code, "message": message}})

    def handle_any(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.text = self.rfile.read(length).decode()
        self.url = urlsplit(self.path)
        self.query = {k: v[0] for k, v in parse_qs(self.url.query).items()}
        if self.url.path.startswith("/control/"):
            return self.control(self.url.path[len("/control/"):])
        if mode != "normal":
            self.misbehave()
        with lock:
            record.write(json.dumps({
                "method": self.command, "path": self.path, "body": self.text,
                "headers": {k.lower(): v for k, v in self.headers.items()}}) + "\n")
            record.flush()
            if mode == "normal":
                self.route()

    def control(self, what):
        global mode
        if what == "revoke":
            tokens.clear()
        elif what.startswith("put/"):
            _, name, value = what.split("/")
            vault.setdefault(name, []).append({
                "value": value, "version": secrets.token_hex(16),
                "created": int(time.time())})
        elif what.split("/")[0] in ("lose", "down", "refuse", "up"):
            # Not in the middle of a request.
            with lock:
                faults[what.split("/")[1]] = what.split("/")[0]
        else:
            mode = what
        self.answer(200, {})

    def misbehave(self):
        self.close_connection = True
        if mode in ("stall", "drip"):
            if mode == "drip":
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
            end = time.monotonic() + 60
            while mode in ("stall", "drip") and time.monotonic() < end:
                time.sleep(0.05)
                if mode == "drip":
                    self.wfile.write(b" ")
        elif mode == "half":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"value": "hal')
        elif mode == "fail":
            self.error(503, "Busy", "Busy: " + self.headers.get("Authorization", "") + self.text)
        elif mode == "throttle":
            self.error(429, "Throttled", "Too many requests")
        elif mode == "garbage":
            self.send_response(200)
            self.send_header("Content-Length", "9")
            self.end_headers()
            self.wfile.write(b"<html>\xff\x00{")
        elif mode == "strange":
            self.answer(200, ["value", 1])
        elif mode == "huge":
            self.answer(200, {"value": "x" * 8000000})
        elif mode == "endless":
            self.answer(200, {
                "Name": "n", "SecretList": [{"Name": "n"}],
                "Versions": [{"VersionId": "v"}], "CertificateSummaryList": [],
                "value": [], "NextToken": "again",
                "nextLink": f"http://{self.headers['Host']}{self.path}"})
        elif mode == "redirect":
            self.answer(302, {}, [("Location", "http://192.0.2.1/")])

    do_GET = do_PUT = do_POST = do_DELETE = handle_any

    def route(self):
        path = self.url.path
        if path.endswith("/oauth2/v2.0/token"):
            self.login()
        elif path == "/metadata/identity/oauth2/token":
            self.identity()
        elif path.endswith("/tokenreviews"):
            self.review()
        elif path == "/container":
            self.container()
        elif path.startswith("/vaults/"):
            self.certificate(path.split("/")[2], path.split("/")[4:])
        elif path.startswith("/vault/secrets"):
            self.secret([p for p in path.split("/")[3:] if p])
        else:
            self.error(404, "NotFound", "no such thing")

    def give(self, seconds):
        token = "azure-token-" + secrets.token_hex(16)
        tokens.add(token)
        self.answer(200, {"token_type": "Bearer", "access_token": token,
                          "expires_in": seconds})

    def login(self):
        form = {k: v[0] for k, v in parse_qs(self.text).items()}
        if (form.get("grant_type") != "client_credentials"
                or form.get("scope") != "https://vault.azure.net/.default"
                or form.get("client_id") != "client"
                or form.get("client_secret") != "azure-client-secret"):
            self.answer(401, {"error": "invalid_client", "error_description":
                              "AADSTS7000215: Invalid client secret provided: "
                              + form.get("client_secret", "")})
        else:
            self.give(3599)

    def identity(self):
        if (self.headers.get("Metadata") != "true"
                or self.query.get("resource") != "https://vault.azure.net"
                or self.query.get("api-version") != "2018-02-01"):
            self.answer(400, {"error": "invalid_request"})
        else:
            self.give("86399")

    def review(self):
        review = json.loads(self.text)
        good = review["spec"]["token"].endswith(".c2lnbmF0dXJl")
        review["status"] = {"authenticated": good, "user": {
            "username": "system:serviceaccount:databases:postgres",
            "uid": "f0e1", "groups": ["system:serviceaccounts"]}} if good else {
            "authenticated": False}
        self.answer(201, review)

    def container(self):
        if self.headers.get("Authorization") != "container-token":
            self.error(401, "Unauthorized", "no")
            return
        self.answer(200, {
            "AccessKeyId": os.environ.get("CONTAINER_KEY", "container-key"),
            "SecretAccessKey": os.environ.get("CONTAINER_SECRET", "container-secret"),
            "Token": os.environ.get("CONTAINER_TOKEN", "container-session"),
            "Expiration": time.strftime("%Y-%m-%dT%H:%M:%SZ",
                                        time.gmtime(time.time() + 3600))})

    # ---- the vault ----

    def base(self):
        return "http://%s/vault" % self.headers["Host"]

    def bundle(self, name, v, value=False):
        document = {"id": "%s/secrets/%s/%s" % (self.base(), name, v["version"]),
                    "attributes": {"enabled": True, "created": v["created"],
                                   "updated": v["created"],
                                   "recoveryLevel": "Recoverable+Purgeable"}}
        for key in ("contentType", "tags"):
            if key in v:
                document[key] = v[key]
        if value:
            document["value"] = v["value"]
        return document

    def page(self, items):
        skip = int(self.query.get("$skiptoken", 0))
        size = min(PAGE, int(self.query.get("maxresults", 25)))
        more = skip + size < len(items)
        self.answer(200, {
            "value": items[skip:skip + size],
            "nextLink": "%s%s?api-version=7.4&$skiptoken=%d&maxresults=%d" % (
                self.base(), self.url.path[len("/vault"):], skip + size, size)
            if more else None})

    def admitted(self):
        token = self.headers.get("Authorization", "")
        if not token.startswith("Bearer ") or token[7:] not in tokens:
            self.send_response(401)
            self.send_header("WWW-Authenticate",
                             'Bearer authorization="https://login.microsoftonline.com/tenant", '
                             'resource="https://vault.azure.net"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False
        if self.query.get("api-version") != "7.4":
            self.error(400, "BadParameter", "api-version")
            return False
        return True

    def certificate(self, which, parts):
        if not self.admitted():
            return
        if faults.get(which) == "down":
            return self.error(503, "Busy", "Busy")
        name = parts[0]
        versions = certificates.setdefault((which, name), [])
        if self.command == "GET":
            if not versions:
                return self.error(404, "CertificateNotFound", "no such certificate")
            return self.answer(200, versions[-1])
        if faults.get(which) == "refuse":
            return self.error(400, "BadParameter", "Bad: " + self.text)
        request = json.loads(self.text)
        pkcs12 = request["policy"]["secret_props"]["contentType"] == "application/x-pkcs12"
        pem = request["value"].encode()
        if pkcs12:
            pem = subprocess.run(["openssl", "pkcs12", "-nodes", "-passin", "pass:"],
                                 input=base64.b64decode(request["value"]),
                                 capture_output=True, check=True).stdout
        blocks = re.findall(b"-----BEGIN CERTIFICATE-----(.*?)-----END", pem, re.S)
        if not blocks or b"PRIVATE KEY-----" not in pem:
            return self.error(400, "BadParameter", "The specified certificate is in an unexpected format: "
                              + self.text)
        keys = [subprocess.run(["openssl"] + c + ["-pubout"] * (c[0] == "pkey"), input=pem,
                               capture_output=True, check=True).stdout
                for c in (["pkey"], ["x509", "-noout", "-pubkey"])]
        if keys[0] != keys[1]:
            return self.error(400, "BadParameter", "the key does not match")
        der = base64.b64decode(b"".join(blocks[0].split()))
        version = secrets.token_hex(16)
        base = "http://%s/vaults/%s" % (self.headers["Host"], which)
        versions.append({
            "id": "%s/certificates/%s/%s" % (base, name, version),
            "kid": "%s/keys/%s/%s" % (base, name, version),
            "sid": "%s/secrets/%s/%s" % (base, name, version),
            "x5t": base64.urlsafe_b64encode(hashlib.sha1(der).digest()).decode().rstrip("="),
            "cer": base64.b64encode(der).decode(), "chain_length": len(blocks),
            "tags": request.get("tags", {}), "policy": request["policy"]})
        if faults.get(which) == "lose":
            self.close_connection = True
            return
        self.answer(200, versions[-1])

    def secret(self, parts):
        if not self.admitted():
            return
        if not parts:
            return self.page([
                {k: v for k, v in self.bundle(name, versions[-1]).items()
                 if k != "id"} | {"id": "%s/secrets/%s" % (self.base(), name)}
                for name, versions in sorted(vault.items())])
        name = parts[0]
        if not re.fullmatch("[0-9a-zA-Z-]{1,127}", name):
            return self.error(400, "BadParameter", "The name is invalid")
        if self.command == "PUT":
            if name in deleted:
                return self.error(409, "Conflict", "Secret %s is currently in a "
                                  "deleted but recoverable state" % name)
            request = json.loads(self.text)
            if not isinstance(request.get("value"), str):
                return self.error(400, "BadParameter", "value")
            if any(not isinstance(t, str) for t in request.get("tags", {}).values()):
                return self.error(400, "BadParameter", "tags")
            v = request | {"version": secrets.token_hex(16), "created": int(time.time())}
            vault.setdefault(name, []).append(v)
            return self.answer(200, self.bundle(name, v, True))
        versions = vault.get(name)
        if versions is None:
            return self.error(404, "SecretNotFound", "A secret with (name/id) "
                              "%s was not found in this key vault." % name)
        if self.command == "DELETE":
            deleted.add(name)
            del vault[name]
            return self.answer(200, self.bundle(name, versions[-1]))
        if parts[1:] == ["versions"]:
            return self.page([self.bundle(name, v) for v in versions])
        found = [v for v in versions if len(parts) == 1 or v["version"] == parts[1]]
        if not found:
            return self.error(404, "SecretNotFound", "no such version")
        return self.answer(200, self.bundle(name, found[-1], True))


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
    if options.port_file:
        with open(options.port_file + ".tmp", "w") as f:
            f.write(str(server.server_address[1]))
        os.rename(options.port_file + ".tmp", options.port_file)
    server.serve_forever()


main()
