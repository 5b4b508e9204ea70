//! See the function of the same name in `tests/src/fuzzed.rs`.
#![no_main]

use harness::fuzzed::directory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| directory(data));
