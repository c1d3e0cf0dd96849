# The dispatcher's own memory while a large backlog goes through: its anonymous
# pages, which shared buffers are not part of.
measure_memory()
{
	destination all 'bench.*'
	pid=$(worker_pids 'mlint dispatcher' | head -n 1)
	before=$(delivered all)
	publish bench.run "$BACKLOG" >/dev/null
	most=0
	early=
	until done=$(delivered all) && [ $((done - before)) -ge "$BACKLOG" ]; do
		now=$(sed -n 's/^RssAnon:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status") ||
			die "the dispatcher is gone"
		[ "$now" -le $most ] || most=$now
		if [ -z "$early" ] && [ $((done - before)) -ge $((BACKLOG / 10)) ]; then
			early=$now
		fi
		sleep 0.5
	done
	now=$(sed -n 's/^RssAnon:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status")
	row "dispatcher's own memory, backlog of $BACKLOG: most" "≤ 64 MiB" - \
		"$(calc "$most / 1024" %.1f) MiB" -
	row "the same: growth from the first tenth to the end" "none" \
		"$(calc "${early:-$now} / 1024" %.1f) MiB" \
		"$(calc "$now / 1024" %.1f) MiB" "$(calc "$now / ${early:-$now}")"
}
