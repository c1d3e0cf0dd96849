#!/bin/sh
# pg_upgrade of a database with mlint, between the versions of two Debians:
#
#   sh test/upgrade.sh [OLD] [NEW]		(15 and 17)
#
# In a root (roots.sh) of the release that has NEW, to which OLD's packages are
# added from its own release, mlint is built for both, and 200_pg_upgrade goes
# from one to the other. Root only; MLINT_ROOTS as in matrix.sh. The last line
# is check.sh's.
set -eu
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/roots.sh"

old=${1:-15}
new=${2:-17}
old_suite=$(suite_of "$old")
new_suite=$(suite_of "$new")

need_for_roots
install_missing
work_begin upgrade
copy_tree
root_begin "$new_suite"
sed "s/ $new_suite / $old_suite /" "$root/etc/apt/sources.list" \
	>"$root/etc/apt/sources.list.d/$old_suite.list"
root_install "postgresql-$new" "postgresql-server-dev-$new" \
	"postgresql-$old" "postgresql-server-dev-$old"
status=0
root_check "PG_CONFIG=/usr/lib/postgresql/$new/bin/pg_config" \
	"OLD_PG_CONFIG=/usr/lib/postgresql/$old/bin/pg_config" -- 200_pg_upgrade ||
	status=$?
root_end
exit $status
