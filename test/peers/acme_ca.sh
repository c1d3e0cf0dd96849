#!/bin/sh
# A certificate authority of our own that misbehaves when told to: acme_ca.py.
#
#   acme_ca.sh start DIR PORT CONTROL_PORT [plain]     acme_ca.sh stop DIR
#
# All it needs lies in DIR, which is made: the packages (venv; ACME_CA_VENV
# names another place for them), root.pem, acme_ca.pid, acme_ca.log. Any user can run it.
set -eu

. "$(dirname "$0")/lib.sh"

case ${1:-} in
stop) stop "$2/acme_ca.pid"; exit 0 ;;
start) ;;
*) usage ;;
esac

mkdir -p "$2"
dir=$(cd "$2" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
port=$3
control=$4
shift 4
venv=${ACME_CA_VENV:-$dir/venv}
sh "$here/venv.sh" "$venv" acme_ca
rm -f "$dir/ready"
launch acme_ca "$venv/bin/python" "$here/acme_ca.py" "$dir" "$port" "$control" "$@"
answers acme_ca test -e "$dir/ready"
