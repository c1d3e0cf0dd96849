#!/bin/sh
# A real Prometheus on loopback that reads mlint.metrics() of a database every
# ten seconds (so long it may take, however busy the machine), by way of
# metrics.py, and has the alert rules of docs/alerts.yml.
#
#   prometheus.sh start DIR PORT CONNINFO     prometheus.sh stop DIR
#
# All it needs lies in DIR, which is made. Any user can run it.
set -eu

. "$(dirname "$0")/lib.sh"
here=$(cd "$(dirname "$0")" && pwd)

case ${1:-} in
stop)
	dir=$2
	stop "$dir/prometheus.pid" "$dir/metrics.pid"
	exit 0 ;;
start) ;;
*) usage ;;
esac

mkdir -p "$2"
dir=$(cd "$2" && pwd)
launch metrics python3 "$here/metrics.py" --port-file "$dir/port" --connect "$4"
answers metrics test -s "$dir/port"
cat >"$dir/prometheus.yml" <<-EOC
	global:
	  scrape_interval: 10s
	  evaluation_interval: 1s
	rule_files: [$here/../../docs/alerts.yml]
	scrape_configs:
	  - job_name: mlint
	    static_configs: [{targets: ["127.0.0.1:$(cat "$dir/port")"]}]
EOC
launch prometheus prometheus --config.file="$dir/prometheus.yml" \
	--storage.tsdb.path="$dir/data" --web.listen-address="127.0.0.1:$3"
answers prometheus python3 -c "import urllib.request
urllib.request.urlopen('http://127.0.0.1:$3/-/ready')"
