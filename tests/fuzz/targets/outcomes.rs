//! See `fuzz::outcomes`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::outcomes::run(input));
