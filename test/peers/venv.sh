#!/bin/sh
# Packages of Python for a peer, in a folder of their own:
#
#   venv.sh DIR NAME     installs what NAME.txt beside this script lists
#
# Versions are pinned there, dependencies too, so that nothing moves by itself.
# Does nothing when DIR is whole already.
set -eu
dir=$1
list=$(cd "$(dirname "$0")" && pwd)/$2.txt
[ ! -e "$dir/whole" ] || exit 0
mkdir -p "$dir"
python3 -m venv "$dir"
timeout 600 "$dir/bin/pip" --quiet --disable-pip-version-check --no-cache-dir install \
	--no-deps -r "$list"
: >"$dir/whole"
