#!/bin/sh
# A private PostgreSQL installation: pgroot.sh DIR copies the one that
# pg_config names into DIR and prints the copy's pg_config. PostgreSQL finds
# its files relative to its executables, so an extension can be installed and
# tried there without touching the system's.
set -eu
root=$1
pg_config=${PG_CONFIG:-pg_config}
bin=$("$pg_config" --bindir)
if [ ! -x "$root$bin/pg_config" ]; then
	for d in "$bin" "$("$pg_config" --pkglibdir)" "$("$pg_config" --sharedir)" \
		"$("$pg_config" --includedir-server)"; do
		mkdir -p "$root$d"
		cp -a "$d/." "$root$d/"
	done
	# PGXS's own files lie beside or below the libraries.
	pgxs=$(dirname "$(dirname "$(dirname "$("$pg_config" --pgxs)")")")
	[ -d "$root$pgxs" ] || { mkdir -p "$root$pgxs"; cp -a "$pgxs/." "$root$pgxs/"; }
	# What libpq's header needs; the rest of that folder may be anything.
	include=$("$pg_config" --includedir)
	for f in libpq-fe.h postgres_ext.h pg_config_ext.h; do
		# 18 has the last no more.
		[ -f "$include/$f" ] || continue
		cp "$include/$f" "$root$include/"
	done
	rm -rf "$root$("$pg_config" --pkglibdir)/bitcode"
fi
echo "$root$bin/pg_config"
