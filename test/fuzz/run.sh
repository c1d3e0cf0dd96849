#!/bin/sh
# Fuzz what reads what comes from outside, with libFuzzer under ASan and UBSan:
#
#   sh test/fuzz/run.sh [SECONDS [TARGET...]]
#
# So many seconds (60) for each target (all of test/fuzz/*.c). It begins with
# test/fuzz/corpus/TARGET and writes nothing there; FUZZ_DIR names a folder where
# what is found stays (inputs that reach something new, and those that break
# something), else that is printed and gone. Fails when anything broke.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
seconds=${1:-60}
[ $# = 0 ] || shift
[ $# != 0 ] || set -- $(cd "$here" && ls *.c | sed 's/\.c$//')

. "$top/test/lib.sh"

need clang command -v clang
need libclang-rt-dev has_fuzzer
need_for_build
install_missing
find_postgres || die "no PostgreSQL found"

if [ -n "${FUZZ_DIR:-}" ]; then
	mkdir -p "$FUZZ_DIR"
	dir=$(cd "$FUZZ_DIR" && pwd)
else
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	trap 'exit 130' INT TERM
fi

# The files of ours that a target takes in, from its line "Sources:". What else
# of the server they name and never call stays unresolved; shim/ has the rest.
sources()
{
	sed -n 's/^ \* Sources: //p' "$here/$1.c" | tr ' ' '\n' | sed "s,^,$top/src/,"
}

status=0
for target in "$@"; do
	say "$target, $seconds seconds"
	# shellcheck disable=SC2046
	clang -w -g -O1 -fno-omit-frame-pointer \
		-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
		-I"$top/src" -I"$("$PG_CONFIG" --includedir-server)" \
		"$here/$target.c" $(sources "$target") "$here/shim/server.c" \
		-no-pie -Wl,--unresolved-symbols=ignore-all -o "$dir/$target" \
		-ljansson -lssl -lcrypto
	mkdir -p "$dir/$target.found"
	dict=
	[ ! -e "$here/$target.dict" ] || dict=-dict=$here/$target.dict
	(cd "$dir" && nice "./$target" -max_total_time="$seconds" -max_len=16384 \
		-timeout=10 -rss_limit_mb=1024 -print_final_stats=1 $dict \
		-artifact_prefix="$dir/$target." \
		"$dir/$target.found" "$here/corpus/$target" >"$dir/$target.log" 2>&1) || {
		status=1
		tail -n 60 "$dir/$target.log"
		for f in "$dir/$target".crash-* "$dir/$target".leak-* \
			"$dir/$target".timeout-* "$dir/$target".oom-*; do
			[ -e "$f" ] || continue
			say "$(basename "$f"):"
			base64 "$f"
		done
	}
	grep -E "^stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)" \
		"$dir/$target.log" || true
done
exit $status
