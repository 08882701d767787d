"""A receiver of pgstream_hooks in Python, by its standard library alone: keeps a copy of the tables that it hears of.

    WEBHOOK_SECRET=whsec_… python3 receiver.py 8000

POST takes webhooks; GET shows the rows."""

import base64, hashlib, hmac, json, os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = base64.b64decode(os.environ["WEBHOOK_SECRET"].removeprefix("whsec_"))


def genuine(headers, body):
    """Whether the request is signed by our key, and not an old one that somebody sends again."""
    try:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.digest(SECRET, signed, hashlib.sha256)).decode()
        fresh = abs(time.time() - int(headers["webhook-timestamp"])) < 300
        # While a key is changed there are two signatures.
        return fresh and any(
            hmac.compare_digest(part, "v1," + expected) for part in headers["webhook-signature"].split(" ")
        )
    except (TypeError, ValueError, AttributeError):
        return False


class Copy:
    """Rows by table and key. In earnest this is a database: write rows and last ids in one transaction."""

    def __init__(self):
        self.lock = threading.Lock()
        self.rows = {}
        self.last = {}  # id of the last event of each row, also of those that are gone
        self.emptied = {}  # id of the last truncate of each table

    def apply(self, event):
        """Applies an event, unless a newer one of its row was here before: ids sort in commit order."""
        data = event["data"]
        id, table = data["id"], (data["schema"], data["table"])
        if data["action"] == "truncate":
            if id <= self.emptied.get(table, ""):
                return
            self.emptied[table] = id
            for place in [place for place in self.rows if place[0] == table and self.last[place] < id]:
                del self.rows[place]
        elif data["action"] in ("insert", "update", "delete", "read") and data["key"] is not None:
            place = (table, json.dumps(data["key"]))
            if id <= max(self.last.get(place, ""), self.emptied.get(table, "")):
                return
            old = place
            if data["old_key"]:
                old = (table, json.dumps(data["old_key"]))
            before = self.rows.pop(old, {}) if self.last.get(old, "") < id else {}
            self.last[place] = id
            self.last[old] = max(id, self.last.get(old, ""))
            if data["action"] != "delete":
                # Large values that an update left alone are not in the record.
                kept = {name: before[name] for name in data["unchanged"] if name in before}
                self.rows[place] = kept | data["record"]
        else:
            return
        print(data["action"], data["table"], json.dumps(data["key"]), flush=True)


copy = Copy()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if not genuine(self.headers, body):
            return self.answer(401)
        events = json.loads(body)
        with copy.lock:
            for event in events if isinstance(events, list) else [events]:
                copy.apply(event)
        # Only now: what is answered with 2xx is not sent again.
        self.answer(204)

    def do_GET(self):
        with copy.lock:
            rows = json.dumps(list(copy.rows.values()))
        self.answer(200, rows.encode())

    def answer(self, status, body=b""):
        self.send_response(status)
        if status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
