//! Durations and sizes as they are typed: `250ms`, `10s`, `5m`, a bare number of seconds; `64K`,
//! `8M`, `1G`, a bare number of bytes; and sizes as they are shown.

use std::time::Duration;

/// Why a duration or a size was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("`{0}` is not a duration (say 250ms, 10s, 5m, 2h, or a number of seconds)")]
    Duration(String),
    /// Not a size.
    #[error("`{0}` is not a size (say 4096, 64K, 8M or 1G)")]
    Size(String),
}

/// Reads a duration; a bare number is seconds, with or without a fraction.
///
/// # Errors
/// [`UnitError::Duration`] if the text is not one, is negative, or is too long to be held.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let bad = || UnitError::Duration(text.to_owned());
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds_per_unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(bad()),
    };
    let count: f64 = digits.parse().map_err(|_| bad())?;
    Duration::try_from_secs_f64(count * seconds_per_unit).map_err(|_| bad())
}

/// Reads a size in bytes; `K`, `M`, `G`, `T` are powers of 1024.
///
/// # Errors
/// [`UnitError::Size`] if the text is not one or does not fit 64 bits.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let bad = || UnitError::Size(text.to_owned());
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(bad()),
    };
    let count: u64 = digits.parse().map_err(|_| bad())?;
    count.checked_mul(1 << shift).ok_or_else(bad)
}

/// A size for people, in powers of 1024: `12 bytes`, `1.5 MiB`.
#[must_use]
pub fn size_shown(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_with_their_unit() {
        for (bytes, shown) in
            [(0, "0 bytes"), (1023, "1023 bytes"), (1 << 10, "1.0 KiB"), (3 << 19, "1.5 MiB")]
        {
            assert_eq!(size_shown(bytes), shown);
        }
    }

    #[test]
    fn durations_and_sizes_read_as_they_are_typed() {
        assert_eq!(parse_duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(parse_duration("1.5").unwrap(), Duration::from_millis(1_500));
        assert_eq!(parse_duration("5m").unwrap(), Duration::from_secs(300));
        assert_eq!(parse_size("8M").unwrap(), 8 << 20);
        assert_eq!(parse_size("100").unwrap(), 100);
        for bad in ["", "s", "-1s", "1x", "1e400"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        for bad in ["", "K", "1.5M", "99999999999999999999", "17000000T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
