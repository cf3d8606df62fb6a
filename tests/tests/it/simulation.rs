//! Ring 2, as stories and from seeds: the real scheduler on a simulated cluster.

use widemap_tests::sim::run_seed;

/// Seeds of the ordinary run; `WIDEMAP_SIM_SEEDS` asks for more.
const SEEDS: u64 = 300;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

#[test]
fn seeds_of_trouble_end_as_a_sequential_run_would() {
    if let Some(seed) = number("WIDEMAP_SIM_SEED") {
        println!("{:?}", run_seed(seed, true));
        return;
    }
    let first = number("WIDEMAP_SIM_FIRST").unwrap_or(1);
    let seeds = number("WIDEMAP_SIM_SEEDS").unwrap_or(SEEDS);
    for seed in first..first + seeds {
        run_seed(seed, false);
    }
}
