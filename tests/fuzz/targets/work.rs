//! See `fuzz::work`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::work::run(input));
