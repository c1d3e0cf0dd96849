#!/bin/sh
# All of mlint's tests, on a machine with nothing installed:
#
#   sh test/check.sh [NAME...]
#
# Installs what the tests need, builds a copy of the tree into a private
# PostgreSQL, runs everything, and closes with "N passed, N failed". A NAME is
# that of one test (secrets, 010_master_key); then only those run.
# PG_CONFIG chooses the PostgreSQL to test with.
#
# Counted are: the checks of the tree, each file of sql/, each isolation spec
# and each assertion of a TAP test. Nothing is left behind; what matters about
# a failure is printed.
set -eu
. "$(dirname "$0")/lib.sh"

passed=0
failed=0
skipped=0

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
	as_user sh -c 'cd "$1" && shift && exec "$@"' sh "$work/$kind" "$program" \
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
	export PERL5LIB PG_REGRESS TESTDIR TESTDATADIR TESTLOGDIR \
		PG_TEST_PORT_DIR MLINT_TREE
	as_user sh -c 'cd "$1" && shift && exec "$@"' sh "$work/tree" \
		perl test/tap.pl 2 "$work/tap/result" "$@" </dev/null || true
	if [ ! -s "$work/tap/result" ]; then
		say "The TAP tests did not run."
		failed=$((failed + 1))
		return
	fi
	read -r good bad skip <"$work/tap/result"
	passed=$((passed + good))
	failed=$((failed + bad))
	skipped=$((skipped + skip))
	sed 1d "$work/tap/result" | while read -r file; do
		name=$(basename "$file" .pl)
		for log in "$work/tap/tmp_check/log/"*"$name"*; do
			[ -s "$log" ] || continue
			say "---- $(basename "$log")"
			tail -n 40 "$log"
		done
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

names()
{
	for f in "$top/$1"/*"$2"; do
		[ ! -f "$f" ] || basename "$f" "$2"
	done
}

choose "$@"
need_for_build
need clang command -v clang
need pg-bsd-indent command -v pg_bsd_indent
need perl perl -MTAP::Harness -e1
need libipc-run-perl perl -MIPC::Run -e1
need nginx-light test -x /usr/sbin/nginx
need openssl command -v openssl
need redis-server command -v redis-server
need redis-sentinel command -v redis-sentinel
need redis-tools command -v redis-cli
need python3-venv python3 -c "import ensurepip, venv"
need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
install_missing
find_postgres || die "no PostgreSQL found"

work_begin check
copy_tree
if [ $# = 0 ]; then
	say "The tree, with $("$PG_CONFIG" --version)"
	check "mlint--1.0.sql is what src/*/room.sql say" sql_is_fresh
	check "laid out as PostgreSQL does" run_make format-check
	check "builds with clang, no warnings" builds_with_clang
fi
[ -n "$taps" ] && [ -z "$sqls$specs" ] || build
[ $# != 0 ] || check "builds with gcc, no warnings" true

pgxs_test=$(dirname "$(dirname "$("$PG_CONFIG" --pgxs)")")/test
# shellcheck disable=SC2086
[ -z "$sqls" ] || regress "$pgxs_test/regress/pg_regress" . $sqls
# shellcheck disable=SC2086
[ -z "$specs" ] || regress "$pgxs_test/isolation/pg_isolation_regress" \
	test/isolation $specs
# The TAP tests have processes die at chosen places (src/common/injection.h).
if [ -n "$taps" ]; then
	[ ! -d "$work/root" ] || run_make clean
	build MLINT_INJECTION=1
fi
# shellcheck disable=SC2046
[ -z "$taps" ] || tap $(for t in $taps; do echo "test/t/$t.pl"; done)

summary="$passed passed, $failed failed"
[ $skipped = 0 ] || summary="$summary, $skipped skipped"
say
say "$summary"
[ $failed = 0 ] && [ $passed != 0 ]
