//! `hstore` from its stored form (contrib/hstore/hstore.h), in the looks of its own cast to json. The cast
//! itself is not called in decoding: whoever may create a cast decides what it runs.

const NEW_VERSION: u32 = 0x8000_0000;
const COUNT: u32 = 0x0FFF_FFFF;
const NULL: u32 = 0x4000_0000;
const POSITION: u32 = 0x3FFF_FFFF;

/// A key and its value, null if none.
pub type Pair<'a> = (&'a [u8], Option<&'a [u8]>);

/// The pairs of the hstore whose varlena payload is `stored`, in stored order; `None` if the bytes are no
/// hstore, or one that PostgreSQL 8.4 or older wrote.
pub fn pairs(stored: &[u8]) -> Option<Vec<Pair<'_>>> {
    let (size, rest) = word(stored)?;
    if size & NEW_VERSION == 0 {
        return None;
    }
    let count = (size & COUNT) as usize;
    let (mut entries, strings) = rest.split_at_checked(count.checked_mul(8)?)?;
    let mut start = 0;
    let mut next = || {
        let (entry, others) = word(entries)?;
        entries = others;
        let end = (entry & POSITION) as usize;
        let text = strings.get(start..end)?;
        start = end;
        Some((text, entry & NULL != 0))
    };
    (0..count)
        .map(|_| {
            let (key, _) = next()?;
            let (value, is_null) = next()?;
            Some((key, (!is_null).then_some(value)))
        })
        .collect()
}

fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_ne_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stored(words: &[u32], strings: &[u8]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).chain(strings.iter().copied()).collect()
    }

    #[test]
    fn keys_and_values_are_told_apart() {
        let bytes = stored(&[NEW_VERSION | 2, 0x8000_0001, 3, 4, 4 | NULL], b"a12b");
        assert_eq!(pairs(&bytes), Some(vec![(&b"a"[..], Some(&b"12"[..])), (&b"b"[..], None)]));
    }

    #[test]
    fn bytes_that_are_no_hstore_are_refused() {
        for words in [&[][..], &[0], &[NEW_VERSION | 1], &[NEW_VERSION | 1, 9, 9], &[NEW_VERSION | COUNT]] {
            assert_eq!(pairs(&stored(words, b"abc")), None);
        }
    }

    proptest! {
        #![proptest_config(crate::proptest_config::config(256))]

        #[test]
        fn any_bytes_are_read_or_refused(
            count in 0u32..6,
            words in prop::collection::vec(prop_oneof![0u32..20, any::<u32>()], 0..12),
            strings in ".{0,20}",
        ) {
            let bytes = stored(&[vec![NEW_VERSION | count], words].concat(), strings.as_bytes());
            if let Some(pairs) = pairs(&bytes) {
                prop_assert_eq!(pairs.len(), count as usize);
            }
            let _ = super::pairs(strings.as_bytes());
        }
    }
}
