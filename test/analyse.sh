#!/bin/sh
# Look through the C files without running them:
#
#   sh test/analyse.sh [FILE...]      also: make analyse
#
# with clang-tidy (.clang-tidy says for what) and cppcheck. clang's static
# analyser is part of the first: scan-build would only run the same one again.
# Anything found is a failure. An exception stands where it is made, with its
# reason: NOLINT(check): why, or cppcheck-suppress check; why.
#
# PG_CONFIG chooses the PostgreSQL whose headers are read. Nothing is built and
# nothing is written beside the sources.
set -eu
. "$(dirname "$0")/lib.sh"

need_for_build
need clang-tidy command -v clang-tidy
need cppcheck command -v cppcheck
install_missing
find_postgres || die "no PostgreSQL found"

cd "$top"
files=$*
export PG_CONFIG
[ -n "$files" ] || files=$(ls src/*.c src/*/*.c src/*/*/*.c modules/*/*.c)
found=$(mktemp)
trap 'rm -f "$found"' EXIT
trap 'exit 130' HUP INT TERM

say "cppcheck $(cppcheck --version | sed 's/[^0-9]*//')"
# varFuncNullUB: NULL is a pointer here. readdirCalled: the other is deprecated.
# shellcheck disable=SC2086
{ cppcheck -q -j2 --enable=warning,portability,performance --inline-suppr \
	--std=c11 --library=posix --library=test/analyse/postgres.cfg \
	--suppress=varFuncNullUB --suppress=readdirCalled \
	-Isrc -DMLINT_INJECTION_POINTS $files 2>&1 || echo "cppcheck: error: it failed"; } |
	tee "$found"

# Assertions tell the analyser what holds. One file at a time: what a file
# declares of va_list is not known in the next. One that breaks off without a
# word has found nothing, and is a failure all the same.
say "clang-tidy $(clang-tidy --version | sed -n 's/.*version //p')"
{ echo $files | tr ' ' '\n' | xargs -P2 -I{} clang-tidy --quiet {} -- \
	-std=gnu11 -fno-strict-aliasing -fwrapv -D_GNU_SOURCE \
	-DMLINT_INJECTION_POINTS -DUSE_ASSERT_CHECKING=1 \
	'-DMLINT_SQL_VERSION="any"' -Isrc \
	-I"$("$PG_CONFIG" --includedir)" \
	-isystem "$("$PG_CONFIG" --includedir-server)" 2>/dev/null || echo "clang-tidy: error: it failed"; } |
	tee -a "$found"

if [ -s "$found" ]; then
	say "Found: $(grep -cE '(error|warning|portability|performance|style):' "$found")"
	exit 1
fi
say "Nothing found."
