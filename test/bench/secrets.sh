# Reading secrets, one a statement by pgbench and 100,000 in one, and changing
# the master key under them. In turns, medians of three.
. "$top/test/bench/commit.sh"

SECRETS=${SECRETS:-100000}

# reads DURABILITY LIMIT-SCRIPT MEASURE TO-REACH
reads()
{
	sql -c "ALTER SYSTEM SET mlint.audit_durability = '$1'" -c "SELECT pg_reload_conf()" >/dev/null
	rm -f "$work/reads.limit" "$work/reads.mlint"
	for i in 1 2 3; do
		transactions "$2" >>"$work/reads.limit"
		transactions get >>"$work/reads.mlint"
	done
	limit=$(median <"$work/reads.limit")
	mlint=$(median <"$work/reads.mlint")
	row "$3" "$4" "$limit/s" "$mlint/s" "$(calc "$mlint / $limit")"
}

# rewrap_seconds: change the master key, and wait until all is sealed with it.
rewrap_seconds()
{
	started=$(sql -c "SELECT clock_timestamp() FROM (SELECT mlint.master_key_rotate()) x")
	wait_until 300 "SELECT count(*) = 0 FROM mlint.master_key WHERE state = 'retiring'"
	wait_until 60 "SELECT last_started_at > '$started' FROM mlint.jobs WHERE name = 'master_key_rewrap'"
	sql -c "SELECT round(extract(epoch FROM last_finished_at - last_started_at)::numeric, 2)
		FROM mlint.jobs WHERE name = 'master_key_rewrap'"
}

# readers SECONDS: reads a second by one client.
readers()
{
	pgbench -n -M prepared -c 1 -T "$1" -f "$work/get.sql" 2>"$work/pgbench.log" |
		sed -n 's/^tps = \([0-9]*\).*/\1/p'
}

measure_secrets()
{
	sql >/dev/null <<-EOSQL
		SELECT count(mlint.secret_put('bench/' || n, 'the value of a secret, number ' || n))
		FROM generate_series(1, $SECRETS) n;
		CREATE TABLE secret_like (name text COLLATE "C" PRIMARY KEY, value text);
		INSERT INTO secret_like SELECT 'bench/' || n, 'the value of a secret, number ' || n
		FROM generate_series(1, $SECRETS) n;
		CREATE TABLE read_like (id bigserial PRIMARY KEY, at timestamptz, name text, role text);
		VACUUM ANALYZE;
	EOSQL
	random="\\set n random(1, $SECRETS)"
	printf "%s\nSELECT mlint.secret_get('bench/' || :n);\n" "$random" >"$work/get.sql"
	printf "%s\nSELECT value FROM secret_like WHERE name = 'bench/' || :n;\n" "$random" >"$work/select.sql"
	printf "%s\nINSERT INTO read_like (at, name, role) VALUES (now(), 'bench/' || :n, current_user);\n" \
		"$random" >"$work/insert_read.sql"

	reads memory select "secret_get, 8 clients, memory, beside an indexed SELECT" "≥ 0.6"
	reads flush insert_read "secret_get, 8 clients, flush, beside a one-row INSERT" "≥ 0.8"

	for i in 1 2 3; do
		sql <<-EOSQL
			SET mlint.audit_durability = memory;
			SELECT clock_timestamp() AS began \gset
			SELECT count(mlint.secret_get(name)) AS n FROM secret_like \gset
			SELECT round($SECRETS / extract(epoch FROM clock_timestamp() - :'began'));
		EOSQL
	done | median >"$work/decrypt"
	mlint=$(cat "$work/decrypt")
	row "decrypting $SECRETS secrets in one SELECT, memory" "≥ 100,000/s" "–" "$mlint/s" "–"

	sql -c "ALTER SYSTEM SET mlint.audit_durability = memory" -c "SELECT pg_reload_conf()" >/dev/null
	for i in 1 2 3; do rewrap_seconds; done | median >"$work/rewrap"
	mlint=$(calc "$SECRETS / $(cat "$work/rewrap")" "%.0f")
	row "master_key_rotate, $SECRETS versions" "≥ 50,000/s" "–" "$mlint/s" "–"

	limit=$(readers 3)
	(n=0; while [ $((n += 1)) -le 8 ] && [ ! -e "$work/enough" ]; do rewrap_seconds; done >"$work/rewraps") &
	rewrapping=$!
	mlint=$(readers 6)
	touch "$work/enough"
	wait $rewrapping
	row "one reader while master keys change, beside one alone" "≥ 0.9" \
		"$limit/s" "$mlint/s" "$(calc "$mlint / $limit")"
	sql -c "ALTER SYSTEM RESET mlint.audit_durability" -c "SELECT pg_reload_conf()" >/dev/null
}
