.DEFAULT_GOAL := help
.PHONY: help setup demo test test-drivers test-tint test-candle test-burn test-mpi mpi-demo bench-burn bench-peers record lint clean

# Mesa complains where XDG_RUNTIME_DIR is unset, as it is in most containers.
runtime_dir = if [ -z "$$XDG_RUNTIME_DIR" ]; then \
	XDG_RUNTIME_DIR=$$(mktemp -d) && export XDG_RUNTIME_DIR && \
	trap 'rm -rf "$$XDG_RUNTIME_DIR"' EXIT; fi;

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing: a C linker, a Vulkan loader and driver
	@scripts/setup.sh

demo: setup ## train a classifier of handwritten digits on the GPU
	@$(runtime_dir) cargo run --locked --release --example digits

test: setup ## run every test and doc test; a missing GPU is a failure
	@$(runtime_dir) WGLOSS_REQUIRE_GPU=1 cargo test --locked

test-drivers: setup ## run the GPU tests on several software drivers (DRIVERS="lavapipe swiftshader")
	@scripts/test-drivers.sh $(DRIVERS)

test-tint: setup ## compile every kernel with Tint, Chrome's WGSL compiler (needs Node.js)
	@scripts/test-tint.sh

test-candle: setup ## build candle and test examples/candle: the losses on candle's CPU tensors
	@cargo test --locked --manifest-path examples/candle/Cargo.toml --target-dir target/candle

test-burn: setup ## build burn (680 packages, minutes); test and lint its bridge, crates/wgloss-burn
	@$(runtime_dir) cargo test --locked --manifest-path crates/wgloss-burn/Cargo.toml \
		--target-dir target/burn
	@cargo clippy --locked --manifest-path crates/wgloss-burn/Cargo.toml --target-dir target/burn \
		--all-targets -- -D warnings

test-mpi: setup ## install Open MPI and libclang; test and lint crates/wgloss-mpi over 1, 2 and 4 processes
	@scripts/setup.sh mpi
	@$(runtime_dir) cargo test --locked --manifest-path crates/wgloss-mpi/Cargo.toml --target-dir target/mpi
	@cargo clippy --locked --manifest-path crates/wgloss-mpi/Cargo.toml --target-dir target/mpi \
		--all-targets -- -D warnings

mpi-demo: setup ## train a language model over four processes, by shards of its tokens and of its batch
	@scripts/setup.sh mpi
	@$(runtime_dir) cargo build --locked --manifest-path crates/wgloss-mpi/Cargo.toml \
		--target-dir target/mpi --example characters && \
	OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
		mpirun -n 4 target/mpi/debug/examples/characters

bench-burn: setup ## measure wgloss-burn beside burn's own, in burn's settings (RECORD=FILE.json)
	@$(runtime_dir) mkdir -p target/burn/bench && \
	for setting in fusion fusion,autotune autotune; do \
		cargo build --locked --release --manifest-path crates/wgloss-burn/Cargo.toml \
			--target-dir target/burn --example bench \
			--no-default-features --features $$setting && \
		cp target/burn/release/examples/bench target/burn/bench/$$setting || exit 1; \
	done && cd target/burn/bench && ./fusion $(if $(RECORD),--record "$(abspath $(RECORD))") \
		./fusion ./fusion,autotune ./autotune

bench-peers: setup ## measure wgloss beside burn, candle and PyTorch (downloads gigabytes)
	@benches/peers/run.py

record: setup ## record what a device does (DEVICE=nvidia-h100 STEPS="bench sweep")
	@$(runtime_dir) scripts/record.sh "$(DEVICE)" $(STEPS)

lint: setup ## check formatting, clippy and rustdoc, warnings denied
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || \
		{ echo "lint needs rustfmt and clippy: rustup component add rustfmt clippy" >&2; exit 1; }
	cargo fmt --all --check
	cargo fmt --manifest-path crates/wgloss-burn/Cargo.toml --check
	cargo fmt --manifest-path crates/wgloss-mpi/Cargo.toml --check
	cargo fmt --manifest-path examples/candle/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	cargo clippy --locked -p wgloss --all-targets --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --all-features

clean: ## remove what was built and what the demo wrote
	cargo clean --locked
	rm -rf out
