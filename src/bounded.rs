//! Messages from others are counted on the wire before anything is built of them. An entry that repeats takes two bytes there, and
//! fifty times as much in memory: without this, a frame of empty entries costs a hundred of its kind.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf as _;
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

/// How deep messages may be nested; what is known nests three deep.
const MOST_DEEP: usize = 16;

/// A field of a message that repeats, or that has such fields in it. Other fields take in memory about what they take on the wire.
#[derive(Debug)]
pub struct Field {
    pub number: u32,
    /// How often it may be there in a whole message. Fields that share a table of fields share their numbers.
    pub most: usize,
    /// Those in it.
    pub fields: &'static [Self],
}

impl Field {
    /// A list of entries that have no lists.
    #[must_use]
    pub const fn list(number: u32, most: usize) -> Self {
        Self { number, most, fields: &[] }
    }

    /// One message. That it is there again merges both, and costs nothing more.
    #[must_use]
    pub const fn one(number: u32, fields: &'static [Self]) -> Self {
        Self { number, most: usize::MAX, fields }
    }
}

/// A message whose lists are bounded.
pub trait Bounded: Message + Default {
    /// Where the lists are.
    fn fields() -> &'static [Field];

    /// Decodes it, unless it holds more than it may.
    ///
    /// # Errors
    /// [`Refused`]; nothing of it has been built then that a bound is about.
    fn decode_bounded(bytes: &[u8]) -> Result<Self, Refused> {
        Count::default().message(bytes, Self::fields(), MOST_DEEP)?;
        Self::decode(bytes).map_err(|error| Refused::Malformed(error.to_string()))
    }
}

/// Why bytes are not made a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("field {number} is there more than {most} times in one message")]
    TooMany { number: u32, most: usize },
    #[error("no message: {0}")]
    Malformed(String),
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooMany { .. } => Self::resource_exhausted(refused.to_string()),
            Refused::Malformed(_) => Self::internal(refused.to_string()),
        }
    }
}

/// How often each field was met.
#[derive(Default)]
struct Count(Vec<(*const Field, usize)>);

impl Count {
    fn message(&mut self, mut rest: &[u8], fields: &'static [Field], deep: usize) -> Result<(), Refused> {
        let deeper = deep.checked_sub(1).ok_or_else(|| malformed("it is nested too deep"))?;
        while !rest.is_empty() {
            let key = varint(&mut rest)?;
            let number = u32::try_from(key >> 3).map_err(|_| malformed("a field has no number"))?;
            let length = match key & 7 {
                0 => {
                    varint(&mut rest)?;
                    0
                }
                1 => 8,
                2 => usize::try_from(varint(&mut rest)?).unwrap_or(usize::MAX),
                5 => 4,
                _ => return Err(malformed("a field is of no kind that is used")),
            };
            let (value, after) = rest.split_at_checked(length).ok_or_else(|| malformed("it ends within"))?;
            rest = after;
            if let Some(field) = fields.iter().find(|field| field.number == number) {
                self.add(field)?;
                if !field.fields.is_empty() && key & 7 == 2 {
                    self.message(value, field.fields, deeper)?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, field: &'static Field) -> Result<(), Refused> {
        if field.most == usize::MAX {
            return Ok(());
        }
        let at = self.0.iter().position(|(known, _)| std::ptr::eq(*known, field));
        let at = at.unwrap_or_else(|| {
            self.0.push((field, 0));
            self.0.len() - 1
        });
        if let Some((_, met)) = self.0.get_mut(at) {
            *met += 1;
            if *met > field.most {
                return Err(Refused::TooMany { number: field.number, most: field.most });
            }
        }
        Ok(())
    }
}

fn malformed(why: &str) -> Refused {
    Refused::Malformed(why.to_owned())
}

/// A number of at most 64 bits, seven a byte, the lowest first.
fn varint(rest: &mut &[u8]) -> Result<u64, Refused> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().ok_or_else(|| malformed("it ends within a number"))?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(malformed("a number has more than 64 bits"))
}

/// Encodes as prost does, and decodes what is bounded.
#[derive(Debug)]
pub struct Codec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for Codec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E: Message + Send + 'static, D: Bounded + Send + 'static> tonic::codec::Codec for Codec<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = ProstEncoder<E>;
    type Decoder = BoundedDecoder<D>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder::default()
    }
}

/// Decodes what is bounded.
#[derive(Debug)]
pub struct BoundedDecoder<D>(PhantomData<D>);

impl<D> Default for BoundedDecoder<D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<D: Bounded> Decoder for BoundedDecoder<D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let whole = buffer.copy_to_bytes(buffer.remaining());
        Ok(Some(D::decode_bounded(&whole)?))
    }
}

#[cfg(test)]
#[path = "bounded_tests.rs"]
mod tests;
