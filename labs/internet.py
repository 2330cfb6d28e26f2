"""The world outside of a lab's host: a web server that says who asks, and a resolver that knows it as any name.

`python labs/internet.py ADDRESS` serves HTTP at port 80 and DNS at port 53 of the address, until it is killed.
"""

import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_HEAD_BYTES = 12
_IPV4_ADDRESS = b"\0\1\0\1"


class _WhoAsks(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = str(self.client_address[0]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        print(format % args, flush=True)


def _resolve(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.bind((address, 53))
        while True:
            query, who = asked.recvfrom(4096)
            print(f"asked: {query!r}", flush=True)
            asked.sendto(_answer(query, address), who)


def _answer(query: bytes, address: str) -> bytes:
    """One A record for whatever name is asked for, and nothing of any other kind."""
    end = query.index(b"\0", _HEAD_BYTES) + 5
    known = query[end - 4 : end] == _IPV4_ADDRESS
    record = b"\xc0\x0c" + _IPV4_ADDRESS + (60).to_bytes(4) + b"\0\4" + socket.inet_aton(address)
    head = query[:2] + b"\x81\x80\0\1" + int(known).to_bytes(2) + bytes(4)
    return head + query[_HEAD_BYTES:end] + (record if known else b"")


def main() -> None:
    address = sys.argv[1]
    threading.Thread(target=_resolve, args=(address,), daemon=True).start()
    with ThreadingHTTPServer((address, 80), _WhoAsks) as server:
        print("here I am", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
