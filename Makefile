# What there is to do here. Every target works on a fresh machine, as root and as an ordinary user, and installs
# only what it needs and the machine lacks.
#
#   make demo                          a throw-away server, a receiver, and webhooks to look at
#   make test [PG=19]                  all tests, on PostgreSQL 15 or another major
#   make [install] [PG_CONFIG=…]       compile the extension, install it into that server
#   make installcheck [PG_CONFIG=…]    pg_regress against a running server that has it
#   make deb [PG=18]                   a Debian package for that server, in target/packages
#   make test-deb [PG=18 SUITE=forky]  that package in a clean Debian made by debootstrap (as root)
#   make test-patroni [PG=15]          a switchover under Debian's Patroni and etcd
#   make regress-postgres PGSRC=… [PG=15 SUITES=…]
#                                      PostgreSQL's own suites, captured, and compared with test_decoding
#   make dist                          the sources as a PGXN distribution, in target/packages
#   make fuzz [CASES=1000000]          random input to encoder, codecs and the reading of answers (FUZZ=link: some of them)
#   make torture [SECONDS=3600]        everything at once, for an hour: kills, outages, a full disk (SEED=… repeats)
#   make bench [PG=18]                 the figures of benches/README.md
#   make receiver                      a receiver at 127.0.0.1:9000 that prints what it gets
#   make lint                          format and clippy
#   make check PG=17                   does it compile for that server?

# The major that demo, test and bench run on; a server is found, installed or built.
PG ?= 15
# The server to install into; by default the one that demo and test would take.
PG_CONFIG ?= $(shell scripts/postgres $(PG))
# A cargo that is new enough, where the machine's own is not.
rust := $(shell scripts/rust)
ifneq ($(rust),)
export PATH := $(rust):$(PATH)
endif
# What is compiled for a server has a directory for each major: the library is called the same in all. The rest is shared.
TARGET = target/pg$(PG)

.PHONY: all demo test end-to-end check fuzz torture unit oracle receiver install installcheck deb test-deb test-patroni regress-postgres dist bench lint clean
.DEFAULT_GOAL := all

all:
	@scripts/build "$(PG_CONFIG)" release

demo:
	@PG=$(PG) scripts/demo

unit:
	@# Its server shows what certificates of all kinds come to.
	@scripts/packages openssl
	cargo test --package pgstream_hooks --lib
	cargo test --package receiver
	cargo test --package harness --test sources

test: unit end-to-end
	@tests/pgbouncer $(PG)

# Extra arguments of cargo test, such as TESTS='--test delivery events::'; JOBS=1 runs one program of tests after the other.
end-to-end:
	@scripts/end-to-end $(PG) $(TESTS)

# A few hundred cases of each are part of `make test`; SEED=… tries others.
CASES ?= 1000000
FUZZ ?= event:: ipc:: journal::packed:: http::tests::answers
fuzz:
	PROPTEST_CASES=$(CASES) $(if $(SEED),PROPTEST_RNG_SEED=$(SEED)) \
	  cargo test --release --target-dir $(TARGET) --package pgstream_hooks --lib -- $(FUZZ)

# A minute of it is part of `make test`.
SECONDS ?= 3600
torture:
	bindir=$$(scripts/server $(PG)) && \
	  PG=$(PG) PGWH_BINDIR=$$bindir PGWH_TORTURE_SECONDS=$(SECONDS) $(if $(SEED),PGWH_SEED=$(SEED)) \
	  cargo test --package harness --test torture -- --nocapture

# Every value of every type against to_json, in databases of several encodings.
oracle:
	tests/oracle $(PG)

receiver:
	@cargo run --quiet --package receiver -- $(RECEIVER)

install:
	@library=$$(scripts/build "$(PG_CONFIG)" release) && scripts/install "$(PG_CONFIG)" "$$library"
	@echo "Installed. Add to postgresql.conf, restart the server, and CREATE EXTENSION pgstream_hooks:"
	@echo "    shared_preload_libraries = 'pgstream_hooks'"
	@[ "$$("$(PG_CONFIG)" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')" -ge 19 ] || echo "    wal_level = logical"

# As PGXS does it: the server is the one that PGHOST, PGPORT and PGUSER name.
REGRESS = $(patsubst tests/regress/sql/%.sql,%,$(wildcard tests/regress/sql/*.sql))
installcheck:
	@scripts/regress "$(PG_CONFIG)" $(REGRESS)

deb:
	@scripts/deb $(PG)

test-deb:
	@SUITE=$(SUITE) tests/deb $(PG)

test-patroni:
	@tests/patroni $(PG)

# PGSRC: a source tree of PostgreSQL $(PG). SUITES: some of regress, isolation and the modules of contrib; all without it.
regress-postgres:
	@scripts/regress-postgres "$(PGSRC)" $(PG) "$(SUITES)"

# What is committed, under the name and version that PGXN knows it by.
DIST = pgstream_hooks-$(shell scripts/version)
dist:
	@mkdir -p target/packages
	@git archive --format=zip --prefix=$(DIST)/ --output=target/packages/$(DIST).zip HEAD
	@echo "$(CURDIR)/target/packages/$(DIST).zip"

bench:
	bindir=$$(scripts/server $(PG) release) && \
	  PG=$(PG) PGWH_BINDIR=$$bindir cargo run --release --package benches -- $(BENCH)

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@pg_config="$(PG_CONFIG)" && PGRX_PG_CONFIG_PATH=$$pg_config \
	  cargo clippy --target-dir $(TARGET) --package pgstream_hooks --lib --features pg$(PG) -- -D warnings

# Compiles the library's types for a server whose tests are not run.
check:
	@pg_config="$(PG_CONFIG)" && PGRX_PG_CONFIG_PATH=$$pg_config \
	  cargo check --target-dir $(TARGET) --package pgstream_hooks --lib --features pg$(PG)

clean:
	rm -rf target
