# Publishing one event a transaction, by pgbench, beside the same bare INSERT.
# In turns, medians of three.
. "$top/test/bench/publish.sh"

measure_commit()
{
	like_event
	printf '\\set n random(1, 1000000)\nINSERT INTO bench.event SELECT %s FROM (SELECT :n AS n) x;\n' \
		"$(echo $like_row)" >"$work/insert.sql"
	printf '\\set n random(1, 1000000)\nSELECT mlint.publish('"'bench.idle'"', %s) FROM (SELECT :n AS n) x;\n' \
		"$(echo $data)" >"$work/publish.sql"
	for i in 1 2 3; do
		transactions insert >>"$work/commit.limit"
		transactions publish >>"$work/commit.mlint"
	done
	limit=$(median <"$work/commit.limit")
	mlint=$(median <"$work/commit.mlint")
	row "publish, one a transaction, pgbench, 8 clients" "≥ 0.9" \
		"$limit/s" "$mlint/s" "$(calc "$mlint / $limit")"
}

# transactions SCRIPT: a second.
transactions()
{
	pgbench -n -M prepared -c 8 -j 2 -T "$PGBENCH_SECONDS" -f "$work/$1.sql" 2>"$work/pgbench.log" |
		sed -n 's/^tps = \([0-9]*\).*/\1/p'
}
