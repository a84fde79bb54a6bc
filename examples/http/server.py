"""Counts the words of texts, for Tidegate: python3 server.py PORT, with the pipeline's secret in SECRET."""

import collections
import hashlib
import hmac
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# More than one while the secret changes.
SECRETS = {"default": os.environ["SECRET"].encode()}
MAX_AGE_S = 300
# Answers by batch: the same batch may be posted again, when its worker died before it had stored the answer.
REMEMBERED = 10_000
answers = collections.OrderedDict()
lock = threading.Lock()


def count_words(payload):
    for text in payload:
        if not isinstance(text, str):
            return 422, {"error": f"not a text: {text!r}"}
    rows = [{"text": text, "words": len(text.split())} for text in payload]
    return 200, {"rows": rows, "statistics": {"texts": len(rows)}}


def is_genuine(headers, body):
    secret = SECRETS.get(headers.get("x-tidegate-signature-key"))
    timestamp = headers.get("x-tidegate-timestamp", "")
    if secret is None or not timestamp.isdigit() or abs(time.time() - int(timestamp)) > MAX_AGE_S:
        return False
    expected = "v1=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, headers.get("x-tidegate-signature", ""))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # Connections are kept,
    disable_nagle_algorithm = True  # and answers sent at once.

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if not is_genuine(self.headers, body):
            return self.answer(401, {"error": "bad signature"})
        batch = self.headers["idempotency-key"]
        with lock:
            known = answers.get(batch)
        if known is None:
            known = count_words(json.loads(body)["payload"])
            with lock:
                answers[batch] = known
                if len(answers) > REMEMBERED:
                    answers.popitem(last=False)
        self.answer(*known)

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print(f"listening on port {server.server_port}", flush=True)
server.serve_forever()
