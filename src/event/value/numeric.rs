//! `numeric` from its stored form, digit for digit (src/backend/utils/adt/numeric.c: `NumericData`,
//! `get_str_from_var`). The form is the same in all versions since 9.1, since pg_upgrade keeps data files.

const SPECIAL: u16 = 0xC000;
const NEGATIVE: u16 = 0x4000;
const SHORT: u16 = 0x8000;

/// Appends the `numeric` whose varlena payload is `stored`: a JSON number, or a string for `NaN` and the
/// infinities. `None`, with nothing appended, if the bytes are no numeric.
pub fn numeric(out: &mut Vec<u8>, stored: &[u8]) -> Option<()> {
    let (header, rest) = word(stored)?;
    let (negative, scale, weight, digits) = match header & SPECIAL {
        SPECIAL => {
            let name: &[u8] = match header & 0xF000 {
                0xD000 => b"\"Infinity\"",
                0xF000 => b"\"-Infinity\"",
                _ => b"\"NaN\"",
            };
            out.extend_from_slice(name);
            return Some(());
        }
        SHORT => {
            let weight = i32::from(header & 0x3F) - if header & 0x40 != 0 { 0x40 } else { 0 };
            (header & 0x2000 != 0, usize::from(header >> 7 & 0x3F), weight, rest)
        }
        sign => {
            let (weight, digits) = word(rest)?;
            (sign == NEGATIVE, usize::from(header & 0x3FFF), i32::from(weight as i16), digits)
        }
    };
    let mut stored = digits.chunks_exact(2).filter_map(word).map(|(group, _)| group);
    if weight > 0 && stored.clone().next().is_none_or(|first| first == 0) || stored.any(|group| group > 9999)
    {
        return None; // Numbers are stored without leading zeros, four digits a group.
    }
    if negative {
        out.push(b'-');
    }
    let mut groups = Groups { digits, next: 0 };
    whole_part(out, &mut groups, weight);
    if scale > 0 {
        out.push(b'.');
        let end = out.len() + scale;
        while out.len() < end {
            out.extend_from_slice(&groups.read());
        }
        out.truncate(end);
    }
    Some(())
}

/// Appends what stands before the decimal point. `weight`: the place of the first stored group, 0 for the one
/// right before the point.
fn whole_part(out: &mut Vec<u8>, groups: &mut Groups, weight: i32) {
    if weight < 0 {
        groups.next = weight + 1;
        return out.push(b'0');
    }
    let first = groups.read();
    let zeros = first.iter().take(3).take_while(|&&digit| digit == b'0').count();
    out.extend_from_slice(&first[zeros..]);
    for _ in 0..weight {
        out.extend_from_slice(&groups.read());
    }
}

/// A number's digits in groups of four; before and after those stored there are zeros.
struct Groups<'a> {
    digits: &'a [u8],
    next: i32,
}

impl Groups<'_> {
    fn read(&mut self) -> [u8; 4] {
        let stored = usize::try_from(self.next).ok().and_then(|group| self.digits.get(group * 2..));
        self.next += 1;
        let group = stored.and_then(word).map_or(0, |(group, _)| group);
        [group / 1000 % 10, group / 100 % 10, group / 10 % 10, group % 10].map(|digit| b'0' + digit as u8)
    }
}

fn word(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (word, rest) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_ne_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(words: &[u16]) -> String {
        let stored: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut out = Vec::new();
        numeric(&mut out, &stored).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn short(negative: bool, scale: u16, weight: i16, digits: &[u16]) -> String {
        let sign = if negative { 0x2000 } else { 0 };
        let header = SHORT | sign | scale << 7 | (weight as u16 & 0x7F);
        written(&[&[header], digits].concat())
    }

    #[test]
    fn digits_and_scale_are_kept() {
        assert_eq!(short(false, 0, 0, &[]), "0");
        assert_eq!(short(false, 3, 0, &[]), "0.000");
        assert_eq!(short(false, 0, 0, &[42]), "42");
        assert_eq!(short(true, 2, 0, &[42, 5000]), "-42.50");
        assert_eq!(short(false, 0, 2, &[1]), "100000000");
        assert_eq!(short(false, 1, 1, &[1, 2, 3000]), "10002.3");
        assert_eq!(short(false, 4, -1, &[1]), "0.0001");
        assert_eq!(short(false, 9, -3, &[1000]), "0.000000001");
    }

    #[test]
    fn the_long_form_reads_as_the_short_one() {
        assert_eq!(written(&[NEGATIVE | 70, 0, 7]), format!("-7.{}", "0".repeat(70)));
        assert_eq!(written(&[5, -2i16 as u16, 9]), "0.00000");
        assert_eq!(written(&[0, 200, 12]), format!("12{}", "0".repeat(800)));
    }

    #[test]
    fn what_json_has_no_number_for_is_a_string() {
        assert_eq!(written(&[0xC000]), "\"NaN\"");
        assert_eq!(written(&[0xD000]), "\"Infinity\"");
        assert_eq!(written(&[0xF000]), "\"-Infinity\"");
    }

    #[test]
    fn bytes_that_are_no_numeric_are_refused() {
        assert_eq!(numeric(&mut Vec::new(), &[]), None);
        assert_eq!(numeric(&mut Vec::new(), &[0, 0, 1]), None);
        for groups in [&[0, 7][..], &[50_000], &[1, 10_000]] {
            let words = [&[0, 1], groups].concat();
            let stored: Vec<u8> = words.iter().flat_map(|word: &u16| word.to_ne_bytes()).collect();
            assert_eq!(numeric(&mut Vec::new(), &stored), None, "{groups:?}");
        }
    }

    /// A number stored as `numeric_in` does it: groups of four digits around the point, without zeros at the ends.
    fn stored(negative: bool, whole: &str, fraction: &str) -> Vec<u8> {
        let padded = "0".repeat((4 - whole.len() % 4) % 4) + whole;
        let groups = |digits: &str| -> Vec<u16> {
            digits
                .as_bytes()
                .chunks(4)
                .map(|group| format!("{:0<4}", std::str::from_utf8(group).unwrap()).parse().unwrap())
                .collect()
        };
        let mut digits = groups(&padded);
        let mut weight = digits.len() as i32 - 1;
        digits.extend(groups(fraction));
        let leading = digits.iter().take_while(|digit| **digit == 0).count();
        weight -= leading as i32;
        digits.drain(..leading);
        while digits.last() == Some(&0) {
            digits.pop();
        }
        if digits.is_empty() {
            weight = 0;
        }
        let sign = if negative { NEGATIVE } else { 0 };
        let words = [vec![sign | fraction.len() as u16, weight as i16 as u16], digits].concat();
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    proptest! {
        #![proptest_config(crate::proptest_config::config(256))]

        #[test]
        fn any_number_has_all_its_digits(negative: bool, whole in "0|[1-9][0-9]{0,40}", fraction in "[0-9]{0,40}") {
            let mut out = Vec::new();
            numeric(&mut out, &stored(negative, &whole, &fraction)).unwrap();
            let point = if fraction.is_empty() { "" } else { "." };
            let sign = if negative { "-" } else { "" };
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!("{sign}{whole}{point}{fraction}"));
        }

        #[test]
        fn any_bytes_are_json_or_refused(stored in prop::collection::vec(prop_oneof![Just(0u8), Just(0x80), any::<u8>()], 0..24)) {
            let mut out = Vec::new();
            match numeric(&mut out, &stored) {
                Some(()) => prop_assert!(serde_json::from_slice::<&serde_json::value::RawValue>(&out).is_ok(), "{:?}", out),
                None => prop_assert!(out.is_empty()),
            }
        }
    }
}
