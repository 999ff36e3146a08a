#!/usr/bin/env python3
"""A client of proxyless gRPC (xds:///NAME) on gRPC's C core, by grpcio from pinned wheels.

    grpc_client.py TARGET

Speaks on its standard input and output as `tools/grpc` does: each line `call` (on the channel that it has) or `fresh` (on one of its
own), each answer as JSON.
"""

import json
import sys

import tools

sys.path.insert(0, str(tools.folder_of("grpcio")))
try:
    import grpc
    import grpc.experimental
except ModuleNotFoundError:
    sys.exit("grpcio is not there: run `make tools`")

PATIENCE = 5
# HealthCheckResponse{status: SERVING}
SERVING = b"\x08\x01"


def dial(target):
    plain = grpc.experimental.insecure_channel_credentials()
    # A connection that is kept for later channels would prove nothing of today.
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(target, grpc.xds_channel_credentials(plain), options=options)


def call(channel):
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    try:
        answer, done = check.with_call(b"", timeout=PATIENCE)
    except grpc.RpcError as error:
        return {"error": f"{error.code().name}: {error.details()}"}
    trailer = dict(done.trailing_metadata() or ())
    status = "SERVING" if answer == SERVING else answer.hex()
    # The library shows nothing of the server's certificate.
    return {"status": status, "caller": trailer.get("caller", ""), "certificate": trailer.get("certificate", "")}


def main():
    target = sys.argv[1]
    channel = dial(target)
    for line in sys.stdin:
        if line.strip() == "fresh":
            with dial(target) as own:
                said = call(own)
        else:
            said = call(channel)
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
