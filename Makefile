# What can be done with this tree. `make` alone lists it.
#
# CARGO_TARGET_DIR, PREFIX and DESTDIR are honoured.

PREFIX ?= /usr/local
DESTDIR ?=
export PREFIX DESTDIR
SECONDS ?= 2
DURATION ?= 10m
KILLS ?= 0
MESSAGES ?= 0
FUZZ_SECONDS ?= $(if $(findstring command,$(origin SECONDS)),$(SECONDS),600)

# rustup's default place, for shells that have not read its profile.
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help setup build run test bench bench-peers fmt clippy doc header loom simulation soak c-test fuzz install clean
.DEFAULT_GOAL := help

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 17

setup: ## Install the Debian packages that are missing
	@scripts/setup.sh

build: setup ## Build everything, optimized
	cargo build --release --workspace --exclude store
	cargo build --release -p ipc-ffi

run: setup ## Start ipcd and example services, call them from C and Rust, show the figures
	@scripts/run.sh

test: setup ## Check everything: format, lints, tests, models, C, fuzz, header, documents
	@scripts/test.sh

bench: setup ## Measure beside the floor of this machine (SECONDS=2 for each figure)
	@SECONDS_EACH=$(SECONDS) scripts/bench.sh

bench-peers: ## Measure libipc beside iceoryx2, sockets, gRPC and others, with plots (not in make test)
	@scripts/bench-peers.sh

fmt: ## Format the Rust code
	cargo fmt --all

clippy: ## Lint the Rust code
	@scripts/test.sh clippy

doc: ## Build the documentation
	@scripts/test.sh doc

header: ## Generate include/ipc.h
	@scripts/header.sh

loom: ## Check the lock-free protocols in every order the memory model allows
	@scripts/test.sh loom

simulation: ## Simulate failover in 100,000 histories (LIBIPC_SEED=N for one of them)
	@scripts/test.sh simulation

soak: setup ## Run everything under load, with deaths and hangs, and report (DURATION=24h KILLS=10000)
	@DURATION=$(DURATION) KILLS=$(KILLS) MESSAGES=$(MESSAGES) scripts/soak.sh

c-test: setup ## Run the C programs under AddressSanitizer and Valgrind
	@scripts/test.sh c-test

fuzz: setup ## Fuzz what a peer or a C program passes (SECONDS=600 for each target)
	@FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/fuzz.sh

install: build ## Install libraries, header, pkg-config file and programs under PREFIX
	@scripts/install.sh

clean: ## Remove what was built
	cargo clean
