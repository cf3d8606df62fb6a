//! Wall clocks: that of this host, and how far those of the workers are from it. Leases do not depend
//! on them; certificates and logs do.

use std::time::Duration;

use widemap_common::limits::DOCTOR_CLOCK_MS_MAX;
use widemap_common::wall_clock;

use super::finding::{Check, Finding};

/// No clock is right that shows a year before this release's.
const RELEASE_YEAR: i64 = 2026;

const DAY_S: u64 = 24 * 60 * 60;

/// How far a worker's clock is ahead of this host's, in milliseconds; behind, where it is negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AheadMs(i64);

/// Looks at this host's clock.
pub(super) fn check() -> Finding {
    judge(wall_clock::unix_ms())
}

/// How far ahead a clock is that has told this time half a round trip ago.
pub(super) fn ahead(told_ms: u64, round_trip: Duration) -> Option<AheadMs> {
    let way_ms = u64::try_from(round_trip.as_millis() / 2).ok()?;
    between(told_ms, wall_clock::unix_ms()?.checked_sub(way_ms)?)
}

fn between(told_ms: u64, here_ms: u64) -> Option<AheadMs> {
    let (told, here) = (i64::try_from(told_ms).ok()?, i64::try_from(here_ms).ok()?);
    told.checked_sub(here).map(AheadMs)
}

/// What the clock of a worker comes to.
pub(super) fn of_worker(name: &str, AheadMs(ahead_ms): AheadMs) -> Finding {
    let distance_ms = ahead_ms.unsigned_abs();
    let seconds = Duration::from_millis(distance_ms).as_secs_f64();
    if distance_ms < DOCTOR_CLOCK_MS_MAX {
        return Finding::ok(Check::Clock, format!("{name}: {seconds:.1} s from this host's"));
    }
    let side = if ahead_ms > 0 { "ahead of" } else { "behind" };
    Finding::warning(
        Check::Clock,
        format!(
            "{name}: {seconds:.1} s {side} this host's; leases do not depend on it, certificates \
             and logs do"
        ),
        "set the clocks by NTP on both hosts (timedatectl set-ntp true)",
    )
}

fn judge(now_ms: Option<u64>) -> Finding {
    let now_s = now_ms.unwrap_or(0) / 1_000;
    let (year, month, day) = date(now_s / DAY_S);
    let (hour, minute, second) = (now_s / 3_600 % 24, now_s / 60 % 60, now_s % 60);
    let shown =
        format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC on this host");
    if year >= RELEASE_YEAR {
        return Finding::ok(Check::Clock, shown);
    }
    Finding::problem(
        Check::Clock,
        format!("{shown}, which is before this release was made"),
        "set the clock (timedatectl set-ntp true): certificates are not valid at that time",
    )
}

/// The Gregorian date of a day counted from 1970 (Howard Hinnant's `civil_from_days`).
fn date(days: u64) -> (i64, i64, i64) {
    let days = i64::try_from(days).unwrap_or(i64::MAX / 2) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn days_have_their_dates() {
        for (days, want) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_454, (2026, 1, 1)),
            (20_453, (2025, 12, 31)),
        ] {
            assert_eq!(date(days), want);
        }
    }

    #[test]
    fn a_clock_before_the_release_is_a_problem() {
        assert_eq!(judge(None).status, Status::Problem);
        assert_eq!(judge(Some(20_453 * DAY_S * 1_000)).status, Status::Problem);
        let now = judge(Some((20_454 * DAY_S + 3_661) * 1_000));
        assert_eq!(
            (now.what.as_str(), now.status),
            ("2026-01-01 01:01:01 UTC on this host", Status::Ok)
        );
        assert!(date(u64::MAX / DAY_S).0 > 2026);
    }

    #[test]
    fn a_distance_is_told_from_five_seconds_on() {
        let at = |told, here| of_worker("ann", between(told, here).unwrap());
        assert_eq!(at(10_000, 14_999).status, Status::Ok);
        let ahead = at(15_000, 10_000);
        assert_eq!(ahead.status, Status::Warning);
        assert!(ahead.what.starts_with("ann: 5.0 s ahead of this host's"), "{ahead:?}");
        assert!(at(10_000, 17_500).what.starts_with("ann: 7.5 s behind"));
        assert_eq!(between(u64::MAX, 1), None);
    }
}
