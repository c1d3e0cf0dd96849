#!/bin/sh
# Draw docs/images/rate-*.svg from what a real server admits:
#
#   sh test/pictures/rate_limits.sh
#
# The server's rate limits go by a clock that is set for each request, so that
# the pictures come out the same every time.
set -eu
. "$(dirname "$0")/../lib.sh"

need_for_build
install_missing
find_postgres || die "no PostgreSQL found"

work_begin pictures
copy_tree
build MLINT_INJECTION=1
server_start
sql -d postgres -c "CREATE EXTENSION mlint"
PGTZ=UTC sql -d postgres -F ' ' -f "$top/test/pictures/rate_limits.sql" |
	sed '/^$/d' >"$work/answers"
mkdir -p "$top/docs/images"
for load in steady bursts; do
	python3 "$top/test/pictures/rate_limits.py" "$load" <"$work/answers" \
		>"$work/picture.svg"
	cat "$work/picture.svg" >"$top/docs/images/rate-$load.svg"
done
