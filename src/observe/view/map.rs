//! The federation as a picture: our trust domain, each peer's, and both directions of trust between the two.
//!
//! It is drawn twice, for wide windows and for narrow ones; the style sheet shows one of them. Beside each line stands what it
//! says, so that neither colour nor form is needed to read it.

use super::words::{Tone, short};

/// What is drawn of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) trust_domain: String,
    /// The name of its section on the page.
    pub(super) anchor: String,
    pub(super) ready: Tone,
    /// Whether we hold its bundle: we trust it.
    pub(super) trusts: Tone,
    /// Whether it holds ours: it trusts us.
    pub(super) trusted: Tone,
    /// Why, in a reason's words.
    pub(super) trusts_why: String,
    pub(super) trusted_why: String,
}

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) own: Node,
    pub(super) nodes: Vec<Node>,
    pub(super) lines: Vec<Line>,
}

/// A trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) width: u32,
    pub(super) height: u32,
    /// As much of the name as there is room for, and all of it.
    pub(super) name: String,
    pub(super) title: String,
    pub(super) note: String,
    pub(super) tone: Tone,
    pub(super) anchor: String,
}

impl Node {
    pub(super) fn text_x(&self) -> u32 {
        self.x + 14
    }

    pub(super) fn name_y(&self) -> u32 {
        self.y + self.height / 2 - 4
    }

    pub(super) fn note_y(&self) -> u32 {
        self.y + self.height / 2 + 16
    }
}

/// A direction of trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// An SVG path, from who trusts to who is trusted.
    pub(super) path: String,
    pub(super) tone: Tone,
    pub(super) label: String,
    pub(super) x: u32,
    pub(super) y: u32,
}

/// Height of the box of a trust domain, and of a row of the picture.
const BOX: u32 = 58;
const ROW: u32 = 108;

/// For windows with room: ours on the left, peers on the right.
pub(super) fn wide(own: &str, note: &str, pairs: &[Pair]) -> Map {
    const WIDTH: u32 = 960;
    const OWN: u32 = 230;
    const PEER: u32 = 270;
    let rows = u32::try_from(pairs.len()).unwrap_or(u32::MAX).clamp(1, 10_000);
    let height = rows * ROW + 12;
    // Each line begins and ends at a place of its own.
    let own_height = (rows * 40).max(BOX);
    let own = Node {
        x: 8,
        y: (height - own_height) / 2,
        width: OWN,
        height: own_height,
        name: short(own, 23),
        title: own.to_owned(),
        note: note.to_owned(),
        tone: Tone::Good,
        anchor: "own".to_owned(),
    };
    let (from_x, to_x) = (own.x + own.width, WIDTH - PEER - 8);
    let mut nodes = Vec::new();
    let mut lines = Vec::new();
    for (row, pair) in (0u32..).zip(pairs) {
        let middle = 6 + row * ROW + ROW / 2;
        nodes.push(peer(pair, (to_x, middle - BOX / 2), PEER, 27));
        let bend = from_x + 130;
        let curve = |own_y: u32, y: u32, outward: bool| {
            let (near, far) = (from_x + 4, to_x - 4);
            if outward {
                format!("M{near} {own_y} C{bend} {own_y} {near} {y} {bend} {y} L{far} {y}")
            } else {
                format!("M{far} {y} L{bend} {y} C{near} {y} {bend} {own_y} {near} {own_y}")
            }
        };
        let own_middle = own.y + (2 * row + 1) * own.height / (2 * rows);
        let (above, below) = (middle - 15, middle + 15);
        lines.push(Line {
            path: curve(own_middle - 9, above, true),
            tone: pair.trusts,
            label: short(&format!("{} we hold its bundle: {}", pair.trusts.sign(), pair.trusts_why), 41),
            x: bend + 12,
            y: above - 7,
        });
        lines.push(Line {
            path: curve(own_middle + 9, below, false),
            tone: pair.trusted,
            label: short(&format!("{} it holds ours: {}", pair.trusted.sign(), pair.trusted_why), 41),
            x: bend + 12,
            y: below + 18,
        });
    }
    Map { width: WIDTH, height, own, nodes, lines }
}

/// For narrow windows: ours on top, peers below it.
pub(super) fn narrow(own: &str, note: &str, pairs: &[Pair]) -> Map {
    const WIDTH: u32 = 360;
    const ROW: u32 = 150;
    let own = Node {
        x: 4,
        y: 4,
        width: WIDTH - 8,
        height: BOX,
        name: short(own, 34),
        title: own.to_owned(),
        note: note.to_owned(),
        tone: Tone::Good,
        anchor: "own".to_owned(),
    };
    let mut nodes = Vec::new();
    let mut lines = Vec::new();
    let mut y = own.y + BOX;
    for pair in pairs.iter().take(10_000) {
        let trunk = own.y + BOX + 2;
        let (x, out, back) = (52, y + 30, y + 54);
        nodes.push(peer(pair, (x, y + 66), WIDTH - 56, 30));
        let middle = y + 66 + BOX / 2;
        lines.push(Line {
            path: format!("M14 {trunk} L14 {} L{} {}", middle - 10, x - 4, middle - 10),
            tone: pair.trusts,
            label: short(&format!("{} we hold its bundle: {}", pair.trusts.sign(), pair.trusts_why), 40),
            x,
            y: out,
        });
        lines.push(Line {
            path: format!("M{} {} L30 {} L30 {trunk}", x - 4, middle + 10, middle + 10),
            tone: pair.trusted,
            label: short(&format!("{} it holds ours: {}", pair.trusted.sign(), pair.trusted_why), 40),
            x,
            y: back,
        });
        y += ROW;
    }
    Map { width: WIDTH, height: y + 4, own, nodes, lines }
}

fn peer(pair: &Pair, (x, y): (u32, u32), width: u32, letters: usize) -> Node {
    let note = match pair.ready {
        Tone::Good => "✓ ready",
        Tone::Bad => "✗ not ready",
        Tone::Unknown => "? not known",
    };
    Node {
        x,
        y,
        width,
        height: BOX,
        name: short(&pair.trust_domain, letters),
        title: pair.trust_domain.clone(),
        note: note.to_owned(),
        tone: pair.ready,
        anchor: pair.anchor.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, trusted: Tone) -> Pair {
        Pair {
            trust_domain: name.to_owned(),
            anchor: "peer-1".to_owned(),
            ready: trusted,
            trusts: Tone::Good,
            trusted,
            trusts_why: "Distributed".to_owned(),
            trusted_why: "PeerHoldsStaleBundle".to_owned(),
        }
    }

    #[test]
    fn each_peer_has_a_box_and_two_lines_inside_the_picture() {
        let long = "x".repeat(255);
        let pairs = [pair("west.example", Tone::Good), pair(&long, Tone::Bad), pair("n", Tone::Unknown)];
        for map in [wide("east.example", "", &pairs), narrow("east.example", "", &pairs)] {
            assert_eq!((map.nodes.len(), map.lines.len()), (3, 6));
            for node in map.nodes.iter().chain([&map.own]) {
                assert!(node.x + node.width <= map.width && node.y + node.height <= map.height, "{node:?}");
                assert!(node.name.chars().count() < 40, "{node:?}");
            }
            let tops: Vec<u32> = map.nodes.iter().map(|node| node.y).collect();
            assert!(tops.is_sorted_by(|a, b| a + BOX < *b), "{tops:?}");
        }
        assert_eq!(wide("east.example", "", &[]).nodes, []);
    }
}
