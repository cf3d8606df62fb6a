//! The functions of the stock worker.

use std::time::Duration;

use num_bigint::BigInt;

use crate::function::{Context, FunctionError, Output};

/// Prints the item.
#[expect(clippy::unnecessary_wraps, reason = "it has the signature of a function")]
pub(crate) fn identity(
    item: &[u8],
    output: &mut Output,
    _context: &Context,
) -> Result<(), FunctionError> {
    output.extend_from_slice(item);
    Ok(())
}

/// Squares an integer of any length; blanks around it are ignored.
pub(crate) fn square(
    item: &[u8],
    output: &mut Output,
    _context: &Context,
) -> Result<(), FunctionError> {
    let text = item.trim_ascii();
    let (negative, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        Some((b'+', digits)) => (false, digits),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        let shown = String::from_utf8_lossy(item);
        return Err(FunctionError::new(format!("`{shown}` is not an integer")).permanent());
    }
    // Nineteen digits always fit 64 bits, and their square fits 128.
    if digits.len() <= 19 {
        let number = digits.iter().fold(0_u64, |n, digit| n * 10 + u64::from(digit - b'0'));
        push_decimal(output, u128::from(number) * u128::from(number));
    } else {
        let number = BigInt::parse_bytes(digits, 10).expect("digits are a number");
        let number = if negative { -number } else { number };
        output.extend_from_slice((&number * &number).to_string().as_bytes());
    }
    Ok(())
}

/// Sleeps for so many milliseconds, and prints the item.
pub(crate) fn sleep(
    item: &[u8],
    output: &mut Output,
    context: &Context,
) -> Result<(), FunctionError> {
    let shown = || String::from_utf8_lossy(item);
    let duration = std::str::from_utf8(item.trim_ascii())
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .and_then(|ms| Duration::try_from_secs_f64(ms / 1_000.0).ok())
        .ok_or_else(|| {
            FunctionError::new(format!("`{}` is not a number of milliseconds", shown())).permanent()
        })?;
    if !context.wait(duration) {
        return Err(FunctionError::new("woken before its time"));
    }
    output.extend_from_slice(item);
    Ok(())
}

/// Appends a number in decimal, two digits at a time.
fn push_decimal(output: &mut Output, number: u128) {
    /// The digits of the largest number of 128 bits.
    const DIGITS_MAX: usize = 39;
    const PAIRS: &[u8; 200] = b"0001020304050607080910111213141516171819\
        2021222324252627282930313233343536373839\
        4041424344454647484950515253545556575859\
        6061626364656667686970717273747576777879\
        8081828384858687888990919293949596979899";
    let mut digits = [0; DIGITS_MAX];
    let mut at = DIGITS_MAX;
    let mut wide = number;
    let mut rest = loop {
        // Division of 128 bits is slow: out of it as soon as possible, eighteen digits at a time.
        if let Ok(narrow) = u64::try_from(wide) {
            break narrow;
        }
        let mut low = (wide % 1_000_000_000_000_000_000) as u64;
        wide /= 1_000_000_000_000_000_000;
        for _ in 0..9 {
            at -= 2;
            digits[at..at + 2].copy_from_slice(&PAIRS[(low % 100) as usize * 2..][..2]);
            low /= 100;
        }
    };
    while rest >= 10 {
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[(rest % 100) as usize * 2..][..2]);
        rest /= 100;
    }
    if rest > 0 || at == DIGITS_MAX {
        at -= 1;
        digits[at] = b'0' + rest as u8;
    }
    output.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::slots::SlotControl;

    fn context(deadline: Option<Instant>) -> Context {
        let control = Arc::new(SlotControl::new(0).expect("a socket pair can be made"));
        Context { sequence: 1, deadline, control }
    }

    fn squared(item: &str) -> Result<String, String> {
        let mut output = Output::default();
        match square(item.as_bytes(), &mut output, &context(None)) {
            Ok(()) => Ok(String::from_utf8(output.bytes).unwrap()),
            Err(error) => Err(error.message),
        }
    }

    #[test]
    fn squares_are_right_for_integers_of_any_length() {
        for (item, want) in [
            ("0", "0"),
            ("-0", "0"),
            (" -7\t", "49"),
            ("+12", "144"),
            ("0010", "100"),
            ("1000000", "1000000000000"),
            ("4294967296", "18446744073709551616"),
            ("9999999999999999999", "99999999999999999980000000000000000001"),
            ("-10000000000000000000000", "100000000000000000000000000000000000000000000"),
        ] {
            assert_eq!(squared(item).as_deref(), Ok(want), "{item}");
        }
        for number in [9_u64, 10, 99, 100, 101, 3_037_000_499, 999_999_999, 1_000_000_000] {
            let want = (u128::from(number) * u128::from(number)).to_string();
            assert_eq!(squared(&number.to_string()), Ok(want));
        }
    }

    #[test]
    fn what_is_not_an_integer_is_named() {
        for item in ["", "x", "1.5", "1_000", "--1", "+"] {
            assert_eq!(squared(item), Err(format!("`{item}` is not an integer")));
        }
    }

    #[test]
    fn decimals_match_the_standard_library() {
        let mut rng = fastrand::Rng::with_seed(7);
        for bits in 0..128 {
            let number = rng.u128(..) >> bits;
            let mut output = Output::default();
            push_decimal(&mut output, number);
            assert_eq!(output.bytes, number.to_string().as_bytes());
        }
    }

    #[test]
    fn sleep_prints_its_item_and_ends_at_the_deadline() {
        let mut output = Output::default();
        assert!(sleep(b"1", &mut output, &context(None)).is_ok());
        assert_eq!(output.bytes, b"1");
        let begun = Instant::now();
        let deadline = begun + Duration::from_millis(20);
        assert!(sleep(b"60000", &mut output, &context(Some(deadline))).is_err());
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
