//! How a point in time is written as text, and told in the clock of the rest of the world.

use std::fmt;

use super::Timestamp;

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
/// 1970-01-01 to 2000-01-01 (`POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE` in timestamp.h).
const DAYS_FROM_UNIX_EPOCH: i64 = 10_957;

impl Timestamp {
    /// Whole seconds since 1970-01-01 00:00 UTC, rounded down.
    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(MICROS_PER_SECOND) + DAYS_FROM_UNIX_EPOCH * SECONDS_PER_DAY
    }

    /// The point in time that many microseconds after 1970-01-01 00:00 UTC.
    pub fn from_unix_micros(micros: i64) -> Self {
        Timestamp(micros.saturating_sub(DAYS_FROM_UNIX_EPOCH * SECONDS_PER_DAY * MICROS_PER_SECOND))
    }

    /// Appends the ISO 8601 text in UTC. The fraction has six digits, so that texts of the same length sort by time.
    pub fn write_to(self, out: &mut Vec<u8>) {
        self.write(out, b'T', Fraction::Whole, b"Z");
    }

    /// Appends the text that SQL gives under UTC, as `timestamptz_out` writes it.
    pub fn write_sql(self, out: &mut Vec<u8>) {
        self.write(out, b' ', Fraction::Short, b"+00");
    }

    fn write(self, out: &mut Vec<u8>, separator: u8, fraction: Fraction, zone: &[u8]) {
        let seconds = self.0.div_euclid(MICROS_PER_SECOND);
        let micros = self.0.rem_euclid(MICROS_PER_SECOND) as u32;
        let (year, month, day) = civil_date(seconds.div_euclid(SECONDS_PER_DAY));
        let second_of_day = seconds.rem_euclid(SECONDS_PER_DAY) as u32;

        if year < 0 {
            out.push(b'-');
        }
        match year.unsigned_abs() {
            year @ ..=9999 => out.extend_from_slice(&digits::<4>(year as u32)),
            year => out.extend_from_slice(itoa::Buffer::new().format(year).as_bytes()),
        }
        let ([m1, m2], [d1, d2]) = (digits(month as u32), digits(day as u32));
        let ([h1, h2], [n1, n2]) = (digits(second_of_day / 3600), digits(second_of_day / 60 % 60));
        let [s1, s2] = digits(second_of_day % 60);
        let rest = [b'-', m1, m2, b'-', d1, d2, separator, h1, h2, b':', n1, n2, b':', s1, s2];
        out.extend_from_slice(&rest);
        if micros != 0 || fraction == Fraction::Whole {
            out.push(b'.');
            out.extend_from_slice(&digits::<6>(micros));
            while fraction == Fraction::Short && out.last() == Some(&b'0') {
                out.pop();
            }
        }
        out.extend_from_slice(zone);
    }
}

/// How many digits a fraction of a second has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fraction {
    /// Six.
    Whole,
    /// Up to the last that is not zero.
    Short,
}

/// ISO 8601 in UTC, as [`Timestamp::write_to`] writes it.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::with_capacity(32);
        self.write_to(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

/// Year, month and day of a day counted from 2000-01-01, in the Gregorian calendar extended backwards.
///
/// Years are counted from 1 March here, so that the leap day is the last of its year.
fn civil_date(day: i64) -> (i64, i64, i64) {
    const DAYS_PER_ERA: i64 = 146_097;
    // 0000-03-01 to 2000-01-01.
    let since_march_of_year_0 = day + 730_425;
    let era = since_march_of_year_0.div_euclid(DAYS_PER_ERA);
    let day_of_era = since_march_of_year_0.rem_euclid(DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// The lowest decimal digits of a number.
fn digits<const WIDTH: usize>(value: u32) -> [u8; WIDTH] {
    let mut rest = value;
    let mut digits = [b'0'; WIDTH];
    for place in digits.iter_mut().rev() {
        *place += (rest % 10) as u8;
        rest /= 10;
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-20 10:00:47 UTC.
    const MOMENT: i64 = 848_484_047 * MICROS_PER_SECOND;

    #[test]
    fn the_fraction_has_six_digits_so_that_texts_sort_by_time() {
        let micros = [0, 1, 406_900, 406_957, 999_999, 1_000_000];
        let texts = micros.map(|micros| Timestamp(MOMENT + micros).to_string());
        assert_eq!(
            texts,
            [
                "2026-11-20T10:00:47.000000Z",
                "2026-11-20T10:00:47.000001Z",
                "2026-11-20T10:00:47.406900Z",
                "2026-11-20T10:00:47.406957Z",
                "2026-11-20T10:00:47.999999Z",
                "2026-11-20T10:00:48.000000Z",
            ]
        );
        assert!(texts.is_sorted());
    }

    #[test]
    fn sql_leaves_out_trailing_zeros_of_the_fraction() {
        let written = |micros| {
            let mut out = Vec::new();
            Timestamp(MOMENT + micros).write_sql(&mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(406_900), "2026-11-20 10:00:47.4069+00");
        assert_eq!(written(0), "2026-11-20 10:00:47+00");
    }

    #[test]
    fn dates_follow_the_calendar() {
        let day = |day: i64| Timestamp(day * SECONDS_PER_DAY * MICROS_PER_SECOND).to_string();
        assert_eq!(day(0), "2000-01-01T00:00:00.000000Z");
        assert_eq!(day(59), "2000-02-29T00:00:00.000000Z");
        assert_eq!(day(60), "2000-03-01T00:00:00.000000Z");
        assert_eq!(day(-1), "1999-12-31T00:00:00.000000Z");
        assert_eq!(day(-DAYS_FROM_UNIX_EPOCH), "1970-01-01T00:00:00.000000Z");
        // 2100 is no leap year.
        assert_eq!(day(36_583), "2100-02-28T00:00:00.000000Z");
        assert_eq!(day(36_584), "2100-03-01T00:00:00.000000Z");
        assert_eq!(Timestamp(-1).to_string(), "1999-12-31T23:59:59.999999Z");
    }

    #[test]
    fn any_number_has_a_text() {
        assert_eq!(Timestamp(i64::MAX).to_string(), "294277-01-09T04:00:54.775807Z");
        assert_eq!(Timestamp(i64::MIN).to_string(), "-290278-12-22T19:59:05.224192Z");
    }

    #[test]
    fn unix_time_starts_thirty_years_earlier() {
        assert_eq!(Timestamp(0).unix_seconds(), 946_684_800);
        assert_eq!(Timestamp(MOMENT + 999_999).unix_seconds(), 1_795_168_847);
        assert_eq!(Timestamp(-1).unix_seconds(), 946_684_799);
        assert_eq!(Timestamp::from_unix_micros(946_684_800_000_001), Timestamp(1));
    }
}
