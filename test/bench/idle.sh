# How often mlint's processes wake up when there is nothing to do: voluntary
# context switches, the most of any process.
measure_idle()
{
	# What went before may still be settling.
	sleep 10
	pids=$(worker_pids mlint)
	[ -n "$pids" ] || die "no workers"
	for pid in $pids; do echo "$pid $(switches "$pid")"; done >"$work/idle"
	sleep "$IDLE_SECONDS"
	most=0
	while read -r pid before; do
		woken=$(calc "($(switches "$pid") - $before) * 60 / $IDLE_SECONDS" %.1f)
		say "  $(sql -c "SELECT backend_type || coalesce(' of ' || datname, '') FROM pg_stat_activity WHERE pid = $pid"): $woken a minute"
		most=$(calc "$woken > $most ? $woken : $most" %.1f)
	done <"$work/idle"
	row "an idle database: wakeups a minute, the busiest worker" "≤ 1" - "$most" -
}

switches() { sed -n 's/^voluntary_ctxt_switches:[^0-9]*//p' "/proc/$1/status"; }
