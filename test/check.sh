#!/bin/sh
# All of mlint's tests, on a machine with nothing installed:
#
#   sh test/check.sh [--coverage | --assert | --sanitize | --valgrind]
#		[--minutes M] [NAME...]
#
# Installs what the tests need, builds a copy of the tree into a private
# PostgreSQL, runs everything, and closes with "N passed, N failed". A NAME is
# that of one test (secrets, 010_master_key); then only those run.
# PG_CONFIG chooses the PostgreSQL to test with. With --coverage the lines that
# ran are counted, and 90 of a hundred must have; see coverage.sh. With one of
# the other words the tests run in a server that watches memory, see
# checked/lib.sh; the tree is not checked then. After M minutes no TAP test is
# begun any more, and what did not run for that is listed.
#
# Counted are: the checks of the tree, each file of sql/, each isolation spec
# and each assertion of a TAP test. Nothing is left behind; what matters about
# a failure is printed.
set -eu
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/coverage.sh"

coverage=
watched=
case ${1:-} in
--coverage)
	coverage=yes
	shift
	;;
--assert | --sanitize | --valgrind)
	watched=${1#--}
	shift
	. "$top/test/checked/lib.sh"
	;;
esac

passed=0
failed=0
skipped=0
until=

# When time is short: these first, which go through much of mlint or rest on
# PostgreSQL's inside, and those last, which take minutes.
first="001_readme 071_mended 042_standby 043_large_transactions 040_crash 147_archive_dump
	030_delivery 102_rate_sql 125_usage 070_privileges 081_secrets 146_archival_writers
	060_retention 165_certificates"
last="113_rate_leases 101_rate_state 191_mended_targets 105_rate_exact 050_lifecycle
	091_aws 112_rate_redis_topology 130_archive_large 136_archive_stores 175_acm
	184_acme_crash 181_acme_fuzz 180_acme_hostile 185_simulated_year"

# check NAME COMMAND...: one check of the tree.
check()
{
	name=$1
	shift
	if "$@"; then
		say "ok      $name"
		passed=$((passed + 1))
	else
		say "FAILED  $name"
		failed=$((failed + 1))
	fi
}

# The committed installation script is what the rooms say now.
sql_is_fresh()
{
	as_user cp "$work/tree/mlint--1.0.sql" "$work/committed.sql" || return 1
	as_user rm "$work/tree/mlint--1.0.sql"
	run_make mlint--1.0.sql && diff -u "$work/committed.sql" "$work/tree/mlint--1.0.sql" |
		head -n 20 >"$work/diff"
	[ ! -s "$work/diff" ] || { cat "$work/diff"; say "Run make and commit mlint--1.0.sql."; return 1; }
}

builds_with_clang()
{
	run_make -j2 CC=clang objects && run_make clean
}

# regress PROGRAM INPUT NAME...: pg_regress or pg_isolation_regress in a server
# of its own, whose database has the extension; their output has had two forms,
# up to 15 and since.
regress()
{
	program=$1
	input=$2
	shift 2
	kind=$(basename "$program")
	say
	say "$kind"
	mkdir -p "$work/$kind"
	[ -z "$user" ] || chown $user "$work/$kind"
	status=0
	as_user sh -c 'cd "$1" && shift && exec timeout --kill-after=60 "$@"' sh \
		"$work/$kind" "$([ -n "$watched" ] && echo 10800 || echo 1200)" "$program" \
		--inputdir="$work/tree/$input" --outputdir="$work/$kind" \
		--bindir="$bin" --temp-instance="$work/$kind/instance" \
		--temp-config="$work/tree/test/regress.conf" \
		--dbname=regression --encoding=UTF8 --no-locale \
		--load-extension=mlint "$@" \
		>"$work/$kind.out" 2>&1 </dev/null || status=$?
	grep -E "^(test |(not )?ok |     [a-z0-9_]+ +\.\.\. )" "$work/$kind.out" || true
	good=$(grep -cE "^ok [0-9]|^(test|    ) .* \.\.\. ok( |$)" "$work/$kind.out" || true)
	bad=$(grep -cE "^not ok [0-9]|\.\.\. FAILED" "$work/$kind.out" || true)
	# What it said nothing about did not run: no server, or one that crashed.
	if [ $((good + bad)) -lt $# ]; then
		say "$# were to run, $((good + bad)) did."
		bad=$(($# - good))
		tail -n 20 "$work/$kind.out"
	fi
	[ $status = 0 ] || [ $bad != 0 ] || bad=1
	passed=$((passed + good))
	failed=$((failed + bad))
	if [ $bad != 0 ]; then
		head -n 200 "$work/$kind/regression.diffs" 2>/dev/null || true
		tail -n 30 "$work/$kind/log/postmaster.log" 2>/dev/null || true
	fi
}

# tap FILE...
tap()
{
	say
	say "TAP"
	mkdir -p "$work/tap" "$work/ports"
	[ -z "$user" ] || chown $user "$work/tap" "$work/ports"
	pgxs=$(dirname "$(dirname "$("$PG_CONFIG" --pgxs)")")
	PERL5LIB=$work/tree/test/t:$pgxs/test/perl${PERL5LIB:+:$PERL5LIB}
	PG_REGRESS=$pgxs/test/regress/pg_regress
	TESTDIR=$work/tap
	TESTDATADIR=$work/tap/tmp_check
	TESTLOGDIR=$work/tap/tmp_check/log
	PG_TEST_PORT_DIR=$work/ports
	MLINT_TREE=$work/tree
	MLINT_COVERAGE=$coverage
	export PERL5LIB PG_REGRESS TESTDIR TESTDATADIR TESTLOGDIR \
		PG_TEST_PORT_DIR MLINT_TREE MLINT_COVERAGE
	as_user sh -c 'cd "$1" && shift && exec "$@"' sh "$work/tree" \
		perl test/tap.pl 2 "$work/tap/result" "${until:-0}" "$@" </dev/null || true
	if [ ! -s "$work/tap/result" ]; then
		say "The TAP tests did not run."
		failed=$((failed + 1))
		return
	fi
	read -r good bad skip late <"$work/tap/result"
	passed=$((passed + good))
	failed=$((failed + bad))
	skipped=$((skipped + skip))
	[ -z "$late" ] || say "The time was up; not run:$late"
	sed 1d "$work/tap/result" | while read -r file; do
		name=$(basename "$file" .pl)
		for log in "$work/tap/tmp_check/log/"*"$name"*; do
			[ -s "$log" ] || continue
			say "---- $(basename "$log")"
			tail -n 40 "$log"
		done
	done
	# Once more, where whoever sees only the end sees them.
	sed 1d "$work/tap/result" | while read -r file; do
		say "FAILED  $file"
		grep -ahoE "not ok .*" "$work/tap/tmp_check/log/regress_log_$(basename "$file" .pl)" || true
	done
}

# Which tests? Sets specs, sqls, taps to lists of names.
choose()
{
	sqls= specs= taps= unknown=
	if [ $# = 0 ]; then
		sqls=$(names sql .sql)
		specs=$(names test/isolation/specs .spec)
		taps=$(names test/t .pl)
	fi
	for name in "$@"; do
		if [ -f "$top/sql/$name.sql" ]; then sqls="$sqls $name"
		elif [ -f "$top/test/isolation/specs/$name.spec" ]; then specs="$specs $name"
		elif [ -f "$top/test/t/$name.pl" ]; then taps="$taps $name"
		else unknown="$unknown $name"
		fi
	done
	[ -z "$unknown" ] || die "no such test:$unknown; there are:" \
		"$(echo $(names sql .sql) $(names test/isolation/specs .spec) $(names test/t .pl))"
}

# by_value NAME...: those of $first, the others, those of $last.
by_value()
{
	for name in $first; do ! among "$name" "$@" || echo "$name"; done
	for name in "$@"; do
		# shellcheck disable=SC2086
		among "$name" $first $last || echo "$name"
	done
	for name in $last; do ! among "$name" "$@" || echo "$name"; done
}

among()
{
	case " $(shift; echo "$@") " in *" $1 "*) ;; *) return 1 ;; esac
}

# The server that 200_pg_upgrade comes from, if OLD_PG_CONFIG names another one.
build_old()
{
	as_user mkdir "$work/old"
	OLD_PG_CONFIG=$(as_user env PG_CONFIG="$OLD_PG_CONFIG" \
		sh "$work/tree/test/pgroot.sh" "$work/old")
	export OLD_PG_CONFIG
	run_make clean
	run_make -j2 PG_CONFIG="$OLD_PG_CONFIG" install ||
		die "mlint does not build for $OLD_PG_CONFIG"
}

# The layout is that of Debian 12's pg_bsd_indent; the one that comes with
# PostgreSQL since 16 lays out a little differently.
on_debian_12() { grep -q '^VERSION_CODENAME=bookworm' /etc/os-release; }

names()
{
	for f in "$top/$1"/*"$2"; do
		[ ! -f "$f" ] || basename "$f" "$2"
	done
}

# build_for_tests [VARIABLE=VALUE]...: with counters all at once, since they
# belong to the objects, and under a watch, since that takes long; the TAP
# tests' is the whole.
build_for_tests()
{
	if [ -n "$coverage" ]; then
		[ -d "$work/root" ] || build MLINT_INJECTION=1 COPT="$coverage_flags"
	elif [ -n "$watched" ]; then
		[ -d "$work/root" ] || watch_build
	else
		build "$@"
	fi
}

if [ "${1:-}" = --minutes ]; then
	case ${2:-} in ''|*[!0-9]*) die "--minutes wants a number" ;; esac
	until=$(($(date +%s) + $2 * 60))
	shift 2
fi
choose "$@"
# shellcheck disable=SC2086
[ -z "$until" ] || taps=$(by_value $taps)
need_for_build
need clang command -v clang
need libclang-rt-dev has_fuzzer
if on_debian_12; then
	need pg-bsd-indent command -v pg_bsd_indent
	need clang-tidy command -v clang-tidy
	need cppcheck command -v cppcheck
fi
need procps command -v ps
need perl perl -MTAP::Harness -e1
need libipc-run-perl perl -MIPC::Run -e1
need nginx-light test -x /usr/sbin/nginx
need openssl command -v openssl
need pebble command -v pebble
need curl command -v curl
need knot test -x /usr/sbin/knotd
need knot-dnsutils command -v kdig
need redis-server command -v redis-server
need redis-sentinel command -v redis-sentinel
need redis-tools command -v redis-cli
need prometheus command -v prometheus
need python3-venv python3 -c "import ensurepip, venv"
[ "$watched" != valgrind ] || need valgrind command -v valgrind
need libfaketime sh -c 'ls /usr/lib/*/faketime/libfaketime.so.1'
[ -z "$coverage" ] || need lcov command -v lcov
need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
install_missing
find_postgres || die "no PostgreSQL found"

work_begin check
copy_tree
[ -z "$watched" ] || watch_begin
if [ -z "$watched$*" ]; then
	say "The tree, with $("$PG_CONFIG" --version)"
	check "mlint--1.0.sql is what src/*/room.sql say" sql_is_fresh
	if on_debian_12; then
		check "laid out as PostgreSQL does" run_make format-check
		check "clang-tidy and cppcheck find nothing" \
			as_user sh "$work/tree/test/analyse.sh"
	else
		say "--      layout, clang-tidy, cppcheck: on Debian 12 only"
	fi
	check "builds with clang, no warnings" builds_with_clang
fi
[ -n "$taps" ] && [ -z "$sqls$specs" ] || build_for_tests
[ -n "$watched$*" ] || check "builds with gcc, no warnings" true

pgxs_test=$(dirname "$(dirname "$("$PG_CONFIG" --pgxs)")")/test
# shellcheck disable=SC2086
[ -z "$sqls" ] || regress "$pgxs_test/regress/pg_regress" . $sqls
# shellcheck disable=SC2086
[ -z "$specs" ] || regress "$pgxs_test/isolation/pg_isolation_regress" \
	test/isolation $specs
# The TAP tests have processes die at chosen places (src/common/injection.h).
if [ -n "$taps" ]; then
	[ ! -d "$work/root" ] || [ -n "$coverage$watched" ] || run_make clean
	build_for_tests MLINT_INJECTION=1
	[ -z "${OLD_PG_CONFIG:-}" ] || build_old
fi
# shellcheck disable=SC2046
[ -z "$taps" ] || tap $(for t in $taps; do echo "test/t/$t.pl"; done)

[ -z "$coverage" ] || coverage_report || failed=$((failed + 1))
[ -z "$watched" ] || watch_end

summary="$passed passed, $failed failed"
[ $skipped = 0 ] || summary="$summary, $skipped skipped"
say
say "$summary"
[ $failed = 0 ] && [ $passed != 0 ]
