# What the scripts of peers share: . "$(dirname "$0")/lib.sh"
# shellcheck shell=sh
#
# A peer's process NAME has its log and its pid in $dir/NAME.log and NAME.pid.

# The comment at the top of the script says how it is called.
usage()
{
	sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
	exit 2
}

# launch NAME COMMAND...
launch()
{
	launched=$1
	shift
	"$@" >"$dir/$launched.log" 2>&1 </dev/null &
	echo $! >"$dir/$launched.pid"
}

# answers NAME COMMAND...: wait until the command succeeds.
answers()
{
	asked=$1
	shift
	for try in $(seq 600); do
		"$@" >/dev/null 2>&1 && return 0
		kill -0 "$(cat "$dir/$asked.pid")" 2>/dev/null || break
		sleep 0.05
	done
	tail -n 20 "$dir/$asked.log" >&2
	echo "$0: $asked does not answer" >&2
	return 1
}

# Kill what has its pid in these files: nothing of a peer is worth keeping, and
# it may be stopped (SIGSTOP).
stop()
{
	for file in "$@"; do
		[ -s "$file" ] || continue
		pid=$(cat "$file")
		rm -f "$file"
		kill -KILL "$pid" 2>/dev/null || continue
		timeout 30 tail --pid="$pid" -s 0.02 -f /dev/null || true
	done
}

# A throwaway CA, $dir/ca.pem, unless there is one.
authority()
{
	[ ! -s "$dir/ca.pem" ] || return 0
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
		-days 3650 -subj "/CN=mlint test CA" \
		-addext basicConstraints=critical,CA:TRUE \
		-keyout "$dir/ca.key" -out "$dir/ca.pem" 2>"$dir/openssl.log"
}

# certificate NAME SAN: of that CA, $dir/NAME.pem and NAME.key.
certificate()
{
	[ ! -s "$dir/$1.pem" ] || return 0
	authority
	echo "subjectAltName=$2" >"$dir/san"
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
		-subj "/CN=$1" -keyout "$dir/$1.key" -out "$dir/$1.csr" \
		2>>"$dir/openssl.log"
	openssl x509 -req -in "$dir/$1.csr" -days 3650 -CAcreateserial \
		-CA "$dir/ca.pem" -CAkey "$dir/ca.key" -extfile "$dir/san" \
		-out "$dir/$1.pem" 2>>"$dir/openssl.log"
}
