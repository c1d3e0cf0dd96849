# roots.sh: Debian systems of other releases, each in a root of its own; POSIX
# sh, sourced after lib.sh by what runs in them (matrix.sh, upgrade.sh).
#
# A root is made by debootstrap, from the mirror that apt is configured with
# and signed by Debian's keyring, and knows the machine's proxies and
# certificate authorities. What runs in it has process ids, mounts and System V
# memory of its own (unshare): however that ends, killed too, its processes
# end with it and nothing stays mounted. Its network is the machine's.
#
# Roots lie in $work, and go with it; in the folder MLINT_ROOTS, when that is
# set, they stay for the next time, with all that was installed into them.

versions_in="15=bookworm 17=trixie 18=sid"

# suite_of VERSION: the Debian release that has it.
suite_of()
{
	for pair in $versions_in; do
		[ "${pair%%=*}" != "$1" ] || { echo "${pair#*=}"; return 0; }
	done
	die "no Debian release is known for PostgreSQL $1, only for:" \
		"$(for pair in $versions_in; do printf ' %s' "${pair%%=*}"; done)"
}

need_for_roots()
{
	[ "$(id -u)" = 0 ] || die "must be root: debootstrap, mount and chroot want that"
	need debootstrap command -v debootstrap
	need debian-archive-keyring test -s $keyring
	need util-linux command -v unshare
}

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Where apt gets Debian from; known once it has read the lists.
debian_mirror()
{
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)' \
		'Created-By: Packages' | awk '$1 == "Debian" && $2 == "main" && $3 !~ /-/ { print $4; exit }'
}

# root_begin SUITE: sets root to its folder, which has a root in it from then on;
# fails, and says why, when none can be made: other releases may do.
root_begin()
{
	root=${MLINT_ROOTS:-$work/roots}/$1
	mkdir -p "$(dirname "$root")"
	# One at a time uses a root that stays.
	exec 9>"$root.lock"
	flock -w 3600 9 || die "another run has had $root.lock for an hour"
	[ -d "$root" ] || root_make "$1" || return 1
	root_knows_machine
}

# A root that stays is left to the next run, any other one goes at once.
root_end()
{
	[ -n "${MLINT_ROOTS:-}" ] || rm -rf --one-file-system "$root"
	exec 9>&-
}

root_make()
{
	mirror=$(debian_mirror)
	[ -n "$mirror" ] || { apt-get -qq update; mirror=$(debian_mirror); }
	[ -n "$mirror" ] || die "apt is configured with no mirror of Debian"
	say "Making a root of Debian $1 from $mirror"
	rm -rf --one-file-system "$root.new"
	mkdir "$root.new"
	eval "$(apt-config shell http_proxy Acquire::http::Proxy \
		https_proxy Acquire::https::Proxy)"
	[ -z "${http_proxy:-}" ] || export http_proxy
	[ -z "${https_proxy:-}" ] || export https_proxy
	# Its wget waits for a quarter of an hour at each of twenty tries.
	printf 'timeout = 30\ntries = 3\n' >"$work/wgetrc"
	apart env WGETRC="$work/wgetrc" timeout --kill-after=10 900 debootstrap \
		--variant=minbase --keyring="$keyring" --include=ca-certificates \
		"$1" "$root.new" "$mirror" \
		>"$work/debootstrap.log" 2>&1 || {
		tail -n 20 "$work/debootstrap.log" "$root.new/debootstrap/debootstrap.log" >&2 || true
		say "debootstrap could not make a root of Debian $1: it needs root that" \
			"may mount and make devices, and the mirror" >&2
		return 1
	}
	# Starts nothing, makes no cluster, and need not outlive a loss of power.
	printf '#!/bin/sh\nexit 101\n' >"$root.new/usr/sbin/policy-rc.d"
	chmod 755 "$root.new/usr/sbin/policy-rc.d"
	mkdir -p "$root.new/etc/postgresql-common/createcluster.d"
	echo "create_main_cluster = false" \
		>"$root.new/etc/postgresql-common/createcluster.d/mlint.conf"
	echo force-unsafe-io >"$root.new/etc/dpkg/dpkg.cfg.d/mlint"
	mv "$root.new" "$root"
}

# What the machine knows of its network: names, proxies, authorities, where
# Python's packages are.
root_knows_machine()
{
	for file in /etc/hosts /etc/resolv.conf /etc/pip.conf; do
		[ ! -f $file ] || cat $file >"$root$file"
	done
	apt-config dump | grep -E '^Acquire::(https?|Retries|Check-)' \
		>"$root/etc/apt/apt.conf.d/90machine" || true
	mkdir -p "$root/usr/local/share/ca-certificates"
	for file in /usr/local/share/ca-certificates/*.crt; do
		[ ! -f "$file" ] || cp "$file" "$root/usr/local/share/ca-certificates/"
	done
	in_root update-ca-certificates >"$work/root.log" 2>&1 || {
		cat "$work/root.log" >&2
		say "nothing can be run in $root: chroot or mount is forbidden here" >&2
		return 1
	}
}

# root_install PACKAGE...
root_install()
{
	in_root sh -c "$apt"'
		$get update && $install "$@"' sh "$@" >"$work/root.log" 2>&1 || {
		tail -n 20 "$work/root.log" >&2
		say "could not install into $root: $*" >&2
		return 1
	}
}

# in_root COMMAND...: run it there, with /proc, terminals and shared memory. The
# first process has to collect what others leave behind; Perl is in each root.
in_root()
{
	# shellcheck disable=SC2016
	apart sh -eu -c '
		root=$1
		shift
		mount -t proc proc "$root/proc"
		mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
		mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
		exec env -u TMPDIR -u PG_CONFIG HOME=/root chroot "$root" perl -e '\''
			my $pid = fork // die "fork: $!";
			if (!$pid) { exec @ARGV or exit 127; }
			1 until wait == $pid;
			exit($? & 127 ? 128 + ($? & 127) : $? >> 8);'\'' "$@"
	' sh "$root" "$@"
}

# root_check VARIABLE=VALUE... -- [ARGUMENT OF check.sh]...: check.sh of the tree
# in $work, there; what it says is also in $work/result. A signal does not
# interrupt a pipeline, but a wait.
root_check()
{
	rm -rf "$root/tmp/tree"
	cp -a "$work/tree" "$root/tmp/tree"
	# shellcheck disable=SC2016
	in_root sh -c 'while [ "$1" != -- ]; do export "$1"; shift; done
		shift
		exec sh /tmp/tree/test/check.sh "$@"' sh "$@" 2>&1 | tee "$work/result" &
	wait $! || true
	rm -rf "$root/tmp/tree"
	tail -n 1 "$work/result" | grep -q "^[1-9][0-9]* passed, 0 failed"
}

# apart COMMAND...: with mounts and processes that end when unshare does; that
# names $work, as whatever work_stop() is to find.
apart()
{
	unshare --mount --pid --ipc --fork --kill-child \
		env MLINT_WORK="$work/" "$@" </dev/null 9>&- &
	wait $!
}
