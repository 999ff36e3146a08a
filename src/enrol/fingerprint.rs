//! A bundle's digest for people: short enough to read out, long enough that nobody finds another bundle with it.

use crate::model::BundleDigest;

/// How much of the digest is shown, in bytes.
const SHOWN: usize = 16;

/// The first 128 bits of a digest as groups of four hexadecimal digits, to be compared by voice.
#[must_use]
pub fn spoken(digest: &BundleDigest) -> String {
    let shown = digest.as_bytes().get(..SHOWN).unwrap_or_default();
    shown.chunks(2).map(hex::encode).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_eight_groups_of_four_digits() {
        let digest = BundleDigest::from_bytes(&[0xab; 32]).unwrap();
        assert_eq!(spoken(&digest), ["abab"; 8].join("-"));
    }
}
