#!/bin/sh
# Put the drivers' options, as a server with mlint has them, into delivery.md:
# drivers.sh [psql options]
set -eu
cd "$(dirname "$0")"
psql -X -q -f drivers.sql "$@" >drivers.tmp
sed -e '/^<!-- drivers\.sql -->$/r drivers.tmp' \
	-e '/^<!-- drivers\.sql -->$/,/^<!-- end -->$/{/^<!--/!d;}' delivery.md >delivery.tmp
mv delivery.tmp delivery.md
rm drivers.tmp
