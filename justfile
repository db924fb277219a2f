# `just` alone lists the recipes. None is needed to use the crate: each is one or two cargo commands.

default:
    @just --list

# Format all code.
fmt:
    cargo fmt

# Formatting and lints, as CI demands them.
lint:
    cargo fmt --check
    cargo clippy --all-targets --features emulator,tokenizers -- -D warnings

# Every test, doc tests included.
test:
    cargo test --all-features

# The suite in its quick mode, without doc tests: for daily use.
quick:
    COTANGENT_QUICK=1 cargo test --tests

# The documentation, without warnings.
doc:
    RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps

# Benchmarks; `just bench softmax` runs those whose id contains the word.
bench filter="":
    cargo bench --bench ops -- {{filter}}
    cargo bench --bench kernels -- {{filter}}
    cargo bench --bench step -- {{filter}}

# Write generated files anew: docs/ops.md.
bless:
    COTANGENT_BLESS=1 cargo test --test main tidy

# CUDA kernels on the emulated device, built in seconds; `just emulated softmax` runs some ops.
emulated op="":
    COTANGENT_OP={{op}} cargo test --profile quick --features emulator --test main emulated

# What CI runs.
ci:
    .ci/run
