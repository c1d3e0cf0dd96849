#!/bin/sh
# Put who may use what, as a server with mlint has it, into security.md:
# privileges.sh [psql options]
set -eu
cd "$(dirname "$0")"
# A JSON array of [room, name] for all that the rooms create.
rooms=$(for room in $(sed -e :a -e '/\\$/N; s/\\\n//; ta' ../Makefile | sed -n 's/^ROOMS = //p'); do
	sed -n "s,^CREATE \([A-Z]* \)*mlint\.\([a-z0-9_]*\).*,[\"$room\"\, \"\2\"],p" \
		"../src/$room/"*.sql
done | paste -s -d , -)
psql -X -q -v rooms="[$rooms]" -f privileges.sql "$@" >privileges.tmp
sed -e '/^<!-- privileges\.sql -->$/r privileges.tmp' \
	-e '/^<!-- privileges\.sql -->$/,/^<!-- end -->$/{/^<!--/!d;}' security.md >security.tmp
mv security.tmp security.md
rm privileges.tmp
