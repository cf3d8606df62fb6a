//! Item-wise output is the same bytes for every chunk size and every cluster.

use proptest::prelude::*;
use widemap_tests::{WorkerProcess, run, widemap};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_cluster_does_not_show_in_the_output(
        items in proptest::collection::vec("[a-z0-9 ]{0,12}", 0..400),
        chunk in proptest::option::of(1_u32..50),
        slots in proptest::collection::vec(1_u32..4, 1..4),
        last_newline in any::<bool>(),
    ) {
        let mut input = items.join("\n");
        if last_newline && !items.is_empty() {
            input.push('\n');
        }
        let workers: Vec<_> =
            slots.iter().map(|&slots| WorkerProcess::start("any", slots)).collect();
        let mut map = vec!["map".to_owned()];
        for worker in &workers {
            map.extend(["--worker".to_owned(), worker.address().to_owned()]);
        }
        if let Some(chunk) = chunk {
            map.extend(["--chunk".to_owned(), chunk.to_string()]);
        }
        map.extend(["--builtin".to_owned(), "identity".to_owned()]);
        let map: Vec<_> = map.iter().map(String::as_str).collect();
        let done = run(widemap(&map), input.as_bytes()).exits(0);
        let mut want = input.clone();
        if !want.is_empty() && !want.ends_with('\n') {
            want.push('\n');
        }
        prop_assert_eq!(done.text(), want);
    }
}
