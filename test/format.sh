#!/bin/sh
# Lay out C files as PostgreSQL does: format.sh write|check FILE...
# What pgindent does around pg_bsd_indent: the typedefs that our headers
# define, and PostgreSQL's that we use, are names of types.
set -eu
mode=$1; shift
top=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

{
	cat "$top/test/typedefs.list"
	sed -nE 's/^\} ([A-Za-z0-9_]+);.*/\1/p;
		s/^typedef (struct|enum|union) [A-Za-z0-9_]+ \*?([A-Za-z0-9_]+);.*/\2/p;
		s/^typedef .*\(\*([A-Za-z0-9_]+)\) *\(.*/\1/p' \
		$(find "$top/src" "$top/test" -name '*.[ch]')
} | sort -u >"$work/typedefs"

bad=0
for f in "$@"; do
	pg_bsd_indent -bad -bap -bbb -bc -bl -cli1 -cp33 -cdb -nce -d0 -di12 \
		-nfc1 -i4 -l79 -lp -lpl -nip -npro -sac -tpg -ts4 \
		-U"$work/typedefs" <"$f" >"$work/out" 2>"$work/err" ||
		{ cat "$work/err" >&2; echo "$f: cannot be laid out" >&2; exit 1; }
	# pg_bsd_indent leaves two things that pgindent mends afterwards.
	sed -E 's/^(typedef .*|extern .*)\(\* /\1(*/
		s/^([A-Za-z_][^[:space:]]*)[[:space:]]+\*$/\1 */' \
		"$work/out" >"$work/new"
	cmp -s "$f" "$work/new" && continue
	if [ "$mode" = write ]; then cat "$work/new" >"$f"; else
		diff -u "$f" "$work/new" | head -n 30; bad=1
	fi
done
[ $bad = 0 ] || { echo "not laid out as PostgreSQL does: run make format" >&2; exit 1; }
