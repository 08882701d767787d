//! How often properties are tried.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// The same cases in every run: as many as `PROPTEST_CASES` says (`make fuzz`), else so many; other ones for another
/// `PROPTEST_RNG_SEED`.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
        std::env::var(name).ok()?.parse().ok()
    }
    ProptestConfig {
        cases: number("PROPTEST_CASES").unwrap_or(cases),
        rng_seed: RngSeed::Fixed(number("PROPTEST_RNG_SEED").unwrap_or(1)),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    }
}

/// A text of so many characters at most. (A regular expression as a strategy is parsed anew for each case, which takes
/// longer than the rest of it.)
pub(crate) fn any_text(most: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 0..=most).prop_map(String::from_iter)
}
