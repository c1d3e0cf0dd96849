#!/bin/sh
# All of mlint's tests with other versions of PostgreSQL, each on the Debian
# release that has it:
#
#   sh test/matrix.sh [--minutes M] [15] [17] [18] [-- NAME...]
#
# A version's tests are those of check.sh, run in a root of its own (roots.sh):
# 15 on Debian 12, 17 on 13, 18 on sid; without a version all three. After NAME
# only those tests run. With --minutes each version has an equal part of the
# time that is left, its root included; what did not run for that is listed.
# Root only. MLINT_ROOTS, a folder, keeps the roots between runs.
#
# The last line is the sum, as check.sh says it.
set -eu
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/roots.sh"

passed=0
failed=0
skipped=0

# version_check VERSION [ARGUMENT OF check.sh]...
version_check()
{
	version=$1
	shift
	suite=$(suite_of "$version")
	say
	say "==== PostgreSQL $version, Debian $suite"
	: >"$work/result"
	if root_begin "$suite" && root_install "postgresql-$version" "postgresql-server-dev-$version"; then
		[ -z "$end" ] || set -- --minutes $((($(share) + 59) / 60)) "$@"
		root_check "PG_CONFIG=/usr/lib/postgresql/$version/bin/pg_config" -- "$@" || true
	fi
	root_end
	versions_left=$((versions_left - 1))
	count "$(tail -n 1 "$work/result")"
}

# The seconds that are this version's.
share()
{
	left=$((end - $(date +%s)))
	[ $left -gt 0 ] || left=0
	echo $((left / versions_left))
}

# count LINE: add what check.sh said at last; when it did not get there, that
# is a failure.
count()
{
	numbers=$(echo "$1" | sed -nE \
		's/^([0-9]+) passed, ([0-9]+) failed(, ([0-9]+) skipped)?$/\1 \2 \4/p')
	# shellcheck disable=SC2086
	set -- $numbers
	if [ $# = 0 ]; then
		say "PostgreSQL $version: the tests did not get to their end."
		set -- 0 1
	fi
	passed=$((passed + $1))
	failed=$((failed + $2))
	skipped=$((skipped + ${3:-0}))
}

end=
asked=
while [ $# != 0 ]; do
	case $1 in
	--minutes)
		case ${2:-} in ''|*[!0-9]*) die "--minutes wants a number" ;; esac
		end=$(($(date +%s) + $2 * 60))
		shift
		;;
	--) shift; break ;;
	*) asked="$asked $1" ;;
	esac
	shift
done
[ -n "$asked" ] || asked="15 17 18"
versions_left=0
for version in $asked; do
	suite_of "$version" >/dev/null
	versions_left=$((versions_left + 1))
done

need_for_roots
install_missing
work_begin matrix
copy_tree
for version in $asked; do version_check "$version" "$@"; done

say
say "PostgreSQL$asked:"
summary="$passed passed, $failed failed"
[ $skipped = 0 ] || summary="$summary, $skipped skipped"
say "$summary"
[ $failed = 0 ] && [ $passed != 0 ]
