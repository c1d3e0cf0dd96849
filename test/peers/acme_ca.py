#!/usr/bin/env python3
"""A certificate authority that speaks ACME, and misbehaves when told to.

    acme_ca.py DIR PORT CONTROL_PORT [plain]

By default it is what RFC 8555 and RFC 9773 (renewal information) describe:
signatures, nonces and URLs of requests are checked, http-01 is really looked
for (at the port http_port of 127.0.0.1, whatever the name), certificates are
issued by an intermediate of a root. It serves https (http with "plain") on
127.0.0.1:PORT with a certificate for localhost that tls.pem trusts, and
commands, http, on CONTROL_PORT. DIR gets root.pem, tls.pem and, once all
listens, ready. SIGTERM ends it. Needs the package cryptography.

The path begins with a tag that a test chooses: https://localhost:PORT/TAG/directory.
Settings, faults and counters are of a tag; accounts of one tag are none in another.

POST /set {"tag": TAG, SETTING: VALUE, ...}     tag "" or none: for all tags
    lifetime        of certificates, seconds (90 days)
    validate        look for what http-01 promises (true); dns-01 is believed
    http_port       where (80)
    validate_ms     so long does an authority take to look
    patience_s      so long does it look again before it says no (0)
    issue_ms        so long to issue: until then orders are "processing"
    poll_after      Retry-After of what is not ready yet (none)
    latency_ms      of every answer
    nonce_reject    how many of a hundred nonces are refused (0)
    limit           new orders within limit_s that an account may make (300)
    limit_s         (10800)
    orders_list     whether accounts have a list of their orders (true)
    reuse_orders    whether the same names get the pending order there is (false)
    reuse_authz     for so many seconds a name stays proven (0)
    ari             whether there is renewal information (false)
    ari_retry       its Retry-After (21600)
POST /clock {"offset": SECONDS}                 ahead of the machine's clock
POST /ari {"names": [...], "start": T, "end": T}    the window of what was issued for
    these names so far
POST /fault {"tag": TAG, "step": STEP, "do": WHAT, "times": N, "skip": N, ...}
    times 0: for ever. Steps: directory nonce account order-new order authz
    challenge finalize certificate key-change revoke ari orders. See do_*
    below for what can be done; several faults of a step are done one after
    the other, the next when the times of the one before are over.
POST /clear {"tag": TAG}                        ends the faults of a tag
GET /stats      {"tags": {TAG: {counter: n}}, "connections", "canary"}
GET /orders?TAG     what was ordered: names, account, time, state, replaces
GET /faults?TAG     how often each was done
"""
import asyncio
import base64
import datetime
import email.utils
import faulthandler
import functools
import hashlib
import ipaddress
import json
import os
import random
import signal
import socket
import ssl
import struct
import sys
import time
from collections import Counter, defaultdict, deque

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

directory, port, control_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
plain = "plain" in sys.argv[4:]
base = f"{'http' if plain else 'https'}://localhost:{port}"
UTC = datetime.timezone.utc
PROBLEM = "urn:ietf:params:acme:error:"
MAX_REQUEST = 1 << 20

DEFAULTS = dict(lifetime=90 * 86400, validate=True, http_port=80, validate_ms=0, patience_s=0,
                issue_ms=0, poll_after=None, latency_ms=0, nonce_reject=0,
                limit=300, limit_s=10800, orders_list=True, reuse_orders=False,
                reuse_authz=0, ari=False, ari_retry=21600)
offset = 0.0
settings = defaultdict(dict)
counters = defaultdict(Counter)
faults = []
windows = {}        # names -> (start, end), and since when
connections = canary = 0


def now():
    return time.time() + offset


def setting(tag, name):
    return settings[tag].get(name, settings[""].get(name, DEFAULTS[name]))


def rfc3339(t):
    return datetime.datetime.fromtimestamp(int(t), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    if not isinstance(text, str) or "=" in text:
        raise Refused("malformed", "not base64url")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Refused(Exception):
    """Becomes a problem document."""

    def __init__(self, kind, detail, status=None, headers=None, **more):
        self.kind = kind
        self.document = {"type": PROBLEM + kind, "detail": detail, **more}
        self.status = status or {"unauthorized": 403, "rateLimited": 429,
                                 "orderNotReady": 403, "alreadyReplaced": 409,
                                 "serverInternal": 500}.get(kind, 400)
        self.headers = headers or {}


class Answer:
    def __init__(self, status=200, document=None, headers=None, body=b"", kind=None):
        self.status = status
        self.headers = headers or {}
        self.document = document
        self.body = body
        self.kind = kind or ("application/json" if document is not None else None)

    def bytes(self):
        if self.document is not None:
            return json.dumps(self.document, separators=(",", ":")).encode()
        return self.body


#
# Certificates.
#

def name_of(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def signed(subject, public, issuer, issuer_key, start, end, *, ca, names=(), client=False, extra=()):
    """A certificate; issuer None: by itself."""
    builder = (x509.CertificateBuilder()
               .subject_name(name_of(subject) if subject else x509.Name([]))
               .issuer_name(issuer.subject if issuer else name_of(subject))
               .public_key(public).serial_number(x509.random_serial_number())
               .not_valid_before(datetime.datetime.fromtimestamp(start, UTC))
               .not_valid_after(datetime.datetime.fromtimestamp(end, UTC))
               .add_extension(x509.BasicConstraints(ca, None), True)
               .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), True)
               .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
               .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([
            x509.IPAddress(ipaddress.ip_address(n)) if is_address(n) else x509.DNSName(n)
            for n in names]), not subject)
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH]), False)
    for extension in extra:
        builder = builder.add_extension(extension, False)
    return builder.sign(issuer_key, hashes.SHA256())


def is_address(text):
    try:
        ipaddress.ip_address(text)
        return True
    except ValueError:
        return False


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption())


LONG_AGO, FAR = 946684800, 4102444800       # 2000, 2100: whatever the clock says
root_key = ec.generate_private_key(ec.SECP256R1())
root = signed("mlint test root", root_key.public_key(), None, root_key, LONG_AGO, FAR, ca=True)
issuer_key = ec.generate_private_key(ec.SECP256R1())
issuer = signed("mlint test issuer", issuer_key.public_key(), root, root_key, LONG_AGO, FAR, ca=True)
issuer_ski = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
issued = {}         # ari id -> order


def serial_bytes(number):
    return number.to_bytes(number.bit_length() // 8 + 1, "big")


def issue(order, **how):
    """The leaf for an order; how says what is to be wrong with it."""
    start = now() - 3600 + how.get("later", 0)
    csr = order.csr
    public = ec.generate_private_key(ec.SECP256R1()).public_key() if how.get("other_key") else csr.public_key()
    names = how.get("names", order.names)
    return signed("", public, issuer, how.get("issuer_key", issuer_key), start,
                  start + 3600 + how.get("lifetime", setting(order.tag, "lifetime")),
                  ca=how.get("ca", False), names=names, client=how.get("client", False))


#
# What an authority remembers.
#

class Account:
    def __init__(self, tag, url, jwk, contact):
        self.tag, self.url, self.jwk, self.contact = tag, url, jwk, contact
        self.status = "valid"
        self.orders = []
        self.times = deque()
        self.proven = {}            # identifier -> until


class Authz:
    def __init__(self, order, name, n):
        self.order = order
        self.wildcard = name.startswith("*.")
        self.name = name[2:] if self.wildcard else name
        self.id = f"{order.id}-{n}"
        self.status = "pending"
        self.error = None
        self.expires = now() + 7 * 86400
        self.challenges = [(kind, b64(os.urandom(24))) for kind in
                           (["dns-01"] if self.wildcard else
                            ["http-01"] if is_address(name) else ["http-01", "dns-01"])]
        self.answered = None

    def document(self):
        kind = "ip" if is_address(self.name) else "dns"
        out = {"status": self.status, "expires": rfc3339(self.expires),
               "identifier": {"type": kind, "value": self.name},
               "challenges": [self.challenge(i) for i in range(len(self.challenges))
                              if self.answered in (None, i)]}
        if self.wildcard:
            out["wildcard"] = True
        return out

    def challenge(self, i):
        kind, token = self.challenges[i]
        out = {"type": kind, "url": f"{base}/{self.order.tag}/challenge/{self.id}-{i}", "token": token,
               "status": self.status if i == self.answered and self.status != "pending"
               else "processing" if i == self.answered else "pending"}
        if self.status == "valid" and i == self.answered:
            out["validated"] = rfc3339(now())
        if self.error and i == self.answered:
            out["error"] = self.error
        return out


class Order:
    def __init__(self, account, id, names, replaces):
        self.account, self.id, self.names, self.replaces = account, id, names, replaces
        self.tag = account.tag
        self.created = now()
        self.status = "pending"
        self.expires = now() + 7 * 86400
        self.authzs = [Authz(self, n, i) for i, n in enumerate(names)]
        self.error = self.csr = self.leaf = self.ready_at = None
        self.requests = 0

    def settle(self):
        states = {a.status for a in self.authzs}
        if self.status == "pending" and states == {"valid"}:
            self.status = "ready"
        elif self.status == "pending" and "invalid" in states:
            self.status = "invalid"
            self.error = next(a.error for a in self.authzs if a.error)
        if self.status == "processing" and time.monotonic() >= self.ready_at:
            self.leaf = issue(self)
            self.issued_at = now()
            self.status = "valid"
            ari_id = b64(issuer_ski) + "." + b64(serial_bytes(self.leaf.serial_number))
            issued[ari_id] = self
            counters[self.tag]["issued"] += 1

    def document(self):
        self.settle()
        out = {"status": self.status, "expires": rfc3339(self.expires),
               "identifiers": [identifier(n) for n in self.names],
               "authorizations": [f"{base}/{self.tag}/authz/{a.id}" for a in self.authzs],
               "finalize": f"{base}/{self.tag}/finalize/{self.id}"}
        if self.replaces:
            out["replaces"] = self.replaces
        if self.error:
            out["error"] = self.error
        if self.leaf:
            out["certificate"] = f"{base}/{self.tag}/certificate/{self.id}"
        return out


def identifier(name):
    return {"type": "ip" if is_address(name) else "dns", "value": name}


accounts = {}       # url -> Account
by_key = {}         # (tag, thumbprint) -> Account
orders = {}         # id -> Order
authzs = {}         # id -> Authz
nonces = set()
revoked = {}
replaced = {}       # ari id -> order that took its place


def nonce(tag):
    if random.random() * 100 < setting(tag, "nonce_reject"):
        return b64(os.urandom(16))
    n = b64(os.urandom(16))
    nonces.add(n)
    if len(nonces) > 500000:
        nonces.clear()
    return n


#
# JSON Web Signatures.
#

def public_key(jwk):
    try:
        if jwk["kty"] == "EC":
            curve = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1}[jwk["crv"]]()
            return ec.EllipticCurvePublicNumbers(int.from_bytes(unb64(jwk["x"]), "big"),
                                                 int.from_bytes(unb64(jwk["y"]), "big"), curve).public_key()
        if jwk["kty"] == "RSA":
            return rsa.RSAPublicNumbers(int.from_bytes(unb64(jwk["e"]), "big"),
                                        int.from_bytes(unb64(jwk["n"]), "big")).public_key()
    except (KeyError, TypeError, ValueError):
        pass
    raise Refused("badPublicKey", "no key that is known here")


def thumbprint(jwk):
    members = {"EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n")}[jwk["kty"]]
    return b64(hashlib.sha256(json.dumps({m: jwk[m] for m in members}, sort_keys=True,
                                         separators=(",", ":")).encode()).digest())


keys = {}           # thumbprint -> key: making one costs more than a check


def verify(jwk, alg, message, signature):
    key = keys.get(thumbprint(jwk))
    if key is None:
        key = keys[thumbprint(jwk)] = public_key(jwk)
    try:
        if isinstance(key, rsa.RSAPublicKey):
            if alg != "RS256":
                raise Refused("badSignatureAlgorithm", "RS256 it is", algorithms=["RS256", "ES256", "ES384"])
            key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
            return
        size, algorithm, digest = (32, "ES256", hashes.SHA256()) if key.curve.key_size == 256 else \
            (48, "ES384", hashes.SHA384())
        if alg != algorithm:
            raise Refused("badSignatureAlgorithm", algorithm, algorithms=["RS256", "ES256", "ES384"])
        if len(signature) != 2 * size:
            raise Refused("malformed", "the signature's size is wrong")
        key.verify(utils.encode_dss_signature(int.from_bytes(signature[:size], "big"),
                                              int.from_bytes(signature[size:], "big")),
                   message, ec.ECDSA(digest))
    except InvalidSignature:
        raise Refused("malformed", "the signature does not verify") from None


def read_jws(body):
    try:
        jws = json.loads(body)
        if set(jws) != {"protected", "payload", "signature"}:
            raise ValueError
        header = json.loads(unb64(jws["protected"]))
        payload = unb64(jws["payload"])
        return header, payload, (jws["protected"] + "." + jws["payload"]).encode(), unb64(jws["signature"])
    except (ValueError, TypeError, KeyError):
        raise Refused("malformed", "no flattened JWS") from None


class Request:
    def __init__(self, method, path, headers, body):
        self.method, self.path, self.headers, self.body = method, path, headers, body
        parts = path.lstrip("/").split("/")
        self.tag, self.what = parts[0], "/".join(parts[1:2])
        self.id = "/".join(parts[2:])
        self.step = {"directory": "directory", "nonce": "nonce", "new-account": "account", "account": "account",
                     "new-order": "order-new", "order": "order", "authz": "authz", "challenge": "challenge",
                     "finalize": "finalize", "certificate": "certificate", "key-change": "key-change",
                     "revoke": "revoke", "ari": "ari", "orders": "orders"}.get(self.what, "unknown")

    def authenticate(self):
        """Sets account (or jwk) and payload."""
        if self.method != "POST":
            raise Refused("malformed", "POST", 405)
        if self.headers.get("content-type") != "application/jose+json":
            raise Refused("malformed", "Content-Type is application/jose+json", 415)
        header, self.payload, message, signature = read_jws(self.body)
        if "jwk" in header and "kid" in header or "crit" in header:
            raise Refused("malformed", "jwk or kid")
        if header.get("url") != base + self.path:
            raise Refused("unauthorized", f"signed for {header.get('url')}")
        self.account = None
        if "kid" in header:
            self.account = accounts.get(header["kid"])
            if self.account is None or self.account.tag != self.tag:
                raise Refused("accountDoesNotExist", "no such account")
            self.jwk = self.account.jwk
        else:
            self.jwk = header.get("jwk")
            if not isinstance(self.jwk, dict) or "d" in self.jwk:
                raise Refused("malformed", "no jwk")
        verify(self.jwk, header.get("alg"), message, signature)
        if header.get("nonce") not in nonces:
            counters[self.tag]["nonces refused"] += 1
            raise Refused("badNonce", "that nonce is not, or no longer, good")
        nonces.discard(header["nonce"])
        if self.account and self.account.status != "valid":
            raise Refused("unauthorized", "the account is deactivated", 401)
        if (self.what == "new-account") == ("kid" in header) and self.what != "revoke":
            raise Refused("malformed", "jwk for new-account, kid for all else")

    def document(self):
        try:
            document = json.loads(self.payload)
            if not isinstance(document, dict):
                raise ValueError
            return document
        except ValueError:
            raise Refused("malformed", "the payload is no object") from None

    def post_as_get(self):
        if self.payload != b"":
            raise Refused("malformed", "POST-as-GET has an empty payload")


#
# The protocol.
#

def serve_directory(r):
    document = {"newNonce": f"{base}/{r.tag}/nonce", "newAccount": f"{base}/{r.tag}/new-account",
                "newOrder": f"{base}/{r.tag}/new-order", "revokeCert": f"{base}/{r.tag}/revoke",
                "keyChange": f"{base}/{r.tag}/key-change",
                "meta": {"termsOfService": f"{base}/terms", "website": base, "caaIdentities": ["localhost"]}}
    if setting(r.tag, "ari"):
        document["renewalInfo"] = f"{base}/{r.tag}/ari"
    document[b64(os.urandom(8))] = "https://community.letsencrypt.org/t/adding-random-entries-to-the-directory/33417"
    return Answer(200, document)


def serve_nonce(r):
    return Answer(200 if r.method == "HEAD" else 204, headers={"Cache-Control": "no-store"})


def account_document(a):
    document = {"status": a.status, "contact": a.contact}
    if setting(a.tag, "orders_list"):
        document["orders"] = f"{base}/{a.tag}/orders/{a.url.rsplit('/', 1)[1]}"
    return document


def serve_new_account(r):
    document = r.document()
    key = (r.tag, thumbprint(r.jwk))
    account = by_key.get(key)
    if account:
        return Answer(200, account_document(account), {"Location": account.url})
    if document.get("onlyReturnExisting"):
        raise Refused("accountDoesNotExist", "no account has this key")
    if not document.get("termsOfServiceAgreed"):
        raise Refused("userActionRequired", "agree to the terms", 403)
    for contact in document.get("contact", []):
        if not contact.startswith("mailto:"):
            raise Refused("unsupportedContact", contact)
    account = Account(r.tag, f"{base}/{r.tag}/account/{len(accounts) + 1}", r.jwk, document.get("contact", []))
    accounts[account.url] = by_key[key] = account
    counters[r.tag]["accounts"] += 1
    return Answer(201, account_document(account), {"Location": account.url})


def serve_account(r):
    if r.payload:
        document = r.document()
        if document.get("status") == "deactivated":
            r.account.status = "deactivated"
        if "contact" in document:
            r.account.contact = document["contact"]
    return Answer(200, account_document(r.account))


def serve_orders(r):
    """A list by pages, of which none is long."""
    r.post_as_get()
    start = int(r.id.partition("?")[2] or 0)
    mine = [o for o in r.account.orders if o.status not in ("invalid", "valid")][::-1]
    answer = Answer(200, {"orders": [f"{base}/{r.tag}/order/{o.id}" for o in mine[start:start + 10]]})
    if len(mine) > start + 10:
        answer.headers["Link"] = f"<{base}/{r.tag}/orders/{r.id.partition('?')[0]}?{start + 10}>;rel=\"next\""
    return answer


def check_replaces(r, replaces, names):
    if replaces is None:
        return
    old = issued.get(replaces)
    if old is None or old.account is not r.account:
        raise Refused("malformed", "replaces what this account was not issued")
    if not set(old.names) & set(names):
        raise Refused("malformed", "replaces what has none of these names")
    by = replaced.get(replaces)
    if by is not None and by.status != "invalid":
        raise Refused("alreadyReplaced", "another order replaces it")


def serve_new_order(r):
    document = r.document()
    tag = r.tag
    names = []
    for i in document.get("identifiers") or []:
        if i.get("type") not in ("dns", "ip"):
            raise Refused("unsupportedIdentifier", str(i))
        value = i.get("value")
        if not isinstance(value, str) or value != value.lower() or is_address(value) != (i["type"] == "ip"):
            raise Refused("rejectedIdentifier", str(i))
        names.append(value)
    if not names or len(names) > 100 or len(set(names)) != len(names):
        raise Refused("malformed", "from one to a hundred names, each once")
    replaces = document.get("replaces")
    check_replaces(r, replaces, names)
    if setting(tag, "reuse_orders"):
        for old in r.account.orders:
            if set(old.names) == set(names) and old.status in ("pending", "ready"):
                return Answer(200, old.document(), {"Location": f"{base}/{tag}/order/{old.id}"})
    times = r.account.times
    while times and times[0] <= now() - setting(tag, "limit_s"):
        times.popleft()
    if len(times) >= setting(tag, "limit"):
        counters[tag]["limit exceeded"] += 1
        wait = int(times[0] + setting(tag, "limit_s") - now()) + 1
        raise Refused("rateLimited", f"more than {setting(tag, 'limit')} new orders", headers={"Retry-After": wait})
    times.append(now())
    if any(set(o.names) == set(names) and o.status in ("pending", "ready", "processing")
           for o in r.account.orders[-400:]):
        counters[tag]["duplicate orders"] += 1
    order = Order(r.account, len(orders) + 1, names, replaces)
    orders[str(order.id)] = order
    r.account.orders.append(order)
    if replaces:
        replaced[replaces] = order
    for a in order.authzs:
        authzs[a.id] = a
        if r.account.proven.get(a.name, 0) > now() and not a.wildcard:
            a.status, a.answered = "valid", 0
    counters[tag]["ordered"] += 1
    return Answer(201, order.document(), {"Location": f"{base}/{tag}/order/{order.id}"})


def own(r, order):
    if order is None or order.tag != r.tag:
        raise Refused("malformed", "there is no such thing", 404)
    if order.account is not r.account:
        raise Refused("unauthorized", "another account's")
    return order


def poll_after(tag):
    after = setting(tag, "poll_after")
    return {} if after is None else {"Retry-After": after}


def serve_order(r):
    r.post_as_get()
    order = own(r, orders.get(r.id))
    document = order.document()
    return Answer(200, document, poll_after(r.tag) if order.status == "processing" else {})


def serve_authz(r):
    a = authzs.get(r.id)
    own(r, a and a.order)
    if r.payload:
        if r.document().get("status") == "deactivated" and a.status in ("pending", "valid"):
            a.status = "deactivated"
            a.order.status = "invalid"
            counters[r.tag]["authz deactivated"] += 1
    return Answer(200, a.document(), poll_after(r.tag) if a.status == "pending" else {})


def serve_challenge(r):
    authz_id, _, i = r.id.rpartition("-")
    a = authzs.get(authz_id)
    own(r, a and a.order)
    i = int(i)
    up = {"Link": f"<{base}/{r.tag}/authz/{a.id}>;rel=\"up\""}
    if r.payload:
        r.document()
        if a.answered is None and a.status == "pending":
            a.answered = i
            kind, token = a.challenges[i]
            if kind == "http-01" and setting(r.tag, "validate"):
                asyncio.ensure_future(look(a, token, thumbprint(r.jwk)))
            elif setting(r.tag, "validate_ms"):
                asyncio.get_running_loop().call_later(setting(r.tag, "validate_ms") / 1000, prove, a, None)
            else:
                prove(a, None)
    return Answer(200, a.challenge(i), up)


def prove(a, error):
    if a.status != "pending":
        return
    a.status = "invalid" if error else "valid"
    a.error = error
    if not error:
        a.order.account.proven[a.name] = now() + setting(a.order.tag, "reuse_authz")
    a.order.settle()


async def look(a, token, print_):
    """http-01, as far as it matters here."""
    tag = a.order.tag
    await asyncio.sleep(setting(tag, "validate_ms") / 1000)
    end = time.monotonic() + setting(tag, "patience_s")
    while True:
        error = await look_once(tag, a.name, token, f"{token}.{print_}".encode())
        if not error or time.monotonic() >= end:
            break
        await asyncio.sleep(0.1)
    counters[tag]["looked at"] += 1
    if error:
        counters[tag]["not found"] += 1
    prove(a, error)


async def look_once(tag, name, token, expected):
    """None, or the problem with it."""
    port = setting(tag, "http_port")
    writer = None
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 5)
        host = f"[{name}]" if ":" in name else name
        writer.write(f"GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: {host}\r\n"
                     "User-Agent: mlint-test-ca\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.endswith(expected):
            more = await asyncio.wait_for(reader.read(65536), 5)
            if not more:
                break
            answer += more
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " in head.split(b"\r\n")[0] and body.strip() == expected:
            return None
        return {"type": PROBLEM + "unauthorized", "status": 403,
                "detail": f"found {body[:60].decode('latin-1')!r}, {head[:15].decode('latin-1')!r}"}
    except (OSError, asyncio.TimeoutError) as e:
        return {"type": PROBLEM + "connection", "detail": f"127.0.0.1:{port}: {e}", "status": 400}
    finally:
        if writer:
            writer.close()


def serve_finalize(r):
    order = own(r, orders.get(r.id))
    order.settle()
    document = r.document()
    if order.status != "ready":
        raise Refused("orderNotReady", f"the order is {order.status}")
    try:
        csr = x509.load_der_x509_csr(unb64(document.get("csr")))
        if not csr.is_signature_valid:
            raise ValueError
        san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [str(n.value) for n in san]
    except (ValueError, TypeError, x509.ExtensionNotFound):
        raise Refused("badCSR", "no signing request") from None
    if sorted(names) != sorted(order.names):
        raise Refused("badCSR", f"names {names} are not those ordered")
    if thumbprint(r.jwk) in keys and keys[thumbprint(r.jwk)].public_numbers() == csr.public_key().public_numbers():
        raise Refused("badCSR", "the account's key")
    order.csr = csr
    order.status = "processing"
    order.ready_at = time.monotonic() + setting(r.tag, "issue_ms") / 1000
    headers = {"Location": f"{base}/{r.tag}/order/{order.id}"}
    document = order.document()
    if order.status == "processing":
        headers.update(poll_after(r.tag))
    return Answer(200, document, headers)


def serve_certificate(r):
    r.post_as_get()
    order = own(r, orders.get(r.id))
    if not order.leaf:
        raise Refused("malformed", "not issued", 404)
    answer = Answer(200, None, body=pem(order.leaf) + pem(issuer), kind="application/pem-certificate-chain")
    answer.order = order
    return answer


def serve_key_change(r):
    header, payload, message, signature = read_jws(r.payload)
    inner = json.loads(payload)
    if "nonce" in header or header.get("url") != base + r.path:
        raise Refused("malformed", "the inner JWS")
    jwk = header.get("jwk") or {}
    verify(jwk, header.get("alg"), message, signature)
    if inner.get("account") != r.account.url or thumbprint(inner.get("oldKey")) != thumbprint(r.account.jwk):
        raise Refused("malformed", "account, oldKey")
    key = (r.tag, thumbprint(jwk))
    if key in by_key:
        raise Refused("conflict", "another account has this key", 409, {"Location": by_key[key].url})
    del by_key[(r.tag, thumbprint(r.account.jwk))]
    r.account.jwk = jwk
    by_key[key] = r.account
    return Answer(200, account_document(r.account))


def serve_revoke(r):
    document = r.document()
    leaf = x509.load_der_x509_certificate(unb64(document.get("certificate")))
    ari_id = b64(issuer_ski) + "." + b64(serial_bytes(leaf.serial_number))
    order = issued.get(ari_id)
    if order is None:
        raise Refused("malformed", "not issued here", 404)
    if r.account and order.account is not r.account:
        raise Refused("unauthorized", "another account's")
    if document.get("reason", 0) not in (0, 1, 3, 4, 5):
        raise Refused("badRevocationReason", str(document["reason"]))
    if ari_id in revoked:
        raise Refused("alreadyRevoked", "it is")
    revoked[ari_id] = document.get("reason", 0)
    counters[r.tag]["revoked"] += 1
    return Answer(200)


def serve_ari(r):
    if not setting(r.tag, "ari"):
        raise Refused("malformed", "no renewal information", 404)
    order = issued.get(r.id)
    if order is None:
        raise Refused("malformed", "not issued here", 404)
    start = order.leaf.not_valid_before_utc.timestamp()
    life = order.leaf.not_valid_after_utc.timestamp() - start
    *window, since = windows.get(frozenset(order.names), (0, 0, 0))
    if order.issued_at > since:
        window = (start + life * 0.60, start + life * 0.63)
    return Answer(200, {"suggestedWindow": {"start": rfc3339(window[0]), "end": rfc3339(window[1])},
                        "explanationURL": f"{base}/why"}, {"Retry-After": setting(r.tag, "ari_retry")})


PUBLIC = {"directory": serve_directory, "nonce": serve_nonce, "ari": serve_ari}
SIGNED = {"new-account": serve_new_account, "account": serve_account, "new-order": serve_new_order,
          "order": serve_order, "authz": serve_authz, "challenge": serve_challenge, "finalize": serve_finalize,
          "certificate": serve_certificate, "key-change": serve_key_change, "revoke": serve_revoke,
          "orders": serve_orders}


def respond(r):
    counters[r.tag][r.what] += 1
    if not r.headers.get("user-agent"):
        counters[r.tag]["no user-agent"] += 1
    try:
        if r.what in PUBLIC:
            if r.method == "POST":
                raise Refused("malformed", "GET", 405)
            answer = PUBLIC[r.what](r)
        elif r.what in SIGNED:
            r.authenticate()
            answer = SIGNED[r.what](r)
        else:
            raise Refused("malformed", "there is nothing here", 404)
    except Refused as e:
        counters[r.tag]["problem " + e.kind] += 1
        answer = Answer(e.status, {**e.document, "status": e.status}, dict(e.headers), kind="application/problem+json")
    except Exception as e:
        counters[r.tag]["bugs"] += 1
        print(r.path, repr(e), flush=True)
        answer = Answer(500, {"type": PROBLEM + "serverInternal", "detail": repr(e)}, kind="application/problem+json")
    if r.what not in ("directory", "ari"):
        answer.headers["Replay-Nonce"] = nonce(r.tag)
        answer.headers["Link"] = ", ".join(filter(None, [
            answer.headers.get("Link"), f"<{base}/{r.tag}/directory>;rel=\"index\""]))
    return answer


#
# Misbehaviour. do_X(fault, request) returns an Answer in place of the right one,
# None for none at all; with "after": true the request has had its effect before.
# Those of EDITS get the right answer and spoil it.
#

PROBLEM_TYPES = """accountDoesNotExist alreadyReplaced alreadyRevoked autoRenewalCanceled
autoRenewalExpired autoRenewalCancellationInvalid autoRenewalRevocationNotSupported badCSR
badNonce badPublicKey badRevocationReason badSignatureAlgorithm caa compound connection
conflict dns externalAccountRequired incorrectResponse invalidContact invalidProfile
malformed onionCAARequired orderNotReady rateLimited rejectedIdentifier serverInternal tls
unauthorized unknownDelegation unsupportedContact unsupportedIdentifier
userActionRequired""".split()


def do_problem(f, r):
    """kind, status, detail, subproblems, headers"""
    refused = Refused(f["kind"], f.get("detail", "as told"), f.get("status"))
    document = {**refused.document, "status": refused.status, **f.get("more", {})}
    if f.get("subproblems"):
        document["subproblems"] = [
            {"type": PROBLEM + kind, "detail": f"{kind} of {i}.example", "identifier": identifier(f"{i}.example")}
            for i, kind in enumerate(f["subproblems"])]
    return Answer(refused.status, document, {"Replay-Nonce": nonce(r.tag), **f.get("headers", {})},
                  kind="application/problem+json")


def do_answer(f, r):
    """status, headers, body, kind: this, whatever was asked"""
    return Answer(f.get("status", 200), None, {"Replay-Nonce": nonce(r.tag), **f.get("headers", {})},
                  f.get("body", "").encode(), f.get("kind"))


def do_html(f, r):
    return Answer(f.get("status", 200), None, {"Replay-Nonce": nonce(r.tag)},
                  b"<html><body><h1>It works!</h1></body></html>", "text/html")


def do_deep(f, r):
    """JSON nested so deep that who recurses falls"""
    n = f.get("depth", 100000)
    return Answer(f.get("status", 200), None, {"Replay-Nonce": nonce(r.tag)},
                  b'{"status":' * n + b"1" + b"}" * n, "application/json")


def do_wide(f, r):
    """megabytes of keys"""
    return Answer(f.get("status", 200), None, {"Replay-Nonce": nonce(r.tag)}, wide(f.get("keys", 300000)),
                  "application/json")


@functools.cache
def wide(keys):
    return b"{" + b",".join(b'"k%d":%d' % (i, i) for i in range(keys)) + b"}"


def do_list(f, r):
    """an order with very many authorizations, each its own URL"""
    answer = f["_right"]
    many = [f"{base}/{r.tag}/authz/none-{i}" for i in range(f.get("n", 5000))]
    answer.document["authorizations"] = many
    return answer


def do_huge(f, r):
    """a body of so many bytes of JSON"""
    return Answer(f.get("status", 200), None, {"Replay-Nonce": nonce(r.tag)},
                  b'{"status":"valid","x":"' + b"x" * f.get("bytes", 50 << 20) + b'"}', "application/json")


def do_endless(f, r):
    answer = Answer(200, None, {"Replay-Nonce": nonce(r.tag)}, kind="application/json")
    answer.endless = True
    return answer


def do_headers(f, r):
    """so many bytes of header lines before the right answer"""
    answer = f["_right"]
    for i in range(f.get("bytes", 1 << 20) // 1000):
        answer.headers[f"X-{i}"] = "x" * 990
    return answer


def do_drip(f, r):
    """the right answer, a byte at a time"""
    answer = f["_right"]
    answer.drip_ms = f.get("ms", 1000)
    return answer


def do_reset(f, r):
    return None


def do_hang(f, r):
    answer = Answer()
    answer.hang = True
    return answer


def do_redirect(f, r):
    return Answer(f.get("status", 302), None, {
        "Replay-Nonce": nonce(r.tag), "Location": f.get("to", f"http://127.0.0.1:{canary_port}{r.path}")})


def do_foreign(f, r):
    """the right answer with all URLs at another host"""
    answer = f["_right"]
    other = f.get("to", f"{'http' if plain else 'https'}://127.0.0.1:{canary_port}")
    answer.body = answer.bytes().replace(base.encode(), other.encode())
    answer.document = None
    if "Location" in answer.headers:
        answer.headers["Location"] = answer.headers["Location"].replace(base, other)
    return answer


def do_truncated(f, r):
    """half of the JSON, as if it were all"""
    answer = f["_right"]
    body = answer.bytes()
    answer.document, answer.body = None, body[:len(body) // 2]
    return answer


def do_half(f, r):
    """half of what Content-Length says, then the end"""
    answer = f["_right"]
    answer.half = True
    return answer


def do_header(f, r):
    """headers that are set; null: taken away"""
    answer = f["_right"]
    for name, value in f["headers"].items():
        if value is None:
            answer.headers.pop(name, None)
        else:
            answer.headers[name] = value
    return answer


def do_kind(f, r):
    answer = f["_right"]
    answer.kind = f.get("kind")
    return answer


def do_status(f, r):
    answer = f["_right"]
    answer.status = f["status"]
    return answer


def do_edit(f, r):
    """members of the document that are set; null: taken away"""
    answer = f["_right"]
    if answer.document is None or answer.status >= 400:
        return answer
    for name, value in f["members"].items():
        if value is None:
            answer.document.pop(name, None)
        else:
            answer.document[name] = value
    return answer


used_nonce = b64(os.urandom(16))


def do_old_nonce(f, r):
    """the right answer with a nonce that was used before"""
    answer = f["_right"]
    answer.headers["Replay-Nonce"] = used_nonce
    return answer


def do_chain(f, r):
    """what is delivered as the certificate: which"""
    order = f["_right"].order
    up = pem(issuer)
    which = f["which"]
    body = {
        "empty": lambda: b"",
        "html": lambda: b"<html>Certificate ready</html>",
        "names": lambda: pem(issue(order, names=["elsewhere.example"])) + up,
        "more-names": lambda: pem(issue(order, names=order.names + ["elsewhere.example"])) + up,
        "fewer-names": lambda: pem(issue(order, names=order.names[:-1] or ["x.example"])) + up,
        "key": lambda: pem(issue(order, other_key=True)) + up,
        "expired": lambda: pem(issue(order, later=-3 * 86400, lifetime=86400)) + up,
        "future": lambda: pem(issue(order, later=3 * 86400)) + up,
        "signature": lambda: pem(issue(order, issuer_key=root_key)) + up,
        "ca": lambda: pem(issue(order, ca=True)) + up,
        "client": lambda: pem(issue(order, client=True)) + up,
        "issuer-only": lambda: up,
        "stranger": lambda: pem(order.leaf) + up + pem(stranger()),
        "long": lambda: pem(order.leaf) + up * (1 + (1 << 20) // len(up)),
        "many": lambda: pem(order.leaf) + b"".join(pem(c) for c in ladder(30)),
        "loop": lambda: pem(order.leaf) + up + b"".join(pem(c) for c in circle()),
        "der": lambda: order.leaf.public_bytes(serialization.Encoding.DER),
        "cut": lambda: pem(order.leaf)[:300],
        "garbage": lambda: b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(os.urandom(500)) +
                           b"\n-----END CERTIFICATE-----\n",
        "nul": lambda: pem(order.leaf)[:200] + b"\0" + pem(order.leaf)[200:] + up,
        "key-inside": lambda: key_pem(root_key) + pem(order.leaf) + up,
        # These are right.
        "reversed": lambda: up + pem(order.leaf),
        "with-root": lambda: pem(order.leaf) + up + pem(root),
        "text": lambda: b"Subject: what openssl x509 -text adds\r\n\r\n" +
                        (pem(order.leaf) + b"\n \n" + up).replace(b"\n", b"\r\n"),
    }[which]()
    return Answer(200, None, f["_right"].headers, body, "application/pem-certificate-chain")


def stranger():
    key = ec.generate_private_key(ec.SECP256R1())
    return signed("stranger", key.public_key(), None, key, LONG_AGO, FAR, ca=True)


def ladder(n):
    """intermediates, each by the next"""
    parent, parent_key, out = issuer, issuer_key, []
    for i in range(n):
        key = ec.generate_private_key(ec.SECP256R1())
        parent = signed(f"rung {i}", key.public_key(), parent, parent_key, LONG_AGO, FAR, ca=True)
        parent_key = key
        out.append(parent)
    return out


def circle():
    """two that have signed each other"""
    a, b = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    first = signed("a", a.public_key(), None, a, LONG_AGO, FAR, ca=True)
    second = signed("b", b.public_key(), first, a, LONG_AGO, FAR, ca=True)
    return [signed("a", a.public_key(), second, b, LONG_AGO, FAR, ca=True), second]


DOINGS = {name[3:].replace("_", "-"): f for name, f in list(globals().items()) if name.startswith("do_")}
SPOILING = {"list", "headers", "drip", "foreign", "truncated", "half", "header", "kind", "status", "edit",
            "old-nonce", "chain"}


def fault_for(r):
    for f in faults:
        if f.get("tag", r.tag) != r.tag or f["step"] != r.step or f.get("method", r.method) != r.method:
            continue
        if f.get("skip", 0) > 0:
            f["skip"] -= 1
            return None
        if f.get("times", 1) and f["done"] >= f.get("times", 1):
            continue
        f["done"] += 1
        return f
    return None


def misbehave(r):
    f = fault_for(r)
    if f is None:
        return respond(r)
    counters[r.tag]["faults"] += 1
    doing = DOINGS[f["do"]]
    if f["do"] in SPOILING:
        right = respond(r)
        # A request that failed by itself (a nonce, say) is not what was meant.
        if right.status >= 400:
            f["done"] -= 1
            return right
        return doing({**f, "_right": right}, r)
    if f.get("after"):
        if respond(r).status >= 400:
            f["done"] -= 1
    else:
        counters[r.tag][r.what] += 1
    return doing(f, r)


#
# HTTP.
#

REASON = {200: "OK", 201: "Created", 204: "No Content"}


async def read_request(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    method, path, _ = lines[0].split(" ", 2)
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    length = int(headers.get("content-length", 0))
    if length > MAX_REQUEST:
        raise ValueError("too much")
    return Request(method, path, headers, await reader.readexactly(length) if length else b"")


def head_of(answer, length):
    headers = {"Date": email.utils.formatdate(now(), usegmt=True), **answer.headers}
    if answer.kind:
        headers["Content-Type"] = answer.kind
    if length is None:
        headers["Transfer-Encoding"] = "chunked"
    else:
        headers["Content-Length"] = length
    return (f"HTTP/1.1 {answer.status} {REASON.get(answer.status, 'Whatever')}\r\n" +
            "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n").encode("latin-1", "replace")


def abort(writer):
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def send(writer, r, answer):
    """True: the connection goes on."""
    if answer is None:
        abort(writer)
        return False
    if getattr(answer, "hang", False):
        await asyncio.sleep(3600)
    if getattr(answer, "endless", False):
        writer.write(head_of(answer, None))
        chunk = b"10000\r\n" + b"{\"a\":[1," * 8192 + b"\r\n"
        # Whoever has not had enough by then has it for ever. drain() need not
        # give way to others.
        for _ in range(2000):
            if writer.is_closing():
                break
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0)
            counters[r.tag]["endless KiB"] += 64
        return False
    body = answer.bytes()
    head = head_of(answer, len(body))
    if r.method == "HEAD":
        body = b""
    if getattr(answer, "half", False):
        writer.write(head + body[:len(body) // 2])
        await writer.drain()
        return False
    if getattr(answer, "drip_ms", 0):
        for byte in head + body:
            if writer.is_closing():
                return False
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(answer.drip_ms / 1000)
        return True
    writer.write(head + body)
    await writer.drain()
    return True


async def serve(reader, writer):
    global connections
    connections += 1
    try:
        while True:
            r = await read_request(reader)
            answer = misbehave(r)
            if setting(r.tag, "latency_ms"):
                await asyncio.sleep(setting(r.tag, "latency_ms") / 1000)
            if not await send(writer, r, answer):
                break
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def serve_canary(reader, writer):
    global canary
    canary += 1
    writer.close()


def command(r):
    global offset
    path, _, query = r.path.partition("?")
    document = json.loads(r.body) if r.body else {}
    tag = document.get("tag", "")
    if path == "/set":
        document.pop("tag", None)
        unknown = set(document) - set(DEFAULTS)
        if unknown:
            raise ValueError(f"no such setting: {unknown}")
        settings[tag].update(document)
    elif path == "/clock":
        offset = document["offset"]
    elif path == "/ari":
        windows[frozenset(document["names"])] = (document["start"], document["end"], now())
    elif path == "/fault":
        if document["do"] not in DOINGS:
            raise ValueError("cannot do that")
        faults.append({**document, "done": 0})
    elif path == "/clear":
        faults[:] = [f for f in faults if f.get("tag", "") != tag]
    elif path == "/stats":
        return {"tags": {t: dict(c) for t, c in counters.items()}, "connections": connections, "canary": canary,
                "revoked": list(revoked.values())}
    elif path == "/orders":
        return [{"id": o.id, "names": o.names, "account": o.account.url, "at": o.created, "state": o.status,
                 "replaces": o.replaces, "serial": "%x" % o.leaf.serial_number if o.leaf else None}
                for o in orders.values() if o.tag == query]
    elif path == "/faults":
        return [f for f in faults if f.get("tag", "") == query]
    elif path == "/problem-types":
        return PROBLEM_TYPES
    else:
        raise ValueError(path)
    return {}


async def serve_control(reader, writer):
    try:
        while True:
            r = await read_request(reader)
            try:
                answer = Answer(200, command(r))
            except (ValueError, KeyError, TypeError) as e:
                answer = Answer(400, {"error": repr(e)})
            await send(writer, r, answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def tls():
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = signed("localhost", key.public_key(), root, root_key, LONG_AGO, FAR, ca=False,
                         names=["localhost", "127.0.0.1"])
    with open(f"{directory}/server.pem", "wb") as f:
        os.fchmod(f.fileno(), 0o600)
        f.write(key_pem(key) + pem(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{directory}/server.pem")
    return context


async def main():
    global canary_port
    faulthandler.register(signal.SIGUSR1)       # where it is, to the log
    for name in ("root.pem", "tls.pem"):
        with open(f"{directory}/{name}", "wb") as f:
            f.write(pem(root))
    context = None if plain else tls()
    await asyncio.start_server(serve, "127.0.0.1", port, ssl=context, limit=1 << 20, backlog=1024)
    await asyncio.start_server(serve_control, "127.0.0.1", control_port, limit=1 << 20)
    other = await asyncio.start_server(serve_canary, "127.0.0.1", 0)
    canary_port = other.sockets[0].getsockname()[1]
    with open(f"{directory}/ready", "w") as f:
        f.write("ready\n")
    stop = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set_result, None)
    await stop


asyncio.run(main())
