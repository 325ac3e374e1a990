#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| private_registry::fuzzed::run("host", data));
