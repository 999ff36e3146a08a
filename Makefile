# What is needed: Rust, Go, Python 3 and a C compiler. `integration/tools.py --check` says which one is missing.
PYTHON ?= python3

.PHONY: check test demo bench tools deny

# Format, lints, unit tests, and the dependency rules where cargo-deny is installed. Needs Rust alone.
check:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo test --locked --lib --bins
	@if cargo deny --version >/dev/null 2>&1; then $(MAKE) --no-print-directory deny; \
	else echo "check: cargo-deny is not installed, so 'make deny' did not run (cargo install cargo-deny --locked)"; fi

# Every ring of tests. The first run builds the programs of the cluster ring into a cache outside target/.
test: tools
	$(PYTHON) integration/run.py

# Two trust domains with embedded authorities on this machine, step by step. Needs Rust alone.
demo:
	cargo run --locked --release -- demo

bench:
	cargo bench --locked

# etcd, Kubernetes, SPIRE and spire-controller-manager, from pinned Go modules.
tools:
	$(PYTHON) integration/tools.py

# Bans, licenses and sources of all dependencies, by .cargo/deny.toml. Needs no network.
deny:
	cargo deny --locked check --config .cargo/deny.toml bans licenses sources
