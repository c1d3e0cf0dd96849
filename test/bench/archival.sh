# The archival scheduler over many sessions of which a tenth is due: how long it
# takes beside a table that holds nothing but due ones, what it reads of the
# rest, and prompts inserted by pgbench while it runs, beside as many alone, in
# turns.
. "$top/test/bench/commit.sh"

ARCHIVAL_SESSIONS=${ARCHIVAL_SESSIONS:-1000000}
ARCHIVAL_DUE=${ARCHIVAL_DUE:-100000}
ARCHIVAL_SECONDS=${ARCHIVAL_SECONDS:-10}

# talk PREFIX N DAYS MESSAGES: N sessions that were last used DAYS ago; each
# message is half a kilobyte or so.
talk()
{
	sql >/dev/null <<-EOSQL
		INSERT INTO mlint.session (session_id, model_id, tags, metadata, started_at, active_at, updated_at)
		SELECT '$1' || n, 'm', ARRAY['t' || n % 100], jsonb_build_object('user', n), t, t, t
		FROM generate_series(1, $2) n,
			LATERAL (SELECT now() - interval '1 day' * ($3 + n % 1000 / 1000.0) AS t) x;
		INSERT INTO mlint.message (id, session, kind, content, created_at)
		SELECT gen_random_uuid(), s.id, CASE m % 2 WHEN 1 THEN 'prompt' ELSE 'response' END,
			(SELECT string_agg(md5((s.id * 100 + m * 20 + i / 2)::text), ' ') FROM generate_series(1, 16) i),
			s.started_at + interval '1 second' * m
		FROM mlint.session s, generate_series(1, $4) m
		WHERE s.session_id ~ '^$1[0-9]+\$';
	EOSQL
	sql -c "VACUUM ANALYZE mlint.session" -c "VACUUM ANALYZE mlint.message" -c CHECKPOINT >/dev/null
}

# begin_run: ask for a run; its id.
begin_run() { sql -c "SELECT mlint.archival_run()"; }

# seconds_of RUN: when it has ended.
seconds_of()
{
	[ "$(sql -c "SELECT mlint.archival_wait($1, '1 hour')")" = t ] || die "the run does not end"
	[ "$(sql -c "SELECT state, archived FROM mlint.archival_runs WHERE id = $1")" = "completed|$ARCHIVAL_DUE" ] ||
		die "the run: $(sql -c "SELECT * FROM mlint.archival_runs WHERE id = $1")"
	sql -c "SELECT round(extract(epoch FROM duration)::numeric, 2) FROM mlint.archival_runs WHERE id = $1"
}

# read_of: sequential scans of mlint.session, and rows read of it by any index.
read_of()
{
	sql -c "SELECT seq_scan, seq_tup_read, idx_tup_fetch FROM pg_stat_user_tables WHERE relid = 'mlint.session'::regclass"
}

# prompts: a second, by pgbench.
prompts()
{
	pgbench -n -M prepared -c 8 -j 2 -T "$ARCHIVAL_SECONDS" -f "$work/prompt.sql" 2>"$work/pgbench.log" |
		sed -n 's/^tps = \([0-9]*\).*/\1/p'
}

measure_archival()
{
	sql -c "SELECT mlint.archival_set(enabled => false)" >/dev/null
	talk few "$ARCHIVAL_DUE" 40 2
	few=$(seconds_of "$(begin_run)")

	talk many "$((ARCHIVAL_SESSIONS - ARCHIVAL_DUE))" 10 1
	talk due "$ARCHIVAL_DUE" 40 2
	before=$(read_of)
	many=$(seconds_of "$(begin_run)")
	# Counters of a process are there when it has ended.
	wait_until 60 "SELECT NOT running FROM mlint.jobs WHERE name = 'archival'"
	after=$(read_of)
	row "archival, $ARCHIVAL_DUE of $ARCHIVAL_SESSIONS sessions due, beside a table of these only" "–" \
		"$few s" "$many s" "$(calc "$few / $many")"
	row "the same: sequential scans of the sessions, rows read by index for each one due" "0" "–" \
		"$(calc "${after%%|*} - ${before%%|*}" %.0f), $(calc "(${after##*|} - ${before##*|}) / $ARCHIVAL_DUE")" "–"

	# Due again, for as long as it takes.
	printf "\\set n random(1, %s)\nSELECT mlint.prompt_add('many' || :n, 'What is the capital of a country that has ' || :n || ' inhabitants?');\n" \
		$((ARCHIVAL_SESSIONS - ARCHIVAL_DUE)) >"$work/prompt.sql"
	rm -f "$work/prompts.limit" "$work/prompts.mlint"
	talk again "$ARCHIVAL_DUE" 40 2
	for i in 1 2 3; do
		prompts >>"$work/prompts.limit"
		run=$(begin_run)
		wait_until 60 "SELECT count(*) > 0 FROM mlint.archival_progress WHERE sessions_processed > 0"
		prompts >>"$work/prompts.mlint"
		[ "$(sql -c "SELECT count(*) FROM mlint.archival_progress")" = 1 ] ||
			say "  (the run ended before pgbench did)"
		sql -c "SELECT pg_cancel_backend(pid) FROM mlint.archival_progress" \
			-c "SELECT mlint.archival_wait($run, '1 minute')" \
			-c "SELECT mlint.archival_set(enabled => false)" >/dev/null
		wait_until 60 "SELECT NOT running FROM mlint.jobs WHERE name = 'archival'"
		say "  $(sql -c "SELECT archived || ' archived in ' || round(extract(epoch FROM duration)) || ' s' FROM mlint.archival_runs WHERE id = $run")"
	done
	limit=$(median <"$work/prompts.limit")
	mlint=$(median <"$work/prompts.mlint")
	row "prompts inserted while it archives, pgbench, 8 clients, beside the same alone" "≥ 0.8" \
		"$limit/s" "$mlint/s" "$(calc "$mlint / $limit")"
}
