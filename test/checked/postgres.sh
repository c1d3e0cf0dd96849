#!/bin/sh
# A PostgreSQL that looks at what extensions do: with assertions, memory that is
# overwritten when it is freed and random when it is new, guards behind every
# piece of it, and words about all that for valgrind and AddressSanitizer.
#
#   sh test/checked/postgres.sh DIR     prints the pg_config of what it built
#
# It is built of Debian's source of the major version that PG_CONFIG names (else
# the newest installed), which is read by an apt configuration of the script's
# own; the system's is left as it is. DIR must not be there. This takes some
# five minutes on two cores; test/check.sh does it for each of its runs unless
# PG_CONFIG names what this made.
set -eu
[ $# = 1 ] || { echo "usage: postgres.sh DIR" >&2; exit 2; }
. "$(dirname "$0")/../lib.sh"

here=$top/test/checked
mkdir "$1"
dir=$(cd "$1" && pwd)

need gcc command -v gcc
need libc6-dev have_header stdio.h
need make command -v make
need perl command -v perl
need bzip2 command -v bzip2
need pkgconf command -v pkg-config
need libssl-dev have_header openssl/evp.h
need libicu-dev have_header unicode/ucol.h
need libzstd-dev have_header zstd.h
need zlib1g-dev have_header zlib.h
need valgrind have_header valgrind/memcheck.h
find_postgres || no_postgres=yes
install_missing
find_postgres || die "no PostgreSQL found"
package=postgresql-$("$PG_CONFIG" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')

#
# The source: apt's own mirrors, and the newest version that one of them has.
#
mkdir -p "$dir/apt/lists/partial" "$dir/apt/cache/archives/partial"
trap 'rm -rf "$dir/apt" "$dir/source"' EXIT
trap 'exit 130' HUP INT TERM
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ ! -f $keyring ] || signed="[signed-by=$keyring] "
apt-get indextargets --format \
	"deb-src ${signed:-}\$(REPO_URI) \$(CODENAME) \$(COMPONENT) \$(ORIGIN)" \
	'Created-By: Packages' | sed -n 's/ Debian$//p' | sort -u >"$dir/apt/sources.list"
[ -s "$dir/apt/sources.list" ] || die "apt knows no mirror of Debian's"
cat >"$dir/apt/apt.conf" <<EOF
Dir::Etc::sourcelist "$dir/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$dir/apt/lists";
Dir::Cache "$dir/apt/cache";
APT::Sandbox::User "";
EOF
log=$dir/apt/log
own_apt() { (cd "$dir/apt" && APT_CONFIG=$dir/apt/apt.conf "$@"); }
own_apt apt-get -qq update >"$log" 2>&1 || { cat "$log" >&2; die "no lists of sources"; }
for version in $(own_apt apt-cache showsrc $package |
	sed -n 's/^Version: //p' | sort -rV -u); do
	own_apt apt-get -qq source --download-only "$package=$version" >>"$log" 2>&1 || continue
	break
done
tarball=$(ls "$dir"/apt/*.orig.tar.bz2 2>/dev/null) || {
	cat "$log" >&2
	die "no source of $package"
}
mkdir "$dir/source"
tar -xjf "$tarball" -C "$dir/source" --strip-components 1 --no-same-owner

#
# The build. -z dynamic-undefined-weak: the weak names of memcheck.h are to be
# looked up when the server starts.
#
cd "$dir/source"
{
	./configure -q --prefix="$dir/postgresql" --enable-cassert --enable-debug \
		--enable-tap-tests --with-openssl --with-icu --with-zstd \
		--without-readline \
		CFLAGS="-O1 -fno-omit-frame-pointer" \
		CPPFLAGS="-I$here -DUSE_VALGRIND -DRANDOMIZE_ALLOCATED_MEMORY" \
		LDFLAGS_EX="-Wl,-z,dynamic-undefined-weak" &&
		make -s -j2 install &&
		make -s -C contrib/amcheck install &&
		make -s -C contrib/auto_explain install &&
		make -s -C contrib/pg_stat_statements install &&
		cp src/tools/valgrind.supp "$dir/postgresql/share/"
} >"$dir/build.log" 2>&1 </dev/null || {
	tail -n 40 "$dir/build.log" >&2
	die "PostgreSQL $version does not build"
}
echo "$dir/postgresql/bin/pg_config"
