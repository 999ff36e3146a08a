use prost::bytes::BufMut;
use prost::encoding::{DecodeContext, WireType};

use super::*;

/// A message that must not be built.
#[derive(Debug, Default, PartialEq)]
struct Never;

impl Message for Never {
    fn encode_raw(&self, _: &mut impl BufMut) {}

    fn merge_field(
        &mut self,
        tag: u32,
        _: WireType,
        _: &mut impl prost::bytes::Buf,
        _: DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        panic!("field {tag} was built")
    }

    fn encoded_len(&self) -> usize {
        0
    }

    fn clear(&mut self) {}
}

static ENTRY: [Field; 1] = [Field::list(1, 3)];
static NEVER: [Field; 2] = [Field { number: 2, most: 10, fields: &ENTRY }, Field::one(3, &ENTRY)];

impl Bounded for Never {
    fn fields() -> &'static [Field] {
        &NEVER
    }
}

fn refused(bytes: &[u8]) -> Refused {
    Never::decode_bounded(bytes).unwrap_err()
}

fn entry(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
    bytes.extend_from_slice(content);
    bytes
}

#[test]
fn what_is_too_much_is_never_built() {
    assert_eq!(refused(&entry(2, &[]).repeat(11)), Refused::TooMany { number: 2, most: 10 });
    // Of any kind, in the order in which they come, and over all messages of the same kind.
    assert_eq!(refused(&[2 << 3, 1].repeat(11)), Refused::TooMany { number: 2, most: 10 });
    let two = entry(1, &[]).repeat(2);
    let in_all = [entry(2, &two), entry(9, b"unknown"), entry(3, &two)].concat();
    assert_eq!(refused(&in_all), Refused::TooMany { number: 1, most: 3 });
    assert_eq!(refused(&entry(3, &two).repeat(2)), Refused::TooMany { number: 1, most: 3 });
}

#[test]
fn what_is_no_message_is_never_built() {
    let cases: [&[u8]; 7] = [
        &[0x12],
        &[0x12, 5, 0],
        &[0x80; 11],
        &[0x13, 0x14],
        &[0x0d, 0, 0, 0],
        &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        &[0xfa, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0],
    ];
    for case in cases {
        assert!(matches!(refused(case), Refused::Malformed(_)), "{case:x?}");
    }
}

#[test]
fn nesting_ends() {
    static SELF: [Field; 1] = [Field::one(1, &SELF)];
    let mut bytes = Vec::new();
    for depth in 0..=MOST_DEEP {
        let counted = Count::default().message(&bytes, &SELF, MOST_DEEP);
        assert_eq!(counted.is_ok(), depth < MOST_DEEP, "{depth}: {counted:?}");
        bytes = entry(1, &bytes);
    }
}

#[test]
#[should_panic(expected = "field 2 was built")]
fn what_is_within_bounds_is_built() {
    let _ = Never::decode_bounded(&entry(2, &[]).repeat(10));
}
