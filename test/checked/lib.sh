# checked/lib.sh: the suite with something that watches; sourced by check.sh.
#
#   --assert     a server with assertions and guarded memory (postgres.sh)
#   --sanitize   that, and mlint under AddressSanitizer and
#                UndefinedBehaviorSanitizer
#   --valgrind   that, and the server under valgrind
#
# The server that watches is put in place of postgres in the private
# installation, by a script of that name: so it is under every test, however
# that starts a server, and clients are what they always are. What is reported
# goes to a file a process in $work/reports; each is a failure, whatever its
# test says. $watched is the word, without dashes; tests see MLINT_WATCHED.

# Stack frames are larger, everything is slower: what PostgreSQL's own tests and
# ours wait for may take longer.
watch_begin()
{
	MLINT_WATCHED=$watched
	PG_TEST_TIMEOUT_DEFAULT=${PG_TEST_TIMEOUT_DEFAULT:-900}
	PGCTLTIMEOUT=${PGCTLTIMEOUT:-600}
	export MLINT_WATCHED PG_TEST_TIMEOUT_DEFAULT PGCTLTIMEOUT
	mkdir "$work/reports"
	[ -z "$user" ] || chown "$user" "$work/reports"
	case $("$PG_CONFIG" --configure) in
	*--enable-cassert*) ;;
	*)
		say "Building PostgreSQL with assertions"
		PG_CONFIG=$(sh "$top/test/checked/postgres.sh" "$work/checked")
		chmod -R go+rX "$work/checked"
		;;
	esac
}

# Build once, for all tests, and put the watch in place.
# Without -fwrapv, so that arithmetic that overflows is found. What is put in
# between, and assertions in what is inlined, have gcc warn of what is not there.
watch_build()
{
	case $watched in
	sanitize)
		build MLINT_INJECTION=1 COPT="-fsanitize=address,undefined -fno-sanitize-recover=all \
			-fno-omit-frame-pointer -fno-wrapv -w"
		;;
	*) build MLINT_INJECTION=1 COPT="-Wno-error=clobbered" ;;
	esac
	[ $watched = assert ] || watch_server
}

watch_server()
{
	mv "$bin/postgres" "$bin/postgres.real"
	mv "$bin/pg_ctl" "$bin/pg_ctl.real"
	# initdb's servers know no extension. A restart would run what ran before,
	# not what runs that: hence -p.
	cat >"$bin/postgres" <<-EOF
		#!/bin/sh
		case \${1:-} in
		--boot|--single|--version|-V|--describe-config|-C) exec "$bin/postgres.real" "\$@" ;;
		esac
		$(watch_command) "$bin/postgres.real" "\$@"
	EOF
	cat >"$bin/pg_ctl" <<-EOF
		#!/bin/sh
		exec "$bin/pg_ctl.real" "\$@" -p "$bin/postgres"
	EOF
	chmod 755 "$bin/postgres" "$bin/pg_ctl"
}

# PostgreSQL measures the depth of its stack, hence no copies of it elsewhere;
# what it takes and leaves to the end of the process is no leak.
watch_command()
{
	case $watched in
	sanitize)
		say "ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1:abort_on_error=1:quarantine_size_mb=32:malloc_context_size=12:log_path=$work/reports/asan \\"
		say "UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1:log_path=$work/reports/ubsan \\"
		say "LD_PRELOAD=\"$(gcc -print-file-name=libasan.so)\${LD_PRELOAD:+ \$LD_PRELOAD}\" exec"
		;;
	valgrind)
		say "exec valgrind -q --leak-check=no --error-limit=no --num-callers=24 \\"
		say "--suppressions=$("$PG_CONFIG" --sharedir)/valgrind.supp \\"
		say "--suppressions=$work/tree/test/checked/valgrind.supp \\"
		say "--log-file=$work/reports/valgrind.%p"
		;;
	esac
}

# What has been reported, if anything.
watch_end()
{
	reports=$(find "$work/reports" -type f -size +0 | sort)
	# shellcheck disable=SC2086
	set -- $reports
	say
	if [ $# = 0 ]; then
		say "ok      nothing was reported ($watched)"
		passed=$((passed + 1))
		return
	fi
	failed=$((failed + $#))
	for f in "$@"; do
		say "FAILED  $(basename "$f")"
		head -n 60 "$f"
	done | head -n 1000
	[ -z "${MLINT_REPORTS:-}" ] || { mkdir -p "$MLINT_REPORTS" && cp "$@" "$MLINT_REPORTS"; }
}
