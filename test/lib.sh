# lib.sh: what demo.sh, check.sh and bench/run.sh share; sourced, POSIX sh.
#
# Everything happens in one temporary folder, $work: a copy of the tree
# ($work/tree), a private PostgreSQL with mlint installed into it
# ($work/root; pgroot.sh), data directories, logs, sockets. When the script
# ends, however it ends, every process that was started there is stopped and
# the folder is gone; the system's own PostgreSQL is never touched.
#
# PostgreSQL does not run as root. Root installs packages, and does the rest
# as user postgres, whom Debian's server package makes.

top=$(cd "$(dirname "$0")" &&
	while [ ! -f mlint.control ] && [ "$PWD" != / ]; do cd ..; done && pwd)

# The versions that mlint supports, best first.
versions="18 17 16 15"

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

#
# Packages: only what is missing.
#

as_root()
{
	if [ "$(id -u)" = 0 ]; then "$@"
	elif command -v sudo >/dev/null; then sudo "$@"
	else die "needs root (or sudo) for: $*"
	fi
}

# need PACKAGE COMMAND...: when the command fails, the package is missing.
missing=
no_postgres=
need()
{
	package=$1
	shift
	"$@" >/dev/null 2>&1 || missing="$missing $package"
}

have_header() { echo "#include <$1>" | cc -E -; }
has_fuzzer() { echo "int LLVMFuzzerTestOneInput(void) { return 0; }" |
	clang -fsanitize=fuzzer -x c - -o /dev/null; }

need_for_build()
{
	need gcc command -v gcc
	need libc6-dev have_header stdio.h
	need make command -v make
	need libcurl4-openssl-dev have_header curl/curl.h
	need libssl-dev have_header openssl/evp.h
	need libjansson-dev have_header jansson.h
	need libzstd-dev have_header zstd.h
	need libmicrohttpd-dev have_header microhttpd.h
	need libldns-dev have_header ldns/ldns.h
	need libidn2-dev have_header idn2.h
	need libhiredis-dev have_header hiredis/hiredis.h
	need python3 command -v python3
	find_postgres || no_postgres=yes
}

# The server to build for: PG_CONFIG's, else the newest installed one that
# has its development files too. Sets PG_CONFIG.
find_postgres()
{
	if [ -n "${PG_CONFIG:-}" ]; then
		case $(command -v "$PG_CONFIG") in
		/*) ;;
		*/*) PG_CONFIG=$PWD/$PG_CONFIG ;;
		esac
		complete_postgres "$PG_CONFIG" ||
			die "$PG_CONFIG has no server, or lacks its development files"
		return 0
	fi
	for v in $versions; do
		if complete_postgres /usr/lib/postgresql/$v/bin/pg_config; then
			PG_CONFIG=/usr/lib/postgresql/$v/bin/pg_config
			export PG_CONFIG
			return 0
		fi
	done
	return 1
}

complete_postgres()
{
	[ -x "$1" ] && [ -x "$("$1" --bindir)/postgres" ] && [ -f "$("$1" --pgxs)" ] &&
		[ -f "$("$1" --includedir-server)/postgres.h" ]
}

# The packages of the installed server's version, else of the newest known.
postgres_packages()
{
	for v in $versions; do
		[ -x /usr/lib/postgresql/$v/bin/postgres ] && break
		v=
	done
	if [ -z "$v" ]; then
		for v in $versions; do
			apt-cache show postgresql-server-dev-$v >/dev/null 2>&1 && break
			v=15
		done
	fi
	echo "postgresql-$v postgresql-server-dev-$v"
}

# For a shell as root: apt-get without questions, and with bounds. Its mirror may
# be slow, or gone.
# shellcheck disable=SC2016
apt='
	export DEBIAN_FRONTEND=noninteractive
	get="timeout --kill-after=10 900 apt-get -qq -o Acquire::http::Timeout=30 -o Acquire::Retries=3"
	install="$get -y --no-install-recommends install"'

# Install what need() found missing, and start nothing by doing so: Debian
# would make and start a database cluster, and start nginx, Redis and
# Prometheus. These are prevented by two files that are there only meanwhile.
install_missing()
{
	[ -n "$missing$no_postgres" ] || return 0
	command -v apt-get >/dev/null ||
		die "not a Debian system; please install the likes of:$missing" \
			"${no_postgres:+PostgreSQL 15 to 18 and its server headers}"
	if ! apt-cache show gcc >/dev/null 2>&1; then
		say "Reading the lists of packages"
		as_root apt-get -qq update
	fi
	[ -z "$no_postgres" ] || missing="$missing $(postgres_packages)"
	say "Installing$missing"
	# shellcheck disable=SC2086
	as_root sh -c "$apt"'
		policy=/usr/sbin/policy-rc.d
		cluster=/etc/postgresql-common/createcluster.d
		made=
		[ -e $policy ] || {
			printf "#!/bin/sh\nexit 101\n" >$policy
			chmod 755 $policy
			made=$policy
		}
		[ -d $cluster ] || made="$made $cluster"
		mkdir -p $cluster
		echo "create_main_cluster = false" >$cluster/mlint.conf
		trap "rm -f $cluster/mlint.conf; rm -rf $made" EXIT
		trap "exit 130" INT TERM
		# A service that is here already is not ours to stop.
		fresh=
		for service in knot nginx redis-server redis-sentinel prometheus; do
			[ -e /lib/systemd/system/$service.service ] || fresh="$fresh $service"
		done
		log=$(mktemp)
		$install "$@" >$log 2>&1 || {
			$get update && $install "$@" >$log 2>&1
		} || { cat $log >&2; rm -f $log; exit 1; }
		rm -f $log
		for service in $fresh; do
			[ -e /lib/systemd/system/$service.service ] || continue
			! command -v systemctl >/dev/null || systemctl -q disable $service || true
		done
	' sh $missing </dev/null >&2 || die "could not install:$missing"
	missing=
}

#
# The temporary folder, its processes, its end.
#

# work_begin NAME: make $work.
work_begin()
{
	work=$(mktemp -d "${TMPDIR:-/tmp}/mlint-$1.XXXXXX")
	trap work_end EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	mkdir "$work/tmp"
	user=
	if [ "$(id -u)" = 0 ]; then
		user=postgres
		id $user >/dev/null 2>&1 || user=nobody
		chown $user "$work" "$work/tmp"
	fi
	# Nobody's own configuration, and no file outside the folder.
	HOME=$work
	TMPDIR=$work/tmp
	PGSYSCONFDIR=$work
	LC_ALL=C.UTF-8
	LANG=C.UTF-8
	export HOME TMPDIR PGSYSCONFDIR LC_ALL LANG
	unset PGHOST PGPORT PGUSER PGDATABASE PGPASSWORD PGPASSFILE PGSERVICE \
		PGSERVICEFILE PGOPTIONS PGDATA PGAPPNAME PGSSLMODE PGCLIENTENCODING
}

work_end()
{
	status=$?
	trap '' HUP INT TERM
	trap - EXIT
	work_stop
	rm -rf "$work"
	exit $status
}

# Stop every process that names the folder in its command line; servers first,
# for the sake of what belongs to them.
work_stop()
{
	# Pids of roots are those of other processes here; unshare ends theirs.
	for f in $(find "$work" -path "$work/roots" -prune -o -name postmaster.pid -print 2>/dev/null); do
		kill -QUIT "$(head -n 1 "$f")" 2>/dev/null || true
	done
	signal=TERM
	for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		pids=$(work_processes)
		[ -n "$pids" ] || return 0
		# shellcheck disable=SC2086
		kill -$signal $pids 2>/dev/null || true
		[ $i != 15 ] || signal=KILL
		sleep 0.2
	done
}

work_processes()
{
	for f in $(grep -lsF -- "$work/" /proc/[0-9]*/cmdline); do
		pid=${f#/proc/}
		pid=${pid%/cmdline}
		if [ "$pid" != $$ ] && [ -d "/proc/$pid" ]; then echo "$pid"; fi
	done
}

# Run a command as the unprivileged user, so that signals still reach us; in
# $work, since that user may not read the folder that we were called from.
as_user()
{
	(
		cd "$work"
		[ -z "$user" ] || exec runuser -u "$user" -- "$@"
		exec "$@"
	) &
	wait $!
}

#
# Building.
#

# Copy the tree as it stands, changes included, without what make made.
copy_tree()
{
	mkdir -p "$work/tree"
	(cd "$top" && tar -cf - --exclude=./.git --exclude='*.o' --exclude='*.so' \
		--exclude='*.bc' --exclude=./results --exclude=./tmp_check .) |
		tar -xf - -C "$work/tree" --no-same-owner
	[ -z "$user" ] || chown -R $user "$work/tree"
}

# make, without PostgreSQL's bitcode; quiet unless it fails.
run_make()
{
	as_user make -s -C "$work/tree" with_llvm=no "$@" >"$work/make.log" 2>&1 || {
		tail -n 40 "$work/make.log" >&2
		return 1
	}
}

# build [VARIABLE=VALUE]...: a private PostgreSQL with mlint in it; sets
# PG_CONFIG and bin to its own. A second call replaces mlint.
build()
{
	[ -d "$work/root" ] || build_root
	run_make -j2 "$@" PG_CONFIG="$PG_CONFIG" install || die "mlint does not build"
}

build_root()
{
	as_user mkdir "$work/root"
	as_user sh "$work/tree/test/pgroot.sh" "$work/root" >"$work/pg_config"
	PG_CONFIG=$(cat "$work/pg_config")
	bin=$("$PG_CONFIG" --bindir)
	PATH=$bin:$PATH
	export PG_CONFIG PATH
}

#
# One server of our own, on a socket in the folder and nowhere else.
#

# server_start [LINE OF postgresql.conf]...
server_start()
{
	as_user initdb -D "$work/data" -A trust -U postgres -E UTF8 --locale=C \
		--no-sync >"$work/initdb.log" 2>&1 || {
		cat "$work/initdb.log" >&2
		die "initdb failed"
	}
	{
		echo "shared_preload_libraries = 'mlint'"
		echo "listen_addresses = ''"
		echo "unix_socket_directories = '$work'"
		for line in "$@"; do echo "$line"; done
	} >>"$work/data/postgresql.conf"
	PGHOST=$work
	PGPORT=5432
	PGUSER=postgres
	export PGHOST PGPORT PGUSER
	server_control start
}

server_control()
{
	as_user pg_ctl -D "$work/data" -l "$work/server.log" -w -t 60 -s \
		-m fast "$@" </dev/null || {
		tail -n 20 "$work/server.log" >&2
		die "pg_ctl $1 failed"
	}
}

# sql [psql options]: one value, or rows.
sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"; }

# within SECONDS COMMAND...: until the command succeeds.
within()
{
	seconds=$1
	deadline=$(($(date +%s) + seconds))
	shift
	until "$@"; do
		[ "$(date +%s)" -lt $deadline ] || die "waited $seconds s for: $*"
		sleep 0.1
	done
}

# wait_until SECONDS SQL: until the query says t.
wait_until() { within "$1" sql_says_t "$2"; }
sql_says_t() { [ "$(sql -c "$1")" = t ]; }
