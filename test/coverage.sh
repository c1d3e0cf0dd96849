# coverage.sh: what check.sh --coverage does besides running the tests; sourced.
#
# mlint is built with gcov's counters, which each process adds to files beside
# the objects when it exits. What ends otherwise loses its own: a SIGKILL, and an
# immediate shutdown, so nodes of the TAP tests are stopped fast at their end
# (MlintTest.pm), and a process that is to die by injection writes its counters
# first (src/common/injection.c).
#
# No line is exempt. Code for other versions of PostgreSQL is not compiled, so it
# does not count; docs/testing.md says what else no test reaches.

coverage_least=90
coverage_flags="--coverage -O0 -fprofile-update=atomic -DMLINT_COVERAGE"

# Lines that ran and lines there are, of each room and of all; then the lines
# that did not, a file a line. Fails when too few ran. MLINT_COVERAGE_DIR, if
# set, gets coverage.info and HTML.
coverage_report()
{
	say
	say "Coverage"
	for step in "--initial base" "'' tests"; do
		eval "set -- $step"
		# shellcheck disable=SC2086
		as_user lcov -q --capture $1 --no-external \
			--directory "$work/tree/src" --directory "$work/tree/modules" \
			--output-file "$work/$2.info" >"$work/lcov.log" 2>&1 || {
			tail -n 20 "$work/lcov.log"
			die "lcov fails"
		}
	done
	as_user lcov -q --add-tracefile "$work/base.info" \
		--add-tracefile "$work/tests.info" --output-file "$work/coverage.info"
	coverage_keep
	awk -v tree="$work/tree/" -v least=$coverage_least \
		-f "$top/test/coverage.awk" "$work/coverage.info"
}

coverage_keep()
{
	[ -n "${MLINT_COVERAGE_DIR:-}" ] || return 0
	mkdir -p "$MLINT_COVERAGE_DIR"
	sed "s|^SF:$work/tree/|SF:$top/|" "$work/coverage.info" \
		>"$MLINT_COVERAGE_DIR/coverage.info"
	genhtml -q --prefix "$top" --output-directory "$MLINT_COVERAGE_DIR" \
		"$MLINT_COVERAGE_DIR/coverage.info"
}
