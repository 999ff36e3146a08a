//! `docs/reference/protocol.md`: the frames and fields of both protocols between agents, from their `.proto`, and the limits from
//! the code that holds peers to them.

use std::fmt::Write as _;
use std::time::Duration;

use super::{golden, read};
use crate::enrol::{ALPN, invites, token};
use crate::federation::session::PROTOCOL_VERSION;
use crate::federation::{Timings, catalogue, convert, diagnose, manager};

const HEAD: &str = "\
# Protocol

What agents of two trust domains say to each other, from `proto/federation.proto` and `proto/enrol.proto`, and the limits from the
code (`UPDATE_GOLDEN=1 cargo test --lib reference::protocol` writes this page anew).

";

/// What stands above `message`, `enum` and fields in a `.proto`.
#[derive(Default)]
struct Reader {
    comment: Vec<String>,
    text: String,
    /// The blocks that are open, innermost last: the name to print, or `None` for a `oneof` and a service.
    open: Vec<String>,
}

/// The messages of a file, each as a table. The files are our own: one declaration on a line, comments above it.
fn tables(proto: &str) -> String {
    let mut reader = Reader::default();
    for line in proto.lines().map(str::trim) {
        reader.line(line);
    }
    assert!(reader.open.is_empty(), "a block of the .proto never ends: {:?}", reader.open);
    reader.text
}

impl Reader {
    fn line(&mut self, line: &str) {
        let declared = line.trim_end_matches(['{', ';', '}']).trim();
        let mut words = declared.split_whitespace();
        match (words.next(), words.next()) {
            (Some("//"), _) => self.comment.push(line.trim_start_matches("//").trim().to_owned()),
            (Some("syntax" | "package"), _) => self.comment.clear(),
            (Some(kind @ ("message" | "enum" | "service")), Some(name)) => self.begin(kind, name),
            (Some("oneof"), Some(name)) => self.open.push(name.to_owned()),
            (Some("rpc"), _) => {
                let comment = self.said();
                let _ = writeln!(self.text, "`{declared}`: {comment}");
            }
            (Some(_), Some(_)) => self.field(declared),
            _ if line == "}" => drop(self.open.pop()),
            _ => self.comment.clear(),
        }
    }

    fn said(&mut self) -> String {
        std::mem::take(&mut self.comment).join(" ").replace('|', "\\|")
    }

    fn begin(&mut self, kind: &str, name: &str) {
        let name = match self.open.last() {
            Some(outer) => format!("{outer}.{name}"),
            None => name.to_owned(),
        };
        let comment = self.said();
        let _ = write!(self.text, "\n### {name}\n\n");
        if !comment.is_empty() {
            let _ = write!(self.text, "{comment}\n\n");
        }
        let _ = match kind {
            "message" => write!(self.text, "| field | number | type | |\n|---|---|---|---|\n"),
            "enum" => write!(self.text, "| value | number | |\n|---|---|---|\n"),
            _ => Ok(()),
        };
        self.open.push(name);
    }

    /// `type name = number` or, of an enum, `NAME = number`.
    fn field(&mut self, declared: &str) {
        let (name, number) = declared.rsplit_once(" = ").unwrap_or_else(|| panic!("not a field: {declared}"));
        let comment = self.said();
        let _ = match name.rsplit_once(' ') {
            Some((kind, name)) => writeln!(self.text, "| `{name}` | {number} | {kind} | {comment} |"),
            None => writeln!(self.text, "| `{name}` | {number} | {comment} |"),
        };
    }
}

fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        whole if Duration::from_secs(whole) == duration && whole >= 3_600 && whole % 3_600 == 0 => {
            format!("{} h", whole / 3_600)
        }
        whole if Duration::from_secs(whole) == duration => format!("{whole} s"),
        _ => format!("{} ms", duration.as_millis()),
    }
}

fn bytes(count: usize) -> String {
    const KIB: usize = 1024;
    match count {
        whole if whole % (KIB * KIB) == 0 => format!("{} MiB", whole / KIB / KIB),
        whole if whole % KIB == 0 => format!("{} KiB", whole / KIB),
        other => format!("{other} bytes"),
    }
}

fn limits() -> Vec<(&'static str, String)> {
    let times = Timings::default();
    let session = times.session;
    vec![
        ("a frame", bytes(manager::MAX_FRAME)),
        (
            "frames of a peer",
            format!("{} a second, {} at once", session.frames_per_second, session.frames_burst),
        ),
        (
            "changes of a catalogue, of which more are followed together",
            format!("{} a second, {} at once", session.changes_per_second, session.changes_burst),
        ),
        (
            "connections from one address",
            format!("{} a second, {} at once", times.connections_per_second, times.connections_burst),
        ),
        ("TLS and gRPC, and then the Hello", format!("{} each", seconds(times.handshake))),
        ("heartbeats", format!("every {}", seconds(session.heartbeat))),
        ("silence, until the stream is ended", seconds(session.silence)),
        (
            "the pause before the next dial",
            format!(
                "random, below {} at first, doubled up to {}",
                seconds(times.backoff_min),
                seconds(times.backoff_max)
            ),
        ),
        (
            "how long the trust domain that sorts second leaves dialling to the first",
            seconds(times.other_side),
        ),
        ("services of a catalogue", catalogue::MAX_SERVICES.to_string()),
        ("a catalogue, and one service of it", both(catalogue::MAX_BYTES, catalogue::MAX_SERVICE_BYTES)),
        (
            "ports, gateways, endpoints of a service",
            format!("{}, {}, {}", convert::MAX_PORTS, convert::MAX_GATEWAYS, convert::MAX_ENDPOINTS),
        ),
        (
            "server IDs, client IDs of a service or port",
            format!("{}, {}", convert::MAX_SERVER_IDS, convert::MAX_CLIENTS),
        ),
        ("a SPIFFE ID", bytes(convert::MAX_SPIFFE_ID)),
        ("troubles of a report", convert::MAX_TROUBLES.to_string()),
        ("questions of a diagnosis", format!("one in {}", seconds(diagnose::ANSWER_EVERY))),
        ("checks of an answer to one", diagnose::MAX_CHECKS.to_string()),
    ]
}

fn both(one: usize, other: usize) -> String {
    format!("{}, {}", bytes(one), bytes(other))
}

fn enrolment_limits() -> Vec<(&'static str, String)> {
    vec![
        ("a token", bytes(token::MAX_TOKEN)),
        ("open invites", invites::MAX_OPEN.to_string()),
        ("wrong secrets, until an invite is gone", invites::TRIES.to_string()),
        (
            "how long an invite is open",
            format!("{}; at most {}", seconds(invites::DEFAULT_TTL), seconds(invites::MAX_TTL)),
        ),
    ]
}

fn table(limits: &[(&str, String)]) -> String {
    let rows = limits.iter().map(|(what, limit)| format!("| {what} | {limit} |\n"));
    format!("| limit | |\n|---|---|\n{}", rows.collect::<String>())
}

fn markdown() -> String {
    let mut text = HEAD.to_owned();
    let _ = write!(
        text,
        "\
## The exchange

One gRPC stream over HTTP/2 and TLS 1.3, ALPN `h2`, both sides with X509-SVIDs, verified with the bundle of exactly the other trust
domain and then against the SPIFFE IDs of `spec.agent.spiffeIDs`; no session is resumed. Either side may dial: the frames are the same
in both directions, and one stream carries both. Where both can, the trust domain that sorts first does.

This version speaks {PROTOCOL_VERSION}, and every one below it: each Hello names the sender's, and the lower of the two is spoken.
Fields and frames are only ever added, and what a receiver does not know it ignores, so that two trust domains upgrade when they
like.

A frame that breaks a limit ends the stream, with a Goodbye that says so; what was agreed before stays as it was. A service that does
not decode or breaks a limit of its own is refused by name, and harms no other.

{}
{}
## Inviting and joining

On the same port, by the ALPN `{}`, while an invite is open: one request, and one answer. Both are preceded by their length in four
bytes, big-endian. The joiner has verified the inviter's bundle by the fingerprint in the token, and then its chain and exact SPIFFE ID,
before it sends the secret.

{}
{}",
        table(&limits()),
        tables(&read("proto/federation.proto")),
        String::from_utf8_lossy(ALPN),
        table(&enrolment_limits()),
        tables(&read("proto/enrol.proto")),
    );
    text
}

#[test]
fn the_reference_is_the_protocol_that_is_spoken() {
    golden("docs/reference/protocol.md", &markdown());
}

#[test]
fn every_declaration_has_its_row() {
    let proto = "\
syntax = \"proto3\";
package p;

// Of the service.
service S {
  // What is called.
  rpc Call(stream A) returns (stream A);
}

// A message,
// on two lines.
message A {
  oneof body {
    B one = 1;
  }
  // Why | how.
  repeated bytes many = 2;

  enum Kind {
    NONE = 0;
    // some
    SOME = 1;
  }
  Kind kind = 3;
}
";
    let wanted = "
### S

Of the service.

`rpc Call(stream A) returns (stream A)`: What is called.

### A

A message, on two lines.

| field | number | type | |
|---|---|---|---|
| `one` | 1 | B |  |
| `many` | 2 | repeated bytes | Why \\| how. |

### A.Kind

| value | number | |
|---|---|---|
| `NONE` | 0 |  |
| `SOME` | 1 | some |
| `kind` | 3 | Kind |  |
";
    assert_eq!(tables(proto), wanted);
}
