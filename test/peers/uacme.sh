#!/bin/sh
# Debian's uacme against a Pebble (pebble.sh), http-01 by way of a webroot.
#
#   uacme.sh DIR DIRECTORY_URL CA WEBROOT NAME...
#
# Registers an account in DIR if there is none, then has a certificate issued
# for each name, one after the other, and prints the seconds that each took.
# uacme knows no authority but the system's: it runs in a mount namespace where
# the file CA is in the place of those.
set -eu

[ $# -ge 4 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
bundle=/etc/ssl/certs/ca-certificates.crt
if [ "${MLINT_UACME_INSIDE:-}" != yes ]; then
	own=-m
	[ "$(id -u)" = 0 ] || own=-rm
	export MLINT_UACME_INSIDE=yes
	exec unshare $own sh "$0" "$@"
fi
mount --bind "$3" $bundle

mkdir -p "$1"
dir=$(cd "$1" && pwd)
url=$2
WEBROOT=$4/.well-known/acme-challenge
export WEBROOT
shift 4
mkdir -p "$WEBROOT"
cat >"$dir/hook" <<'END'
#!/bin/sh
case $1.$2 in
begin.http-01) printf %s "$5" >"$WEBROOT/$4" ;;
begin.*) exit 1 ;;
*) rm -f "$WEBROOT/$4" ;;
esac
END
chmod 755 "$dir/hook"

run() { uacme -v -y -c "$dir/conf" -a "$url" -t EC "$@" >"$dir/log" 2>&1 || { cat "$dir/log" >&2; exit 1; }; }

[ -s "$dir/conf/private/key.pem" ] || run new admin@example.org
for name in "$@"; do
	begun=$(date +%s.%N)
	run -h "$dir/hook" issue "$name"
	echo "$begun $(date +%s.%N)" | awk '{ printf "%.4f\n", $2 - $1 }'
done
