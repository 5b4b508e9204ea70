//! See the function of the same name in `tests/src/fuzzed.rs`.
#![no_main]

use harness::fuzzed::http2_life;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| http2_life(data));
