#!/bin/sh
# Put the list of tests into testing.md: what each says of itself in the first
# paragraph of its head.
set -eu
cd "$(dirname "$0")"

list()
{
	[ -f "$2" ] || return 0
	printf '| %s | what must hold |\n| --- | --- |\n' "$1"
	shift
	for file in "$@"; do
		name=${file##*/}
		printf '| `%s` |%s |\n' "${name%.*}" "$(awk '
			/^#!/ { next }
			!/^(#|--)/ || /^(#|--)[ \t]*$/ { exit }
			{ sub(/^(#|--)[ \t]*/, ""); gsub(/[|]/, "\\|"); printf " %s", $0 }' "$file")"
	done
	echo
}

{
	list 'sql/' ../sql/*.sql
	list 'test/isolation/specs/' ../test/isolation/specs/*.spec
	list 'test/t/' ../test/t/*.pl
} | sed '$d' >tests.tmp
sed -e '/^<!-- tests -->$/r tests.tmp' \
	-e '/^<!-- tests -->$/,/^<!-- end -->$/{/^<!--/!d;}' testing.md >testing.tmp
mv testing.tmp testing.md
rm tests.tmp
