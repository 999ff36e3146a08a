#!/usr/bin/env python3
"""curl in a pod whose connections its sidecar takes: a request for a host goes where the sidecar has a door for it."""

import http.client
import os
import pathlib
import sys
import urllib.parse

pod = os.environ["ENTENTE_CONTROL"].removesuffix(".sock")
url = urllib.parse.urlsplit(sys.argv[-1])
door = pathlib.Path(f"{pod}.{url.hostname}.door")
if not door.is_file():
    sys.exit(f"curl: (6) Could not resolve host: {url.hostname}")
connection = http.client.HTTPConnection(door.read_text(encoding="ascii"), timeout=10)
try:
    connection.request("GET", url.path or "/", headers={"Host": url.netloc})
    answer = connection.getresponse()
    body = answer.read().decode()
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"curl: (56) {error!r}")
if answer.status >= 400:
    sys.exit(f"curl: (22) The requested URL returned error: {answer.status}")
print(body, end="")
