#!/usr/bin/env python3
"""Asks a DNS server, as a client that is not ours (dnspython).

Each line of standard input: {"server": "IP", "port": N, "questions": [{"name": ..., "type": ..., "tcp": true, "edns": N}, ...]},
`tcp` and `edns` (the size of a datagram) where they are wanted. Each line of standard output: a list with what each was answered, or
{"error": ...}.
"""

import json
import sys

import tools

sys.path.insert(0, str(tools.folder_of("dnspython") / "dnspython.whl"))
try:
    import dns.exception
    import dns.flags
    import dns.message
    import dns.query
    import dns.rcode
except ModuleNotFoundError:
    sys.exit("dnspython is not there: run `make tools`")

TIMEOUT = 10


def records(section):
    """Each record of a section: name, TTL, type and data."""
    return sorted(line for rrset in section for line in rrset.to_text().split("\n"))


def ask(server, port, question):
    edns = question.get("edns")
    query = dns.message.make_query(question["name"], question["type"], use_edns=edns is not None, payload=edns)
    send = dns.query.tcp if question.get("tcp") else dns.query.udp
    try:
        answer = send(query, server, timeout=TIMEOUT, port=port)
    except (dns.exception.DNSException, OSError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "code": dns.rcode.to_text(answer.rcode()),
        "flags": dns.flags.to_text(answer.flags).split(),
        "answers": records(answer.answer),
        "authorities": records(answer.authority),
        "additionals": records(answer.additional),
        "edns": answer.payload if answer.edns >= 0 else None,
        "size": len(answer.to_wire()),
    }


def main():
    for line in sys.stdin:
        wanted = json.loads(line)
        answers = [ask(wanted["server"], wanted["port"], question) for question in wanted["questions"]]
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
