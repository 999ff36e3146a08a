# Has connections that are marked, wherever they go, come to a port of this network namespace: as Istio's own init container
# does with all but the proxy's. By nf_tables' netlink messages (linux/netfilter/nf_tables.h), since no program for it need be
# there. Arguments: the mark, and the port.
import socket, struct, sys
def attribute(kind, data):
    text = struct.pack('=HH', len(data) + 4, kind) + data
    return text + b'\0' * (-len(text) % 4)
def nested(kind, *parts):
    return attribute(kind | 0x8000, b''.join(parts))
def text(kind, value):
    return attribute(kind, value.encode() + b'\0')
def value(data):
    return attribute(1, data)
def number(kind, value):
    return attribute(kind, struct.pack('>i', value))
def expression(name, *parts):
    return nested(1, text(1, name), nested(2, *parts))
def message(kind, flags, body, sequence, family=socket.AF_INET, subsystem=0):
    whole = struct.pack('>BBH', family, 0, subsystem) + body
    return struct.pack('=IHHII', len(whole) + 16, kind, flags, sequence, 0) + whole

MARK, PORT = int(sys.argv[1]), int(sys.argv[2])
rule = nested(4,
    expression('meta', number(1, 1), number(2, 16)),
    expression('cmp', number(1, 1), number(2, 0), nested(3, value(b'\x06'))),
    expression('meta', number(1, 1), number(2, 3)),
    expression('cmp', number(1, 1), number(2, 0), nested(3, value(struct.pack('=I', MARK)))),
    expression('immediate', number(1, 1), nested(2, value(struct.pack('>H', PORT)))),
    expression('redir', number(1, 1)))
CREATE = 0x1 | 0x4 | 0x400
wanted = [
    (0xA00, CREATE, text(1, 'redirect')),
    (0xA03, CREATE, text(1, 'redirect') + text(3, 'output')
        + nested(4, number(1, 3), number(2, -100)) + text(7, 'nat')),
    (0xA06, CREATE | 0x800, text(1, 'redirect') + text(2, 'output') + rule),
]
batch = message(0x10, 1, b'', 1, 0, 10)
for sequence, (kind, flags, body) in enumerate(wanted, 2):
    batch += message(kind, flags, body, sequence)
batch += message(0x11, 1, b'', len(wanted) + 2, 0, 10)
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
netlink.bind((0, 0))
netlink.settimeout(5)
netlink.send(batch)
answered = 0
while answered < len(wanted):
    data = netlink.recv(65536)
    while data:
        length, kind, _, sequence, _ = struct.unpack('=IHHII', data[:16])
        error = struct.unpack('=i', data[16:20])[0]
        if kind == 2 and error:
            sys.exit('netfilter refuses part %d: error %d' % (sequence, -error))
        answered += 1
        data = data[(length + 3) & ~3:]
