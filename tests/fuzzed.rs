//! What the fuzzer calls, called with the corpus it left behind and with what seeds make of it. Always the same, on
//! any toolchain: a crash that was found stays found.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use harness::fuzzed::{Mutator, TARGETS};

/// Cases of each way in, and of those that take a thousand times as long.
const CASES: usize = 20_000;
const SLOW_CASES: usize = 1_500;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Runs a target on its corpus and on what is made of it.
fn hold(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).unwrap();
    let corpus = corpus(name);
    assert!(corpus.len() >= 5, "a corpus of {}", corpus.len());
    let slow = ["configuration_file", "tls_records", "whole_life", "http2_life"].contains(&name);
    let mut mutator = Mutator::new(0x5eed);
    let made = (0..if slow { SLOW_CASES } else { CASES }).map(|_| mutator.next(&corpus));
    for case in corpus.iter().cloned().chain(made.collect::<Vec<_>>()) {
        let held = catch_unwind(|| target(&case));
        assert!(held.is_ok(), "{name} does not hold for b\"{}\"", case.escape_ascii());
    }
}

macro_rules! targets {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            hold(stringify!($name));
        }
    )*};
}

targets! {
    request_head response_head chunked_body route directory proxy_header origin configuration configuration_file tls_records whole_life http2_life
}

#[test]
fn every_target_has_a_fuzzer_and_a_test() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        assert!(fuzz.join(format!("fuzz_targets/{name}.rs")).exists(), "{name}");
    }
}
