# mlint: build with PGXS. `make`, `make install`, `make format`, `make bench`;
# the tests are run by test/check.sh.

EXTENSION = mlint
MODULE_big = mlint
DATA = mlint--1.0.sql

# The rooms, in the order in which their SQL must run. What is to be watched in
# one is in its observe.sql.
ROOMS = common observe worker delivery audit secrets rotation mounts scan ratelimit \
	sessions usage retention archive expiry certs certs/dns certs/targets \
	certs/health owned

SOURCES = $(sort $(wildcard src/*.c src/*/*.c src/*/*/*.c))
INCLUDES = $(sort $(wildcard src/*.h src/*/*.h src/*/*/*.h))
APART = $(sort $(wildcard modules/*/*.c modules/*/*.h))
OBJS = $(SOURCES:.c=.o)

PG_CONFIG ?= pg_config
# Workers run where the extension's version is the library's.
MLINT_VERSION := $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" mlint.control)
PG_CPPFLAGS = -I$(srcdir)/src -I$(libpq_srcdir) \
	-DMLINT_SQL_VERSION='"$(MLINT_VERSION)"'
PG_CFLAGS = -Wall -Wextra -Werror -Wno-unused-parameter \
	-Wno-missing-field-initializers -Wno-sign-compare
# A server that gcc built passes on flags that clang knows by no name.
ifneq (,$(findstring clang,$(CC)))
PG_CFLAGS += -Wno-unknown-warning-option -Wno-ignored-attributes \
	-Wno-ignored-optimization-argument
endif
# Places where tests make a process die; see src/common/injection.h.
ifdef MLINT_INJECTION
PG_CPPFLAGS += -DMLINT_INJECTION_POINTS
endif
SHLIB_LINK = $(libpq) -lcurl -lssl -lcrypto -ljansson -lzstd -lmicrohttpd \
	-lldns -lidn2 -lpthread

EXTRA_CLEAN = src/*.bc

# `make installcheck` wants a server with shared_preload_libraries = 'mlint'.
REGRESS = $(sort $(basename $(notdir $(wildcard sql/*.sql))))
REGRESS_OPTS = --load-extension=mlint

# JIT bitcode of an extension that computes nothing in expressions is weight.
override with_llvm = no

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): $(INCLUDES) Makefile mlint.control

all: mlint--1.0.sql

# Modules of their own, so that the core needs none of what they link. One whose
# library's header is not there is left out.
MODULES_APART = $(if $(shell echo '\#include <hiredis/hiredis.h>' | \
	$(CC) -E -x c - >/dev/null 2>&1 && echo yes),redis)
MODULE_MAKE = $(MAKE) PG_CONFIG='$(PG_CONFIG)' CC='$(CC)'

.PHONY: modules modules-install modules-clean
all: modules
install: modules-install
clean: modules-clean

modules:
	+$(foreach m,$(MODULES_APART),$(MODULE_MAKE) -C modules/$(m) all &&) true
	$(if $(MODULES_APART),,@echo "mlint_redis is not built: there is no hiredis/hiredis.h (libhiredis-dev)")

modules-install: modules
	+$(foreach m,$(MODULES_APART),$(MODULE_MAKE) -C modules/$(m) install &&) true

modules-clean:
	+$(MODULE_MAKE) -C modules/redis clean

# The installation script, assembled from the rooms and committed.
mlint--1.0.sql: mlint--1.0.sql.header \
	$(foreach r,$(ROOMS),src/$(r)/room.sql $(wildcard src/$(r)/observe.sql)) \
	mlint--1.0.sql.footer
	cat $^ >$@.tmp && mv $@.tmp $@

.PHONY: objects format format-check analyse bench

objects: $(OBJS)

format:
	sh test/format.sh write $(SOURCES) $(INCLUDES) $(APART)

format-check:
	sh test/format.sh check $(SOURCES) $(INCLUDES) $(APART)

analyse:
	PG_CONFIG='$(PG_CONFIG)' sh test/analyse.sh

bench:
	sh test/bench/run.sh
