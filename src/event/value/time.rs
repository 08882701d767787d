//! Dates and times in ISO 8601, as `JsonEncodeDateTime` writes them (src/backend/utils/adt/json.c) when the
//! session's time zone is UTC.

/// Days from Postgres' first Julian day, 4714-11-24 BC, to its epoch, 2000-01-01 (`POSTGRES_EPOCH_JDATE`).
const EPOCH: i64 = 2_451_545;
const DAY: i64 = 86_400_000_000;

/// Appends a `date`: days since 2000-01-01.
pub fn date(out: &mut Vec<u8>, days: i32) {
    match days {
        i32::MIN => out.extend_from_slice(b"\"-infinity\""),
        i32::MAX => out.extend_from_slice(b"\"infinity\""),
        _ => {
            let (year, month, day) = civil(i64::from(days));
            out.push(b'"');
            year_month_day(out, year, month, day);
            era(out, year);
            out.push(b'"');
        }
    }
}

/// Appends a `time`: microseconds since midnight, up to a whole day. `None`, with nothing appended, if that is no time.
pub fn time_of_day(out: &mut Vec<u8>, microseconds: i64) -> Option<()> {
    if !(0..=DAY).contains(&microseconds) {
        return None;
    }
    out.push(b'"');
    clock(out, microseconds);
    out.push(b'"');
    Some(())
}

/// Appends a `timestamp`: microseconds since 2000-01-01 00:00.
pub fn timestamp(out: &mut Vec<u8>, microseconds: i64) {
    moment(out, microseconds, b"");
}

/// Appends a `timestamptz`: microseconds since 2000-01-01 00:00 UTC.
pub fn timestamptz(out: &mut Vec<u8>, microseconds: i64) {
    moment(out, microseconds, b"+00:00");
}

fn moment(out: &mut Vec<u8>, microseconds: i64, zone: &[u8]) {
    match microseconds {
        i64::MIN => out.extend_from_slice(b"\"-infinity\""),
        i64::MAX => out.extend_from_slice(b"\"infinity\""),
        _ => {
            let (year, month, day) = civil(microseconds.div_euclid(DAY));
            out.push(b'"');
            year_month_day(out, year, month, day);
            out.push(b'T');
            clock(out, microseconds.rem_euclid(DAY));
            out.extend_from_slice(zone);
            era(out, year);
            out.push(b'"');
        }
    }
}

/// The Gregorian date `days` after 2000-01-01; year 0 is 1 BC (`j2date`, src/backend/utils/adt/datetime.c).
fn civil(days: i64) -> (i64, i64, i64) {
    // Count from a 1 March that begins a cycle of 400 years, so that leap days come last.
    let days = days + EPOCH + 32_044;
    let (cycle, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (year * 365 + year / 4 - year / 100);
    let month = (day * 5 + 2) / 153;
    let day_of_month = day - (month * 153 + 2) / 5 + 1;
    let year = cycle * 400 + year - 4_800;
    if month < 10 { (year, month + 3, day_of_month) } else { (year + 1, month - 9, day_of_month) }
}

fn year_month_day(out: &mut Vec<u8>, year: i64, month: i64, day: i64) {
    let year = if year > 0 { year } else { 1 - year };
    if year >= 10_000 {
        out.extend_from_slice(itoa::Buffer::new().format(year).as_bytes());
    } else {
        let ([y1, y2], [y3, y4]) = (two_digits(year / 100), two_digits(year % 100));
        out.extend_from_slice(&[y1, y2, y3, y4]);
    }
    let ([m1, m2], [d1, d2]) = (two_digits(month), two_digits(day));
    out.extend_from_slice(&[b'-', m1, m2, b'-', d1, d2]);
}

fn era(out: &mut Vec<u8>, year: i64) {
    if year <= 0 {
        out.extend_from_slice(b" BC");
    }
}

/// `hh:mm:ss`, then the fraction of a second without trailing zeros.
fn clock(out: &mut Vec<u8>, microseconds: i64) {
    let (seconds, mut fraction) = (microseconds / 1_000_000, microseconds % 1_000_000);
    let [h1, h2] = two_digits(seconds / 3_600);
    let [m1, m2] = two_digits(seconds / 60 % 60);
    let [s1, s2] = two_digits(seconds % 60);
    out.extend_from_slice(&[h1, h2, b':', m1, m2, b':', s1, s2]);
    if fraction != 0 {
        out.push(b'.');
        let mut place = 100_000;
        while fraction != 0 {
            out.push(digit(fraction / place));
            fraction %= place;
            place /= 10;
        }
    }
}

fn two_digits(number: i64) -> [u8; 2] {
    [digit(number / 10), digit(number % 10)]
}

fn digit(number: i64) -> u8 {
    b'0' + number as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn dates_span_all_that_postgres_has() {
        let expected = [
            (0, "2000-01-01"),
            (-1, "1999-12-31"),
            (59, "2000-02-29"),
            (60, "2000-03-01"),
            (-730_119, "0001-01-01"),
            (-730_120, "0001-12-31 BC"),
            (-2_451_545, "4714-11-24 BC"),
            (2_145_031_948, "5874897-12-31"),
            (i32::MAX, "infinity"),
            (i32::MIN, "-infinity"),
        ];
        for (days, text) in expected {
            assert_eq!(written(|out| date(out, days)), format!("\"{text}\""));
        }
    }

    #[test]
    fn each_day_follows_the_one_before() {
        let mut before = civil(-EPOCH);
        for days in -EPOCH + 1..400_000 {
            let (year, month, day) = civil(days);
            let length = match before.1 {
                2 if before.0 % 4 == 0 && (before.0 % 100 != 0 || before.0 % 400 == 0) => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let expected = match before {
                (y, 12, 31) => (y + 1, 1, 1),
                (y, m, d) if d == length => (y, m + 1, 1),
                (y, m, d) => (y, m, d + 1),
            };
            assert_eq!((year, month, day), expected);
            before = expected;
        }
    }

    #[test]
    fn fractions_lose_their_trailing_zeros() {
        let clock = |microseconds| written(|out| time_of_day(out, microseconds).unwrap());
        assert_eq!(clock(0), "\"00:00:00\"");
        assert_eq!(clock(86_400_000_000), "\"24:00:00\"");
        assert_eq!(clock(1), "\"00:00:00.000001\"");
        assert_eq!(clock(45_296_120_000), "\"12:34:56.12\"");
    }

    #[test]
    fn moments_before_the_epoch_count_forward_within_their_day() {
        assert_eq!(written(|out| timestamp(out, -1)), "\"1999-12-31T23:59:59.999999\"");
        assert_eq!(written(|out| timestamptz(out, 0)), "\"2000-01-01T00:00:00+00:00\"");
        assert_eq!(written(|out| timestamptz(out, -730_120 * DAY)), "\"0001-12-31T00:00:00+00:00 BC\"");
        assert_eq!(written(|out| timestamptz(out, i64::MAX)), "\"infinity\"");
    }

    proptest! {
        #![proptest_config(crate::proptest_config::config(256))]

        #[test]
        fn any_stored_time_is_a_string(days: i32, microseconds in prop_oneof![any::<i64>(), -DAY..2 * DAY]) {
            prop_assert!(serde_json::from_str::<String>(&written(|out| date(out, days))).is_ok());
            for write in [timestamp, timestamptz] {
                prop_assert!(serde_json::from_str::<String>(&written(|out| write(out, microseconds))).is_ok());
            }
            let mut out = Vec::new();
            match time_of_day(&mut out, microseconds) {
                Some(()) => prop_assert!(serde_json::from_slice::<String>(&out).is_ok()),
                None => prop_assert!(out.is_empty()),
            }
        }

        #[test]
        fn moments_are_those_that_others_read(microseconds in -62_135_596_800_000_000i64..253_402_300_800_000_000) {
            // Within the years that HTTP dates have: seconds since 1970.
            let text = written(|out| timestamp(out, microseconds - 946_684_800_000_000));
            let text = text.trim_matches('"');
            let (day, clock) = text.split_once('T').unwrap();
            let number = |text: &str| text.parse::<i64>().unwrap();
            let (year, month, date) = (number(&day[..4]), number(&day[5..7]), number(&day[8..]));
            // Days from 1970-01-01, counted the other way round.
            let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
            let days = 365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + date - 719_469;
            let seconds = number(&clock[..2]) * 3600 + number(&clock[3..5]) * 60 + number(&clock[6..8]);
            let fraction = clock.get(9..).map_or(0, |digits| number(&format!("{digits:0<6}")));
            prop_assert_eq!((days * 86_400 + seconds) * 1_000_000 + fraction, microseconds);
        }
    }
}
