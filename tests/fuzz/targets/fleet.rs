//! See `fuzz::fleet`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::fleet::run(input));
