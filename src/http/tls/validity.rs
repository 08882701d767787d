//! What certificates say that the library which verifies them does not tell: until when they are valid, and whose they are.

/// The end of a certificate's validity (RFC 5280, section 4.1.2.5), as SQL reads it; none if it cannot be found.
pub fn not_after(certificate: &[u8]) -> Option<String> {
    let (_, _, rest) = element(from_issuer(certificate)?)?;
    let (_, validity, _) = element(rest)?;
    let (_, _, rest) = element(validity)?;
    let (tag, time, _) = element(rest)?;
    let time = std::str::from_utf8(time).ok()?.strip_suffix('Z')?;
    let time = match tag {
        0x18 => time.to_owned(),
        // Two digits of a year, of which those from 50 on are of the last century.
        _ if time < "50" => format!("20{time}"),
        _ => format!("19{time}"),
    };
    if time.len() != 14 || !time.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = |from: usize| &time[from..from + 2];
    let date = format!("{}-{}-{}", &time[..4], part(4), part(6));
    Some(format!("{date} {}:{}:{}+00", part(8), part(10), part(12)))
}

/// Whether a certificate names itself as its issuer.
pub(super) fn is_self_signed(certificate: &[u8]) -> bool {
    let names = || {
        let (_, issuer, rest) = element(from_issuer(certificate)?)?;
        let (_, _, rest) = element(rest)?;
        let (_, subject, _) = element(rest)?;
        Some((issuer, subject))
    };
    names().is_some_and(|(issuer, subject)| issuer == subject)
}

/// What a certificate says from its issuer on.
fn from_issuer(certificate: &[u8]) -> Option<&[u8]> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut rest, _) = element(certificate)?;
    // Version, if it is there, serial number and algorithm come before.
    if rest.first() == Some(&0xA0) {
        rest = element(rest)?.2;
    }
    for _ in 0..2 {
        rest = element(rest)?.2;
    }
    Some(rest)
}

/// The tag and the contents of the first element in DER, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match length {
        0..=0x7F => (usize::from(length), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7F))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_end_of_validity_is_found_in_both_forms_of_time() {
        for (year, expected) in [
            (1999, "1999-07-09 00:00:00+00"),
            (2049, "2049-07-09 00:00:00+00"),
            (2050, "2050-07-09 00:00:00+00"),
            (9999, "9999-07-09 00:00:00+00"),
        ] {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut parameters = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            parameters.not_before = rcgen::date_time_ymd(1990, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(year, 7, 9);
            let certificate = parameters.self_signed(&key).unwrap();
            assert_eq!(not_after(certificate.der()).as_deref(), Some(expected));
            assert!(is_self_signed(certificate.der()));
            for length in 0..150 {
                assert_eq!(not_after(&certificate.der()[..length]), None, "cut to {length}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_not(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (not_after(&bytes), is_self_signed(&bytes));
        }
    }
}
